//! Writes blueprints for upload to the cloud.
//!
//! The text of the author is kept line by line, so comments and order survive.

use std::fmt::Write as _;

use super::Manifest;

/// The manifest without its `driver:` section.
///
/// Cuts the section out of the author's own text; what remains is their YAML.
pub fn clean_blueprint(manifest: &Manifest) -> String {
    let mut clean = String::new();
    let mut inside = false;
    for line in manifest.text.lines() {
        let is_top_level = line.starts_with(|c: char| !c.is_whitespace() && c != '#');
        if is_top_level {
            inside = line.split(':').next().map(|key| key.trim_matches(['"', '\''])) == Some("driver");
        }
        if !inside {
            clean.push_str(line);
            clean.push('\n');
        }
    }
    let clean = clean.trim_end();
    let runtime = if manifest.blueprint.runtime.is_none() { "\nruntime:\n  type: embedded" } else { "" };
    format!("{clean}{runtime}\n")
}

/// The gateway's own blueprint, with a `children` section that names the
/// blueprint of each driver: pairs of child type and manifest.
///
/// The schema of `children` is not public; the keys are those of the MQTT API
/// page. Check the file against your cloud before an upload.
pub fn parent_blueprint(children: &[(String, &Manifest)]) -> String {
    let mut text = GATEWAY_BLUEPRINT.to_owned();
    if !children.is_empty() {
        text.push_str("\nchildren:\n");
    }
    for (kind, manifest) in children {
        let name = serde_json::Value::from(manifest.blueprint.display_name.as_str());
        let _ = write!(text, "  {kind}:\n    display_name: {name}\n    manifest: {}.yml\n", manifest.driver.name);
    }
    text
}

/// What the gateway sends and takes as a device; `gateway.rs` keeps to it.
pub const GATEWAY_BLUEPRINT: &str = include_str!("gateway.yml");
