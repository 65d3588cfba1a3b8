//! `sandgate blueprint`: what is uploaded to the cloud.

use std::path::Path;

use anyhow::{Context, Result};

use super::Outcome;
use crate::say::say;
use sandgate::config::Config;
use sandgate::manifest::{clean_blueprint, parent_blueprint};
use sandgate::sandbox::{inspect, read_component};

/// Writes the blueprint of a driver, or of the gateway with its children; as
/// YAML, which clouds take, or as JSON.
pub(super) async fn run(file: &Path, parent: bool, output: Option<&Path>, json: bool) -> Result<Outcome> {
    let mut text = if parent { of_gateway(file).await? } else { clean_blueprint(&manifest(file).await?) };
    if json {
        let blueprint: serde_json::Value = serde_saphyr::from_str(&text).context("reading the blueprint again")?;
        text = format!("{blueprint:#}\n");
    }
    match output {
        Some(path) => std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?,
        None => say!("{}", text.trim_end()),
    }
    Ok(Outcome::Done)
}

async fn of_gateway(file: &Path) -> Result<String> {
    let config = Config::load(file)?;
    let mut children = Vec::new();
    for device in config.devices.values() {
        let manifest = manifest(&config.driver_path(device)).await?;
        let kind = device.kind.clone().unwrap_or_else(|| manifest.child_type());
        if !children.iter().any(|(known, _)| *known == kind) {
            children.push((kind, manifest));
        }
    }
    let children: Vec<_> = children.iter().map(|(kind, manifest)| (kind.clone(), manifest)).collect();
    Ok(parent_blueprint(&children))
}

async fn manifest(path: &Path) -> Result<sandgate::manifest::Manifest> {
    let read = async { inspect(&read_component(path).await?)?.manifest() };
    read.await.with_context(|| format!("reading driver {}", path.display()))
}
