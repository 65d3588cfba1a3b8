//! The configuration of a driver, as the file gives it.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value as Json};

/// Buckets of parameters. Kept as JSON text: ten thousand devices hold theirs all
/// the time and look at it rarely.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Parameters(Option<Arc<str>>);

impl Parameters {
    /// The buckets.
    pub fn buckets(&self) -> Map<String, Json> {
        let Some(text) = &self.0 else { return Map::new() };
        // Always what `deserialize` has written.
        serde_json::from_str(text).unwrap_or_default()
    }
}

impl<'de> Deserialize<'de> for Parameters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let table = toml::Table::deserialize(deserializer)?;
        let text = serde_json::to_string(&table).map_err(serde::de::Error::custom)?;
        Ok(Parameters(Some(text).filter(|_| !table.is_empty()).map(Arc::from)))
    }
}

/// It may hold secrets.
impl fmt::Debug for Parameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Parameters")
    }
}
