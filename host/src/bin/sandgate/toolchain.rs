//! From a driver's source to a component: cargo and its target, the embedded
//! manifest and provenance, the check that a gateway takes it.

mod cargo;
pub mod javascript;
pub mod python;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;

use crate::say::tell;
use sandgate::blueprint::{Blueprint, Sources, is_blueprint};
use sandgate::files;
use sandgate::manifest::Manifest;
use sandgate::manifest::provenance::Provenance;
use sandgate::sandbox::{Compiler, Sandbox, embed_manifest, inspect};

/// The target of components in Rust.
const TARGET: &str = "wasm32-wasip2";

/// What stands between flags in the environment.
const BETWEEN: &str = "\x1f";

/// Larger components take a while to check.
const LARGE: usize = 4 << 20;

/// A finished component.
pub struct Built {
    /// The driver's name.
    pub name: String,
    /// The driver's version.
    pub version: String,
    /// The component with its manifest.
    pub bytes: Vec<u8>,
}

/// Builds a Rust driver with cargo, which shows its progress.
pub fn rust(folder: &Path) -> Result<Built> {
    rust_into(folder, None)
}

/// The same, with what cargo makes on the way in a folder of its own.
pub fn rust_into(folder: &Path, target: Option<&Path>) -> Result<Built> {
    let manifest = read_manifest(folder)?;
    install_target()?;
    let package = Package::find(folder, target)?;
    let mut cargo = Command::new("cargo");
    cargo.current_dir(folder).args(["build", "--target", TARGET, "--profile", package.profile]);
    package.leave_out_places(&mut cargo);
    cargo.args(target.map(|target| ["--target-dir".into(), target.as_os_str().to_owned()]).into_iter().flatten());
    let status = cargo.stdin(Stdio::null()).status().context("starting cargo; install Rust with rustup")?;
    if !status.success() {
        bail!("cargo could not build {}", folder.display());
    }
    let mut bytes =
        std::fs::read(&package.artifact).with_context(|| format!("reading {}", package.artifact.display()))?;
    package.provenance.embed(&mut bytes)?;
    finish(bytes, &manifest, &package.artifact)
}

/// Reads a blueprint of Enapter, a folder or a zip.
pub fn blueprint(path: &Path) -> Result<Blueprint> {
    if path.is_dir() {
        return Blueprint::of_folder(path);
    }
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let name = path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Blueprint::read(&name, &Sources::of_zip(&bytes)?)
}

/// Makes a driver of a blueprint, if its scripts are Lua.
pub async fn scripts(blueprint: &Blueprint) -> Result<Built> {
    let bytes = blueprint.component()?;
    let driver = Sandbox::new(Compiler::InProcess, None)?.prepare(bytes.clone().into()).await?;
    let problems = driver.script_problems().await.context("looking at the scripts")?;
    if !problems.is_empty() {
        bail!("scripts that are no Lua:\n{}", problems.join("\n"));
    }
    let of = &driver.manifest.driver;
    Ok(Built { name: of.name.clone(), version: of.version.clone(), bytes })
}

/// Embeds the manifest of a folder in a component of another toolchain.
pub fn embed(folder: &Path, component: &Path) -> Result<Built> {
    let manifest = read_manifest(folder)?;
    let bytes = std::fs::read(component).with_context(|| format!("reading {}", component.display()))?;
    let bytes = embed_manifest(&bytes, &manifest.text).with_context(|| component.display().to_string())?;
    finish(bytes, &manifest, component)
}

/// Checks that the component is a driver with this very manifest, and one that
/// a gateway takes.
fn finish(bytes: Vec<u8>, manifest: &Manifest, origin: &Path) -> Result<Built> {
    let inspection = inspect(&bytes).with_context(|| origin.display().to_string())?;
    let bytes = if inspection.manifest.as_deref() == Some(&manifest.text) {
        bytes
    } else {
        embed_manifest(&bytes, &manifest.text)?
    };
    if bytes.len() > LARGE {
        tell!("checking {}: this takes some seconds", manifest.label());
    }
    let sandbox = Sandbox::new(Compiler::InProcess, None)?;
    sandbox.try_component(&bytes).with_context(|| origin.display().to_string())?;
    Ok(Built { name: manifest.driver.name.clone(), version: manifest.driver.version.clone(), bytes })
}

