//! What a swap did: a line for the log, kept on disk, shown by `sandgate swaps`.

mod comparison;

use std::collections::VecDeque;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

pub use comparison::{Comparison, Distance, Gated};

use crate::ledger::{Ledger, Safety};
use crate::message::{Time, now};
use crate::sandbox::Driver;
use crate::scribe::Scribe;

/// A driver as a receipt names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverName {
    /// The manifest's name.
    pub name: String,
    /// The manifest's version.
    pub version: String,
    /// The SHA-256 of the component, in hexadecimal.
    pub digest: String,
}

impl DriverName {
    /// The name of a driver.
    pub fn of(driver: &Driver) -> Self {
        DriverName {
            name: driver.manifest.driver.name.clone(),
            version: driver.manifest.driver.version.clone(),
            digest: driver.digest.to_string(),
        }
    }
}

impl fmt::Display for DriverName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digest: String = self.digest.chars().take(12).collect();
        write!(f, "{} {} ({digest})", self.name, self.version)
    }
}

/// How a swap ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", content = "reason", rename_all = "snake_case")]
pub enum Outcome {
    /// The new driver runs.
    Accepted,
    /// The old driver goes on; why.
    Rejected(String),
    /// The new driver ran and was taken back; why.
    RolledBack(String),
}

/// One swap.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    /// When it ended, milliseconds since the epoch.
    pub time: Time,
    /// The device.
    pub device: String,
    /// Who asked: file, command line, cloud, health check.
    pub asked_by: String,
    /// What ran before.
    pub old: DriverName,
    /// What should run; none when the file is no driver.
    pub new: Option<DriverName>,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// How long the compiler took, in the background; 0 from the cache.
    pub compile_ms: u64,
    /// How long the device was held between its two drivers.
    pub pause_us: u64,
    /// Commands and timers that came due in that time, and were handled after it.
    pub held: u64,
    /// Of those, lost ones. Always 0: they wait in the device's inbox.
    pub dropped: u64,
    /// Whether the new driver took over the old one's state.
    pub migrated: bool,
    /// How the new driver did on the device's tape before, if it was tried there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<Gated>,
}

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let new = self.new.as_ref().map_or("an unusable file".to_owned(), ToString::to_string);
        let (pause, held, dropped, by) = (self.pause_us, self.held, self.dropped, &self.asked_by);
        match &self.outcome {
            Outcome::Accepted => {
                let state = if self.migrated { "state kept" } else { "started fresh" };
                write!(
                    f,
                    "swapped {} for {new}, asked by {by}: compiled in {} ms, pause {pause} µs, held {held}, dropped {dropped}, {state}",
                    self.old, self.compile_ms
                )?;
                self.gate.as_ref().map_or(Ok(()), |gate| write!(f, "; gate: {gate}"))
            }
            Outcome::Rejected(reason) => {
                write!(f, "swap to {new}, asked by {by}, rejected: {reason}; {} goes on, pause {pause} µs", self.old)
            }
            Outcome::RolledBack(reason) => {
                write!(
                    f,
                    "rolled back {} to {new}, asked by {by}: {reason}; pause {pause} µs, held {held}, dropped {dropped}",
                    self.old
                )
            }
        }
    }
}

impl Receipt {
    /// That of a roll-back from one driver to the one before.
    pub fn roll_back(device: &str, asked_by: &str, from: DriverName, to: DriverName, reason: &str) -> Receipt {
        Receipt {
            time: now(),
            device: device.to_owned(),
            asked_by: asked_by.to_owned(),
            old: from,
            new: Some(to),
            outcome: Outcome::RolledBack(reason.to_owned()),
            compile_ms: 0,
            pause_us: 0,
            held: 0,
            dropped: 0,
            migrated: true,
            gate: None,
        }
    }
}

/// The newest receipts of all devices, on disk.
#[derive(Clone)]
pub struct Receipts {
    newest: Arc<Mutex<VecDeque<Receipt>>>,
    file: Option<(Arc<Mutex<Ledger>>, Scribe)>,
}

const KEPT: usize = 500;

impl Receipts {
    /// Receipts without a file.
    pub fn in_memory() -> Receipts {
        Receipts { newest: Arc::default(), file: None }
    }

    /// Opens the file; the scribe writes to it.
    pub fn open(path: &Path, scribe: Scribe) -> Receipts {
        let mut newest = VecDeque::new();
        let ledger = Ledger::open(path, "swaps", |line| match serde_json::from_value(line) {
            Ok(receipt) => {
                push(&mut newest, receipt);
                true
            }
            Err(_) => false,
        });
        Receipts { newest: Arc::new(Mutex::new(newest)), file: Some((Arc::new(Mutex::new(ledger)), scribe)) }
    }

    /// Keeps a receipt.
    pub fn keep(&self, receipt: &Receipt) {
        push(&mut lock(&self.newest), receipt.clone());
        let Some((ledger, scribe)) = &self.file else { return };
        let (ledger, newest, receipt) = (Arc::clone(ledger), Arc::clone(&self.newest), receipt.clone());
        scribe.write(move || {
            let all = || lock(&newest).clone().into_iter();
            if let Err(error) = lock(&ledger).record(&[receipt], Safety::Accepted, all) {
                tracing::error!("writing a receipt: {error}");
            }
        });
    }

    /// All kept receipts, oldest first.
    pub fn all(&self) -> Vec<Receipt> {
        lock(&self.newest).iter().cloned().collect()
    }
}

fn push(newest: &mut VecDeque<Receipt>, receipt: Receipt) {
    newest.push_back(receipt);
    if newest.len() > KEPT {
        newest.pop_front();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn receipts_survive_reopening_and_read_as_sentences() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("swaps.jsonl");
        let name =
            |version: &str| DriverName { name: "meter".into(), version: version.into(), digest: "ab".repeat(32) };
        let receipt = Receipt {
            time: 1,
            device: "m1".into(),
            asked_by: "file".into(),
            old: name("1.0.0"),
            new: Some(name("1.1.0")),
            outcome: Outcome::Rejected("trapped in start: unreachable".into()),
            compile_ms: 12,
            pause_us: 340,
            held: 2,
            dropped: 0,
            migrated: false,
            gate: None,
        };
        let scribe = Scribe::start().unwrap();
        let open = || Receipts::open(&path, scribe.clone());
        open().keep(&receipt);
        scribe.flush().await;
        assert_eq!(open().all(), std::slice::from_ref(&receipt));
        let receipts = open();
        (0..10 * KEPT).for_each(|_| receipts.keep(&receipt));
        scribe.flush().await;
        assert!(path.metadata().unwrap().len() < 2 << 20);
        assert_eq!(open().all().len(), KEPT);
        assert_eq!(
            receipt.to_string(),
            "swap to meter 1.1.0 (abababababab), asked by file, rejected: trapped in start: unreachable; \
             meter 1.0.0 (abababababab) goes on, pause 340 µs"
        );
    }
}
