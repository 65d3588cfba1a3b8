//! From a driver's source to a component: cargo and its target, the embedded
//! manifest, the check that a gateway takes it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::say::tell;
use sandgate::files;
use sandgate::manifest::Manifest;
use sandgate::sandbox::{Compiler, Sandbox, embed_manifest, inspect};

/// The target of components in Rust.
const TARGET: &str = "wasm32-wasip2";

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
    let manifest = read_manifest(folder)?;
    install_target()?;
    let package = package(folder)?;
    let mut cargo = Command::new("cargo");
    cargo.current_dir(folder).args(["build", "--target", TARGET, "--profile", package.profile]);
    let status = cargo.stdin(Stdio::null()).status().context("starting cargo; install Rust with rustup")?;
    if !status.success() {
        bail!("cargo could not build {}", folder.display());
    }
    let bytes = std::fs::read(&package.artifact).with_context(|| format!("reading {}", package.artifact.display()))?;
    finish(bytes, &manifest, &package.artifact)
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
    Manifest::parse(&text).map_err(|error| anyhow::anyhow!("{}:{error}", path.display()))
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

struct Package {
    artifact: PathBuf,
    profile: &'static str,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<MetadataPackage>,
    target_directory: PathBuf,
    workspace_root: PathBuf,
}

#[derive(Deserialize)]
struct MetadataPackage {
    name: String,
    manifest_path: PathBuf,
}

/// Asks cargo where the component will be.
fn package(folder: &Path) -> Result<Package> {
    let output = Command::new("cargo")
        .current_dir(folder)
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .stderr(Stdio::inherit())
        .output()
        .context("starting cargo; install Rust with rustup")?;
    if !output.status.success() {
        bail!("cargo cannot read {}", folder.join("Cargo.toml").display());
    }
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("reading the output of cargo metadata")?;
    let own = folder.join("Cargo.toml").canonicalize().context("expected a Cargo.toml in the driver's folder")?;
    let package = metadata.packages.iter().find(|package| package.manifest_path == own);
    let package = package.with_context(|| format!("expected a package in {}", own.display()))?;
    // A workspace may have a profile of its own for drivers.
    let root = std::fs::read_to_string(metadata.workspace_root.join("Cargo.toml")).unwrap_or_default();
    let profile = if root.contains("[profile.driver]") { "driver" } else { "release" };
    let file = format!("{}.wasm", package.name.replace('-', "_"));
    Ok(Package { artifact: metadata.target_directory.join(TARGET).join(profile).join(file), profile })
}

/// Builds a driver into its own folder, as `sandgate build FOLDER` does, and gives its name.
pub fn in_place(folder: &Path) -> Result<String> {
    let built = rust(folder)?;
    write(&folder.join(format!("{}.wasm", built.name)), &built.bytes)?;
    Ok(built.name)
}
