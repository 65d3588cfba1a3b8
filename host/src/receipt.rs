//! What a swap did: a line for the log, kept on disk, shown by `sandgate swaps`.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::message::Time;
use crate::sandbox::Driver;

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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
                )
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

/// The newest receipts of all devices, on disk.
pub struct Receipts {
    path: Option<PathBuf>,
    newest: Mutex<Newest>,
}

#[derive(Default)]
struct Newest {
    receipts: VecDeque<Receipt>,
    /// How many the file holds.
    lines: usize,
}

const KEPT: usize = 500;

impl Receipts {
    /// Receipts without a file.
    pub fn in_memory() -> Receipts {
        Receipts { path: None, newest: Mutex::default() }
    }

    /// Opens the file; lines that are no receipts are skipped.
    pub fn open(path: &Path) -> Result<Receipts> {
        let text = match std::fs::read(path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).with_context(|| format!("reading receipts {}", path.display())),
        };
        let all: Vec<Receipt> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let lines = all.len();
        let receipts: VecDeque<Receipt> = all.into_iter().skip(lines.saturating_sub(KEPT)).collect();
        let newest = Newest { receipts, lines };
        Ok(Receipts { path: Some(path.to_owned()), newest: Mutex::new(newest) })
    }

    /// Keeps a receipt.
    pub fn keep(&self, receipt: &Receipt) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        newest.receipts.push_back(receipt.clone());
        if newest.receipts.len() > KEPT {
            newest.receipts.pop_front();
        }
        newest.lines += 1;
        let Some(path) = &self.path else { return };
        let mut write = || -> std::io::Result<()> {
            if newest.lines <= 2 * KEPT {
                return File::options().append(true).create(true).open(path)?.write_all(line(receipt).as_bytes());
            }
            let mut fresh = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?;
            newest.receipts.iter().try_for_each(|receipt| fresh.write_all(line(receipt).as_bytes()))?;
            fresh.persist(path)?;
            newest.lines = newest.receipts.len();
            Ok(())
        };
        if let Err(error) = write() {
            tracing::error!("writing receipt to {}: {error}", path.display());
        }
    }

    /// All kept receipts, oldest first.
    pub fn all(&self) -> Vec<Receipt> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner).receipts.iter().cloned().collect()
    }
}

fn line(receipt: &Receipt) -> String {
    // Texts and numbers always serialize.
    let mut text = serde_json::to_string(receipt).unwrap_or_default();
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receipts_survive_reopening_and_read_as_sentences() {
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
        };
        Receipts::open(&path).unwrap().keep(&receipt);
        assert_eq!(Receipts::open(&path).unwrap().all(), std::slice::from_ref(&receipt));
        let receipts = Receipts::open(&path).unwrap();
        (0..3 * KEPT).for_each(|_| receipts.keep(&receipt));
        assert!(std::fs::read_to_string(&path).unwrap().lines().count() <= 2 * KEPT);
        assert_eq!(Receipts::open(&path).unwrap().all().len(), KEPT);
        assert_eq!(
            receipt.to_string(),
            "swap to meter 1.1.0 (abababababab), asked by file, rejected: trapped in start: unreachable; \
             meter 1.0.0 (abababababab) goes on, pause 340 µs"
        );
    }
}
