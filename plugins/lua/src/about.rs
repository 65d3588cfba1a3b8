//! What `sandgate build` writes beside the scripts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Its name among the files.
pub const FILE: &str = "blueprint.json";

/// The generation of Enapter's API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Api {
    /// Of manifests `device/1.0`: numbers as errors, modules of hardware.
    V1,
    /// Of manifests `device/3.0`: texts as errors, objects for connections.
    V3,
}

/// What is known about a blueprint.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// The generation of the API.
    pub api: Api,
    /// The script that is run.
    pub main: String,
    /// The Modbus line of scripts that do not name one.
    pub line: String,
    /// Declared types of telemetry and properties that Lua does not tell apart.
    #[serde(default)]
    pub types: BTreeMap<String, Kind>,
    /// Parameters that have to be set, by groups of the configuration.
    #[serde(default)]
    pub required: BTreeMap<String, Vec<String>>,
}

/// A type that a table can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Several texts.
    Texts,
    /// Any JSON.
    Json,
}

impl About {
    /// Reads the file.
    pub fn read(file: Option<&[u8]>) -> Result<About, String> {
        let text = file.ok_or_else(|| format!("the driver has no {FILE}; build it with `sandgate build FOLDER`"))?;
        serde_json::from_slice(text).map_err(|error| format!("{FILE}: {error}"))
    }
}
