//! `sandgate build`: from a driver's source to one `.wasm` file.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde_json::json;

use super::Outcome;
use crate::say::say;
use crate::toolchain;

/// What to build.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The driver's folder, with a Cargo.toml and a manifest.yml.
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
pub(super) fn run(options: &Options, json: bool) -> Result<Outcome> {
    let built = match &options.component {
        Some(component) => toolchain::embed(&options.path, component)?,
        None => toolchain::rust(&options.path)?,
    };
    let output = options.output.clone().unwrap_or_else(|| options.path.join(format!("{}.wasm", built.name)));
    toolchain::write(&output, &built.bytes)?;
    let size = built.bytes.len();
    if json {
        say!("{}", json!({"name": built.name, "version": built.version, "file": output, "size": size}));
    } else {
        say!("built {} {}: {} ({} KiB)", built.name, built.version, output.display(), size / 1024);
    }
    Ok(Outcome::Done)
}