fn read_manifest(folder: &Path) -> Result<Manifest> {
    let path = folder.join("manifest.yml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading manifest {}", path.display()))?;
    Manifest::parse(&text).map_err(|error| anyhow!("{}:{error}", path.display()))
}

/// Folders that belong to other tools, or to tests.
const LEFT_OUT: [&str; 7] = ["tests", "test", "venv", "target", "dist", "node_modules", "__pycache__"];
const MAX_DEPTH: usize = 8;

/// Copies the files with these endings of a driver's folder and the folders in it.
fn copy(from: &Path, to: &Path, endings: &[&str]) -> Result<()> {
    let mut waiting = vec![(from.to_owned(), to.to_owned(), 0)];
    while let Some((from, to, depth)) = waiting.pop() {
        std::fs::create_dir_all(&to).with_context(|| format!("making {}", to.display()))?;
        let reading = || format!("reading {}", from.display());
        for entry in std::fs::read_dir(&from).with_context(reading)? {
            let entry = entry.with_context(reading)?;
            let (path, Ok(name)) = (entry.path(), entry.file_name().into_string()) else { continue };
            let is_own = depth < MAX_DEPTH && !name.starts_with('.') && !LEFT_OUT.contains(&name.as_str());
            if path.is_dir() && is_own {
                waiting.push((path, to.join(name), depth + 1));
            } else if path.is_file() && endings.iter().any(|ending| name.ends_with(ending)) {
                std::fs::copy(&path, to.join(&name)).with_context(|| format!("copying {}", path.display()))?;
            }
        }
    }
    Ok(())
}

/// Where compiled code and tools are kept from one run to the next.
pub fn cache() -> Option<PathBuf> {
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"));
    let folder = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home)?.join("sandgate");
    // Without it each run compiles.
    std::fs::create_dir_all(&folder).ok().map(|()| folder)
}

/// Replaces the file in one step, so that a watching gateway never sees half.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if path.is_dir() {
        bail!("writing {}: expected a file, found a folder", path.display());
    }
    // The gateway that reads it may be another user's.
    let write = || std::fs::create_dir_all(folder).and_then(|()| files::replace_for_others(path, bytes));
    write().with_context(|| format!("writing {}", path.display()))
}

/// Installs the target with rustup when it is missing.
fn install_target() -> Result<()> {
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output().context("starting rustc")?;
    let sysroot = String::from_utf8_lossy(&sysroot.stdout).trim().to_owned();
    if Path::new(&sysroot).join("lib/rustlib").join(TARGET).exists() {
        return Ok(());
    }
    tell!("installing the Rust target {TARGET}");
    let status = Command::new("rustup")
        .args(["target", "add", TARGET])
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("starting rustup; install the target {TARGET} by hand"))?;
    if !status.success() {
        bail!("rustup could not install the target {TARGET}");
    }
    Ok(())
}

/// Asks cargo for the packages of a folder.
fn metadata(folder: &Path, how: &[&str]) -> Result<Metadata> {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(folder).args(["metadata", "--format-version", "1"]).args(how);
    let output = cargo.stderr(Stdio::inherit()).output().context("starting cargo; install Rust with rustup")?;
    if !output.status.success() {
        bail!("cargo cannot read {}", folder.join("Cargo.toml").display());
    }
    serde_json::from_slice(&output.stdout).context("reading what cargo metadata says")
}

/// What cargo says about a driver's package.
struct Package {
    artifact: PathBuf,
    profile: &'static str,
    /// The folder of its workspace.
    root: PathBuf,
    /// Where cargo builds.
    target: PathBuf,
    provenance: Provenance,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<cargo::Package>,
    /// Who needs whom; none where only this workspace was asked for.
    resolve: Option<cargo::Resolve>,
    target_directory: PathBuf,
    workspace_root: PathBuf,
}

