//! Drivers in Python: componentize-py, installed once into a cache folder, makes
//! a component of the driver's files and the SDK.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::{Built, copy, finish, read_manifest};
use crate::contract;
use crate::say::tell;

/// The module that holds the driver.
const DRIVER: &str = "driver.py";
/// The SDK, as `sandgate new` gives it to a driver.
pub const SDK: &str = include_str!("../../../../../sdk/python/sandgate.py");
const SDK_FILE: &str = "sandgate.py";
/// What the component is made of: the SDK's classes, with the driver's found.
const APP: &str =
    "import driver\nimport sandgate\nfrom sandgate import DeviceDriver, Migration\n\nsandgate.use(driver)\n";
const WORLD: &str = "sandgate:driver/migrating-driver";

/// The version, and the digests of its wheels: Linux on x86_64 and aarch64, macOS on both.
const TOOL: &str = "componentize-py-0.25.1";
const REQUIREMENT: &str = "\
componentize-py==0.25.1 \\
    --hash=sha256:8623cd8cab8453cb0cd8bf03f3c7103420d06f2f3d360186a280a70a1ca5e89f \\
    --hash=sha256:7b6a87c520358166843af0daa86d2312d7af4cbcbbf1e598951085cf7f2991ca \\
    --hash=sha256:a556991534cc496207a9d2ca733c4b0f17ed38ef56a8d6b5f1847fdf1225dd1b \\
    --hash=sha256:65fbc4a94df1de8acf7da50a1f5ed1711230188844e53e6332d99029be4e0afa
";
/// The tool's command without the script that an environment would have.
const RUN: &str = "import sys; sys.argv[0] = 'componentize-py'; from componentize_py import script; sys.exit(script())";

/// Whether a folder holds a driver in Python.
pub fn is_driver(folder: &Path) -> bool {
    folder.join(DRIVER).is_file()
}

/// Builds the driver of a folder.
pub fn build(folder: &Path) -> Result<Built> {
    let manifest = read_manifest(folder)?;
    let tool = install()?;
    let work = tempfile::tempdir().context("making a folder for the build")?;
    let (app, wit, raw) = (work.path().join("app"), work.path().join("wit"), work.path().join("raw.wasm"));
    copy(folder, &app, &[".py"])?;
    std::fs::write(app.join("sandgate_app.py"), APP).context("writing the component's module")?;
    if !app.join(SDK_FILE).exists() {
        std::fs::write(app.join(SDK_FILE), SDK).context("writing the SDK")?;
    }
    contract::write(&wit)?;
    tell!("building {}: this takes some 10 s", manifest.label());
    let mut python = python();
    python.args(["-c", RUN, "--wit-path"]).arg(&wit).args([
        "--world",
        WORLD,
        "componentize",
        "sandgate_app",
        "--python-path",
    ]);
    python.arg(&app).arg("--output").arg(&raw).env("PYTHONPATH", tool);
    // Modules of the folder where it is started would come before the tool's own.
    let output = python.current_dir(work.path()).stdin(Stdio::null()).output().context("starting python3")?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).replace(&format!("{}/", app.display()), "");
        bail!("componentize-py could not build {}:\n{}", folder.display(), said.trim());
    }
    let bytes = std::fs::read(&raw).context("reading the component")?;
    finish(bytes, &manifest, folder)
}

fn python() -> Command {
    Command::new("python3")
}

/// Installs the tool when it is missing; gives its folder.
fn install() -> Result<PathBuf> {
    let cache = super::cache().context("expected a folder for tools; set XDG_CACHE_HOME or HOME")?;
    let (tools, tool) = (cache.join("tools"), cache.join("tools").join(TOOL));
    if tool.is_dir() {
        return Ok(tool);
    }
    std::fs::create_dir_all(&tools).with_context(|| format!("making {}", tools.display()))?;
    tell!("installing {TOOL} into {} (46 MB, once)", tool.display());
    let part = tempfile::tempdir_in(&tools).context("making a folder for the tool")?;
    let (requirement, installed) = (part.path().join("requirements.txt"), part.path().join("tool"));
    std::fs::write(&requirement, REQUIREMENT).context("writing what is wanted")?;
    let mut pip = python();
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]);
    pip.args(["--only-binary=:all:", "--require-hashes", "--target"]).arg(&installed).arg("-r").arg(&requirement);
    // In a folder of its own it harms no system.
    pip.current_dir(part.path());
    let status = pip.env("PIP_ROOT_USER_ACTION", "ignore").stdin(Stdio::null()).status();
    let status = status.context("starting python3; drivers in Python need Python 3.9 or later with pip")?;
    if !status.success() {
        bail!("pip could not install {TOOL}; behind a mirror set PIP_INDEX_URL, and see what pip has said above");
    }
    // Another build may have been faster.
    match std::fs::rename(&installed, &tool) {
        Err(error) if !tool.is_dir() => Err(error).with_context(|| format!("moving {}", tool.display())),
        _ => Ok(tool),
    }
}
