//! What the supervisor keeps over restarts: which driver each device ran, and
//! as which child type it was announced.
//!
//! A device that was swapped or rolled back by hand starts with that driver
//! again, as long as its configured file is the one from then.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

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

    /// Notes which driver a device runs.
    pub(super) fn running(&mut self, device: &str, driver: &Driver) {
        self.update(device, |entry| {
            entry.running = Some(driver.digest.to_string());
            entry.kind = Some(driver.manifest.driver.name.replace('-', "_"));
        });
    }

    fn update(&mut self, device: &str, change: impl FnOnce(&mut Entry)) {
        let entry = self.devices.entry(device.to_owned()).or_default();
        let before = entry.clone();
        change(entry);
        self.changed |= *entry != before;
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