impl Package {
    /// Asks cargo.
    fn find(folder: &Path, target: Option<&Path>) -> Result<Package> {
        // All of them are more than a build needs, and may not be here.
        let all = metadata(folder, &["--filter-platform", TARGET]);
        let metadata = all.or_else(|_| metadata(folder, &["--no-deps"]))?;
        let own = folder.join("Cargo.toml").canonicalize().context("expected a Cargo.toml in the driver's folder")?;
        let package = metadata.packages.iter().find(|package| package.manifest_path == own);
        let package = package.with_context(|| format!("expected a package in {}", own.display()))?;
        // A workspace may have a profile of its own for drivers.
        let root = std::fs::read_to_string(metadata.workspace_root.join("Cargo.toml")).unwrap_or_default();
        let profile = if root.contains("[profile.driver]") { "driver" } else { "release" };
        let file = format!("{}.wasm", package.name.replace('-', "_"));
        let resolve = metadata.resolve.as_ref();
        let dependencies = resolve.map(|resolve| cargo::dependencies(package, &metadata.packages, resolve));
        if dependencies.is_none() {
            tell!("the component will not list what it is made of: cargo cannot tell without a network");
        }
        let target = target.unwrap_or(&metadata.target_directory);
        Ok(Package {
            artifact: target.join(TARGET).join(profile).join(file),
            profile,
            provenance: Provenance { licence: package.license.clone(), dependencies },
            root: metadata.workspace_root,
            target: target.to_owned(),
        })
    }

    /// Lets cargo keep this machine's folders out of the component: it is the same
    /// wherever it is built, and tells nobody where that was. Flags for the target in
    /// cargo's configuration come before these, and have to do so themselves.
    fn leave_out_places(&self, cargo: &mut Command) {
        let home = std::env::var_os("CARGO_HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
        let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
        let own = [(self.root.clone(), "/driver"), (self.target.clone(), "/target")];
        let mut places: Vec<(PathBuf, &str)> = home.map(|home| (home, "/cargo")).into_iter().chain(own).collect();
        // The last one that fits counts: one may be within another.
        places.sort_by_key(|(place, _)| place.as_os_str().len());
        let flags = places.iter().map(|(place, name)| format!("--remap-path-prefix={}={name}", place.display()));
        let flags: Vec<String> = flags.collect();
        let given = |name: &str| std::env::var(name).ok().filter(|given| !given.trim().is_empty());
        let given = given("CARGO_ENCODED_RUSTFLAGS")
            .or_else(|| given("RUSTFLAGS").map(|flags| flags.split_whitespace().collect::<Vec<_>>().join(BETWEEN)));
        match given {
            Some(given) => cargo.env("CARGO_ENCODED_RUSTFLAGS", [&[given], flags.as_slice()].concat().join(BETWEEN)),
            // Cargo adds them to those that are configured there.
            None => cargo.arg("--config").arg(format!("build.rustflags={}", serde_json::Value::from(flags))),
        };
    }
}

/// The folder of the workspace that a driver belongs to; its own when it is alone.
pub fn workspace(folder: &Path) -> Result<PathBuf> {
    let root = Package::find(folder, None)?.root;
    root.canonicalize().with_context(|| format!("finding {}", root.display()))
}

/// Whether a folder holds a driver of files that are copied to be built, and not a package of cargo.
pub fn is_of_files(folder: &Path) -> bool {
    python::is_driver(folder) || javascript::is_driver(folder)
}

/// Builds the driver of a folder, whichever language it is in.
pub fn of_folder(folder: &Path) -> Result<Built> {
    match folder {
        folder if python::is_driver(folder) => python::build(folder),
        folder if javascript::is_driver(folder) => javascript::build(folder),
        folder => rust(folder),
    }
}

/// Builds a driver into its own folder, as `sandgate build FOLDER` does, and gives its name.
pub fn in_place(folder: &Path) -> Result<String> {
    let built = match is_blueprint(folder) {
        true => {
            let blueprint = blueprint(folder)?;
            // Whoever waits here may be a runtime itself.
            let build = || tokio::runtime::Runtime::new().context("starting")?.block_on(scripts(&blueprint));
            let built = std::thread::scope(|scope| scope.spawn(build).join());
            built.map_err(|_| anyhow!("a bug in the gateway: the build of the scripts panicked"))??
        }
        false => of_folder(folder)?,
    };
    write(&folder.join(format!("{}.wasm", built.name)), &built.bytes)?;
    Ok(built.name)
}
