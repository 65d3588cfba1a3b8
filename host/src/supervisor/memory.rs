//! What the supervisor keeps over restarts: which driver each device ran, as
//! which child type it was announced, and what clouds offered to it.
//!
//! A device that was swapped or rolled back by hand starts with that driver
//! again, as long as its configured file is the one from then.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::files;
use crate::ledger::{Ledger, Safety};
use crate::message::{Offer, OfferKind, SessionName};
use crate::receipt::DriverName;
use crate::sandbox::Driver;
use crate::scribe::Scribe;

/// A file of an older version is not larger.
const MAX_OLDER: u64 = 64 << 20;

/// See the module documentation.
pub(super) struct Memory {
    devices: BTreeMap<Arc<str>, Arc<Entry>>,
    changed: BTreeSet<Arc<str>>,
    file: Arc<Mutex<Written>>,
    /// The last write failed: the disk has less than it should.
    is_behind: Arc<AtomicBool>,
    scribe: Scribe,
}

/// What is on the disk.
struct Written {
    ledger: Ledger,
    devices: BTreeMap<Arc<str>, Arc<Entry>>,
}

/// A device in the file.
#[derive(Serialize, Deserialize)]
struct Line {
    device: Arc<str>,
    #[serde(flatten)]
    entry: Arc<Entry>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Entry {
    /// The digest of the driver that ran last.
    running: Option<String>,
    /// The digest of the configured file at that time.
    #[serde(rename = "base")]
    configured: Option<String>,
    /// The child type, from the driver's name.
    kind: Option<String>,
    /// A driver that is to take over, or has and is still watched.
    #[serde(skip_serializing_if = "Option::is_none")]
    trial: Option<DriverName>,
    /// The digest of one whose trial ended with the gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    cut_short: Option<String>,
    /// The digest of the driver before the one that runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<String>,
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
    /// Reads `devices.jsonl` of a state folder, or what an older version has
    /// left; the scribe writes to it.
    pub(super) fn open(state: &Path, scribe: Scribe) -> Memory {
        let mut devices = BTreeMap::new();
        let ledger = Ledger::open(&state.join("devices.jsonl"), "devices", |line| {
            let Ok(Line { device, entry }) = serde_json::from_value(line) else { return false };
            devices.insert(device, entry);
            true
        });
        let older = if devices.is_empty() { older(&state.join("running.json")) } else { BTreeMap::new() };
        let changed = older.keys().cloned().collect();
        devices.extend(older);
        let file = Arc::new(Mutex::new(Written { ledger, devices: devices.clone() }));
        Memory { devices, changed, file, is_behind: Arc::default(), scribe }
    }

    /// The digest of the configured file beside which the last driver ran.
    pub(super) fn configured_digest(&self, device: &str) -> Option<String> {
        self.devices.get(device)?.configured.clone()
    }

    /// The digest of the last driver that ran.
    pub(super) fn last_good(&self, device: &str) -> Option<String> {
        self.devices.get(device)?.running.clone()
    }

    /// A driver whose trial was not over when this was written.
    pub(super) fn trial(&self, device: &str) -> Option<&DriverName> {
        self.devices.get(device)?.trial.as_ref()
    }

    /// Notes that a driver is on trial, or that none is any more.
    pub(super) fn set_trial(&mut self, device: &str, trial: Option<DriverName>) {
        self.update(device, |entry| entry.trial = trial);
    }

    /// Notes that a driver's trial ended with the gateway: it may have been the cause.
    pub(super) fn set_cut_short(&mut self, device: &str, digest: &str) {
        self.update(device, |entry| entry.cut_short = Some(digest.to_owned()));
    }

    /// The digest of a driver whose trial ended with the gateway.
    pub(super) fn cut_short(&self, device: &str) -> Option<String> {
        self.devices.get(device)?.cut_short.clone()
    }

    /// The child type of a device, if its driver was ever loaded.
    pub(super) fn kind(&self, device: &str) -> Option<String> {
        self.devices.get(device)?.kind.clone()
    }

    /// The digests of drivers whose copies may still be asked for.
    pub(super) fn needed(&self) -> BTreeSet<String> {
        let digests =
            |entry: &Arc<Entry>| [entry.running.clone(), entry.before.clone(), trial_of(entry)].into_iter().flatten();
        self.devices.values().flat_map(digests).collect()
    }

    /// Notes the digest of a device's configured file.
    pub(super) fn set_configured_digest(&mut self, device: &str, digest: &str) {
        self.update(device, |entry| entry.configured = Some(digest.to_owned()));
    }

    /// Notes which driver a device runs; whether it is another one than before.
    pub(super) fn running(&mut self, device: &str, driver: &Driver) -> bool {
        self.update(device, |entry| {
            let digest = driver.digest.to_string();
            entry.cut_short = entry.cut_short.take().filter(|cut_short| *cut_short != digest);
            if let Some(before) = entry.running.replace(digest.clone()).filter(|before| *before != digest) {
                entry.before = Some(before);
            }
            entry.kind = Some(driver.manifest.child_type());
        })
    }

    /// The ids of a session's configurations that a device has taken.
    pub(super) fn applied(&self, device: &str, session: &SessionName) -> BTreeMap<OfferKind, String> {
        let applied = self.devices.get(device).and_then(|entry| entry.applied.get(session.as_str()));
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
    pub(super) fn apply(&mut self, device: &str, session: &SessionName, offer: &Offer, document: Json) {
        let OfferKind::Configuration(name) = &offer.kind else { return };
        let (name, applied) = (name.clone().unwrap_or_default(), Applied { id: offer.id.clone(), document });
        self.update(device, |entry| {
            entry.applied.entry(session.to_string()).or_default().insert(name, applied);
        });
    }

    /// Forgets what clouds have configured of a device.
    pub(super) fn forget_configurations(&mut self, device: &str) {
        self.update(device, |entry| entry.applied.clear());
    }

    /// The software of a session that a device did not take.
    pub(super) fn refused(&self, device: &str, session: &SessionName) -> Option<&Refused> {
        self.devices.get(device)?.refused.get(session.as_str())
    }

    /// Notes software that a device did not take.
    pub(super) fn refuse(&mut self, device: &str, session: &SessionName, refused: Refused) {
        self.update(device, |entry| {
            entry.refused.insert(session.to_string(), refused);
        });
    }

    fn update(&mut self, device: &str, change: impl FnOnce(&mut Entry)) -> bool {
        let before = self.devices.get(device).map(|entry| Entry::clone(entry)).unwrap_or_default();
        let mut entry = before.clone();
        change(&mut entry);
        if entry == before {
            return false;
        }
        let device = Arc::from(device);
        self.devices.insert(Arc::clone(&device), Arc::new(entry));
        self.changed.insert(device);
        true
    }

    /// Lets what has changed be written.
    pub(super) fn save(&mut self) {
        let changed = std::mem::take(&mut self.changed);
        if changed.is_empty() && !self.is_behind.load(Ordering::Relaxed) {
            return;
        }
        let changed =
            changed.into_iter().filter_map(|device| Some((device.clone(), self.devices.get(&device)?.clone())));
        let (changed, file) = (changed.collect::<Vec<_>>(), Arc::clone(&self.file));
        let is_behind = Arc::clone(&self.is_behind);
        self.scribe.write(move || {
            let was_behind = is_behind.load(Ordering::Relaxed);
            let result = lock(&file).write(changed, was_behind);
            is_behind.store(result.is_err(), Ordering::Relaxed);
            match result {
                Err(error) if !was_behind => tracing::error!("writing what the devices run: {error}; trying again"),
                _ => {}
            }
        });
    }
}

impl Written {
    /// Writes what has changed, or everything when earlier changes are missing.
    fn write(&mut self, changed: Vec<(Arc<str>, Arc<Entry>)>, is_behind: bool) -> std::io::Result<()> {
        self.devices.extend(changed.iter().cloned());
        let devices = &self.devices;
        let all = || devices.iter().map(|(device, entry)| Line { device: device.clone(), entry: entry.clone() });
        if is_behind {
            return self.ledger.rewrite(all());
        }
        let changed: Vec<_> = changed.into_iter().map(|(device, entry)| Line { device, entry }).collect();
        self.ledger.record(&changed, Safety::Durable, all)
    }
}

fn trial_of(entry: &Entry) -> Option<String> {
    entry.trial.as_ref().map(|trial| trial.digest.clone())
}

/// What an older version has written, as one document.
fn older(path: &Path) -> BTreeMap<Arc<str>, Arc<Entry>> {
    let Ok(Some(bytes)) = files::read(path, MAX_OLDER) else { return BTreeMap::new() };
    serde_json::from_slice(&bytes).unwrap_or_else(|error| {
        tracing::warn!("ignoring {}: {error}", path.display());
        BTreeMap::new()
    })
}

fn lock(file: &Mutex<Written>) -> MutexGuard<'_, Written> {
    file.lock().unwrap_or_else(PoisonError::into_inner)
}

fn configuration(name: &str) -> OfferKind {
    OfferKind::Configuration(Some(name.to_owned()).filter(|name| !name.is_empty()))
}
