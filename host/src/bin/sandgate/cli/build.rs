//! `sandgate build`: from a driver's source, a register map, or a blueprint of scripts, to one `.wasm` file.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde_json::json;

use super::Outcome;
use crate::say::{say, tell};
use crate::toolchain;
use sandgate::blueprint::is_blueprint;

/// What to build.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The driver's folder, with a manifest.yml and a Cargo.toml, a driver.py, a driver.js or a driver.ts,
    /// or with a register map in its manifest; or a blueprint of Enapter with Lua scripts, as a folder or a zip.
    #[arg(default_value = ".")]
    path: PathBuf,
    /// Where to write the component; default: NAME.wasm in the driver's folder.
    #[arg(long, short)]
    output: Option<PathBuf>,
    /// Embed the manifest in this component, made by another toolchain,
    /// instead of building one.
    #[arg(long)]
    component: Option<PathBuf>,
}

/// Builds, embeds the manifest, checks and writes the component.
pub(super) async fn run(options: &Options, json: bool) -> Result<Outcome> {
    let path = &options.path;
    let built = match &options.component {
        Some(component) => toolchain::embed(path, component)?,
        None if path.is_file() || is_blueprint(path) => {
            let blueprint = toolchain::blueprint(path)?;
            blueprint.changes.iter().for_each(|change| tell!("changed in the manifest: {change}"));
            blueprint.missing.iter().for_each(|missing| tell!("missing: {missing}"));
            toolchain::scripts(&blueprint).await?
        }
        None => toolchain::of_folder(path)?,
    };
    let folder = if path.is_file() { path.parent().unwrap_or(path) } else { path };
    let output = options.output.clone().unwrap_or_else(|| folder.join(format!("{}.wasm", built.name)));
    toolchain::write(&output, &built.bytes)?;
    let size = built.bytes.len();
    if json {
        say!("{}", json!({"name": built.name, "version": built.version, "file": output, "size": size}));
    } else {
        say!("built {} {}: {} ({} KiB)", built.name, built.version, output.display(), size / 1024);
    }
    Ok(Outcome::Done)
}
