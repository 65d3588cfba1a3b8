//! What a device is to be configured with, before a manifest has seen it.

use serde_json::{Map, Value as Json};

use crate::manifest::{Manifest, WrongConfiguration};

/// See the module documentation.
#[derive(Debug, Clone, Default)]
pub struct Configuration {
    /// What the operator has written.
    pub own: Map<String, Json>,
    /// The same, with what clouds have laid over it.
    pub whole: Map<String, Json>,
}

impl Configuration {
    /// One that no cloud has changed.
    pub fn own(own: Map<String, Json>) -> Self {
        Configuration { whole: own.clone(), own }
    }

    /// The JSON that a driver with this manifest gets. What clouds have given
    /// to another driver may not fit: it is left out, with a reason.
    ///
    /// The error names what is wrong with the operator's own part.
    pub fn check(&self, manifest: &Manifest) -> Result<(String, Option<WrongConfiguration>), WrongConfiguration> {
        let text = |checked| Json::Object(checked).to_string();
        match manifest.check_configuration(self.whole.clone()) {
            Ok(checked) => Ok((text(checked), None)),
            Err(problem) => manifest.check_configuration(self.own.clone()).map(|own| (text(own), Some(problem))),
        }
    }
}
