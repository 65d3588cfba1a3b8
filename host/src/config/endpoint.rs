//! A device's address in a cloud, where the cloud needs more than the device's id.

use std::path::Path;

use anyhow::Result;
use serde::{Deserialize, Deserializer};

use super::Session;
use super::kaa::KaaEndpoint;
use crate::units::Source;

/// See the module documentation. Each cloud has keys of its own.
#[derive(Debug, Clone, PartialEq)]
pub enum Endpoint {
    /// In Kaa.
    Kaa(KaaEndpoint),
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        KaaEndpoint::deserialize(deserializer).map(Endpoint::Kaa)
    }
}

impl Endpoint {
    /// Whether the sessions of a cloud need one of each device.
    pub fn is_needed(session: &Session) -> bool {
        matches!(session, Session::Kaa(_))
    }

    /// What is wrong with it: the key and what was expected.
    pub(super) fn problem(&self) -> Option<(&'static str, &'static str)> {
        match self {
            Endpoint::Kaa(endpoint) => endpoint.problem(),
        }
    }

    /// The secret by which the cloud knows the device: no two devices have the same.
    pub(super) fn token(&self) -> &Source {
        match self {
            Endpoint::Kaa(endpoint) => &endpoint.token,
        }
    }

    /// Reads the secret from where it is kept.
    pub(super) fn read_token(&mut self, folder: &Path) -> Result<()> {
        match self {
            Endpoint::Kaa(endpoint) => endpoint.read_token(folder),
        }
    }

    /// Names of measurements for which something is set: the key, and the names.
    pub(super) fn measurements(&self) -> (&'static str, impl Iterator<Item = &String>) {
        match self {
            Endpoint::Kaa(endpoint) => ("plain", endpoint.plain.keys()),
        }
    }
}
