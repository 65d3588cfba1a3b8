//! What the supervisor keeps over restarts: which driver each device ran, as
//! which child type it was announced, and what clouds offered to it.
//!
//! A device that was swapped or rolled back by hand starts with that driver
//! again, as long as its configured file is the one from then.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::message::{Offer, OfferKind};
use crate::sandbox::Driver;

/// See the module documentation.
pub(super) struct Memory {
    path: PathBuf,
    devices: BTreeMap<String, Entry>,
    changed: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Entry {
    /// The digest of the driver that ran last.
    running: Option<String>,
    /// The digest of the configured file at that time.
    base: Option<String>,
    /// The child type, from the driver's name.
    kind: Option<String>,
    /// Configurations of clouds that the device has taken, by session and name;
    /// the default one has the empty name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    applied: BTreeMap<String, BTreeMap<String, Applied>>,
    /// Software of clouds that was refused or rolled back, by session.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    refused: BTreeMap<String, Refused>,
}

/// A configuration of a cloud.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Applied {
    id: String,
    document: Json,
}

/// Software that was not taken.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Refused {
    /// Its version.
    pub version: String,
    /// How it was described: the same version may be offered mended.
    pub specification: Json,
    /// Why.
    pub reason: String,
}

impl Memory {
    /// Reads the file; a missing or broken one means that nothing is known.
    pub(super) fn open(path: &Path) -> Memory {
        let devices = match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!("ignoring {}: {error}", path.display());
                BTreeMap::new()
            }),
            Err(_) => BTreeMap::new(),
        };
        Memory { path: path.to_owned(), devices, changed: false }
    }

    /// The digest of the configured file beside which the last driver ran.
    pub(super) fn base_of(&self, device: &str) -> Option<String> {
        self.devices.get(device)?.base.clone()
    }

    /// The digest of the last driver that ran.
    pub(super) fn last_good(&self, device: &str) -> Option<String> {
        self.devices.get(device)?.running.clone()
    }

    /// The child type of a device, if its driver was ever loaded.
    pub(super) fn kind(&self, device: &str) -> Option<String> {
        self.devices.get(device)?.kind.clone()
    }

    /// Whether a copy of a driver may still be asked for.
    pub(super) fn needs(&self, digest: &str) -> bool {
        self.devices.values().any(|entry| entry.running.as_deref() == Some(digest))
    }

    /// Notes the digest of a device's configured file.
    pub(super) fn base(&mut self, device: &str, digest: &str) {
        self.update(device, |entry| entry.base = Some(digest.to_owned()));
    }

    /// Notes which driver a device runs; whether it is another one than before.
    pub(super) fn running(&mut self, device: &str, driver: &Driver) -> bool {
        self.update(device, |entry| {
            entry.running = Some(driver.digest.to_string());
            entry.kind = Some(driver.manifest.driver.name.replace('-', "_"));
        })
    }

    /// The ids of a session's configurations that a device has taken.
    pub(super) fn applied(&self, device: &str, session: &str) -> BTreeMap<OfferKind, String> {
        let applied = self.devices.get(device).and_then(|entry| entry.applied.get(session));
        applied.into_iter().flatten().map(|(name, applied)| (configuration(name), applied.id.clone())).collect()
    }

    /// All configurations of clouds that a device has taken: session, name,
    /// document.
    pub(super) fn documents(&self, device: &str) -> impl Iterator<Item = (&String, OfferKind, &Json)> {
        let applied = self.devices.get(device).into_iter().flat_map(|entry| &entry.applied);
        applied.flat_map(|(session, all)| {
            all.iter().map(move |(name, applied)| (session, configuration(name), &applied.document))
        })
    }

    /// Notes a configuration that a device has taken.
    pub(super) fn apply(&mut self, device: &str, session: &str, offer: &Offer, document: Json) {
        let OfferKind::Configuration(name) = &offer.kind else { return };
        let (name, applied) = (name.clone().unwrap_or_default(), Applied { id: offer.id.clone(), document });
        self.update(device, |entry| {
            entry.applied.entry(session.to_owned()).or_default().insert(name, applied);
        });
    }

    /// Forgets what clouds have configured of a device.
    pub(super) fn forget_configurations(&mut self, device: &str) {
        self.update(device, |entry| entry.applied.clear());
    }

    /// The software of a session that a device did not take.
    pub(super) fn refused(&self, device: &str, session: &str) -> Option<&Refused> {
        self.devices.get(device)?.refused.get(session)
    }

    /// Notes software that a device did not take.
    pub(super) fn refuse(&mut self, device: &str, session: &str, refused: Refused) {
        self.update(device, |entry| {
            entry.refused.insert(session.to_owned(), refused);
        });
    }

    fn update(&mut self, device: &str, change: impl FnOnce(&mut Entry)) -> bool {
        let entry = self.devices.entry(device.to_owned()).or_default();
        let before = entry.clone();
        change(entry);
        let changed = *entry != before;
        self.changed |= changed;
        changed
    }

    /// Writes the file if something changed.
    pub(super) fn save(&mut self) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let write = || -> anyhow::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(self.path.parent().unwrap_or(Path::new(".")))?;
            file.write_all(&serde_json::to_vec_pretty(&self.devices)?)?;
            file.as_file().sync_all()?;
            file.persist(&self.path)?;
            Ok(())
        };
        if let Err(error) = write() {
            tracing::error!("writing {}: {error:#}", self.path.display());
        }
    }
}

fn configuration(name: &str) -> OfferKind {
    OfferKind::Configuration(Some(name.to_owned()).filter(|name| !name.is_empty()))
}
