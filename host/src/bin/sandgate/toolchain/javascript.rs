//! Drivers in JavaScript and TypeScript: esbuild makes one module of the driver's
//! files and the SDK, componentize-qjs a component of that, with QuickJS in it.
//! Both are installed once into a cache folder.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::{Built, copy, finish, read_manifest};
use crate::contract;
use crate::say::tell;

/// The modules that may hold the driver.
const DRIVERS: [&str; 2] = ["driver.ts", "driver.js"];
/// The SDK, as `sandgate new` gives it to a driver.
pub const SDK: &str = include_str!("../../../../../sdk/javascript/sandgate.ts");
const SDK_FILE: &str = "sandgate.ts";
/// What the component is made of: the exports that the SDK makes of the driver.
const APP: &str = "import Own from \"./driver\";\nimport { use } from \"./sandgate\";\n\n\
                   export const { deviceDriver, migration } = use(Own);\n";
const APP_FILE: &str = "sandgate-app.js";
const WORLD: &str = "sandgate:driver/migrating-driver";

/// The versions, and the digests of the packages.
const PACKAGE: &str = include_str!("../../../../../sdk/javascript/tools/package.json");
const LOCK: &str = include_str!("../../../../../sdk/javascript/tools/package-lock.json");
const TOOL: &str = "componentize-qjs-0.4.5";

/// Whether a folder holds a driver in one of the two.
pub fn is_driver(folder: &Path) -> bool {
    DRIVERS.iter().any(|file| folder.join(file).is_file())
}

/// Builds the driver of a folder.
pub fn build(folder: &Path) -> Result<Built> {
    let manifest = read_manifest(folder)?;
    let tools = install()?;
    let work = tempfile::tempdir().context("making a folder for the build")?;
    let path = |name: &str| work.path().join(name);
    copy(folder, &path("app"), &[".js", ".ts", ".mjs", ".json"])?;
    let packages = folder.join("node_modules");
    if packages.is_dir() {
        let packages = packages.canonicalize().context("finding the driver's packages")?;
        std::os::unix::fs::symlink(packages, path("app/node_modules")).context("linking the driver's packages")?;
    }
    let app = path("app").join(APP_FILE);
    std::fs::write(&app, APP).context("writing the component's module")?;
    if !path("app").join(SDK_FILE).exists() {
        std::fs::write(path("app").join(SDK_FILE), SDK).context("writing the SDK")?;
    }
    contract::write(&path("wit"))?;
    let mut bundle = Command::new(tools.join(".bin/esbuild"));
    bundle.current_dir(path("app")).arg(APP_FILE);
    bundle.args(["--bundle", "--format=esm", "--target=es2022", "--external:sandgate:*", "--log-level=warning"]);
    run(bundle.arg(format!("--outfile={}", path("driver.js").display())), folder, "esbuild")?;
    let mut componentize = Command::new("node");
    componentize.current_dir(work.path()).arg(tools.join("componentize-qjs/bin/componentize-qjs"));
    componentize.args(["--wit", "wit", "--js", "driver.js", "--world", WORLD, "--sync", "-o", "raw.wasm"]);
    run(&mut componentize, folder, "componentize-qjs")?;
    let bytes = std::fs::read(path("raw.wasm")).context("reading the component")?;
    finish(bytes, &manifest, folder)
}

/// Runs a tool; what it says is shown when it fails.
fn run(tool: &mut Command, folder: &Path, name: &str) -> Result<()> {
    let output = tool.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("starting {name}; drivers in JavaScript need Node.js 20 or later"))?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        bail!("{name} could not build {}:\n{}", folder.display(), String::from_utf8_lossy(&said).trim());
    }
    Ok(())
}

/// Installs the tools when they are missing; gives their folder.
fn install() -> Result<PathBuf> {
    let cache = super::cache().context("expected a folder for tools; set XDG_CACHE_HOME or HOME")?;
    let (all, tool) = (cache.join("tools"), cache.join("tools").join(TOOL));
    if !tool.is_dir() {
        std::fs::create_dir_all(&all).with_context(|| format!("making {}", all.display()))?;
        tell!("installing {TOOL} and esbuild into {} (49 MB, once)", tool.display());
        let part = tempfile::tempdir_in(&all).context("making a folder for the tools")?;
        std::fs::write(part.path().join("package.json"), PACKAGE).context("writing what is wanted")?;
        std::fs::write(part.path().join("package-lock.json"), LOCK).context("writing what is wanted")?;
        let mut npm = Command::new("npm");
        npm.current_dir(part.path()).args(["ci", "--no-audit", "--no-fund", "--loglevel=error"]);
        let status = npm.stdin(Stdio::null()).stdout(Stdio::null()).status();
        let status = status.context("starting npm; drivers in JavaScript need Node.js 20 or later with npm")?;
        if !status.success() {
            bail!(
                "npm could not install {TOOL}; behind a mirror set npm_config_registry, and see what npm has said above"
            );
        }
        // Another build may have been faster.
        match std::fs::rename(part.path(), &tool) {
            Err(error) if !tool.is_dir() => return Err(error).with_context(|| format!("moving {}", tool.display())),
            _ => {}
        }
    }
    Ok(tool.join("node_modules"))
}
