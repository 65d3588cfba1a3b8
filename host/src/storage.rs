//! Persistent key-values of devices: a ledger for each, so that a damaged file
//! costs one device at most, and of that what is damaged.
//!
//! Each device sees its own keys only. A write is on the disk when it returns.
//! All functions block; callers on async threads use a blocking thread.

mod older;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value as Json, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::ledger::{Ledger, Safety};
use crate::message::DeviceId;

/// The key-values of all devices, in one folder.
#[derive(Clone)]
pub struct Storage {
    folder: Arc<PathBuf>,
    /// Those that a device holds.
    open: Arc<Mutex<HashMap<DeviceId, Weak<Mutex<Values>>>>>,
    turns: Arc<Semaphore>,
}

/// One device's part of it.
#[derive(Clone)]
pub struct DeviceStorage {
    values: Arc<Mutex<Values>>,
    turns: Arc<Semaphore>,
}

/// Devices that read or write at a time.
const TURNS: usize = 4;

/// What one device has stored; read from the disk at the first use.
struct Values {
    path: PathBuf,
    file: Option<Ledger>,
    values: BTreeMap<String, Vec<u8>>,
    /// Bytes of all keys and values.
    size: usize,
}

impl Storage {
    /// Storage in `storage` of a state folder, with what an older version has
    /// left there.
    pub fn open(state: &Path) -> Storage {
        let storage = Storage {
            folder: Arc::new(state.join("storage")),
            open: Arc::default(),
            turns: Arc::new(Semaphore::new(TURNS)),
        };
        older::take_over(state, &storage);
        storage
    }

    /// The part of one device.
    pub fn device(&self, device: &DeviceId) -> DeviceStorage {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(values) = open.get(device).and_then(Weak::upgrade) {
            return DeviceStorage { values, turns: Arc::clone(&self.turns) };
        }
        if open.len().is_power_of_two() {
            open.retain(|_, values| values.strong_count() > 0);
        }
        let path = self.folder.join(format!("{device}.jsonl"));
        let values = Values { path, file: None, values: BTreeMap::new(), size: 0 };
        let values = Arc::new(Mutex::new(values));
        open.insert(device.clone(), Arc::downgrade(&values));
        DeviceStorage { values, turns: Arc::clone(&self.turns) }
    }
}

impl DeviceStorage {
    /// Waits until few others use the disk.
    pub async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.turns).acquire_owned().await.ok()
    }

    /// Reads a value.
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        self.with(|values| Ok(values.values.get(key).cloned()))
    }

    /// Writes a value, unless all keys and values of the device would become
    /// larger than `limit` bytes; then it returns false.
    pub fn set(&self, key: &str, value: Vec<u8>, limit: usize) -> Result<bool> {
        self.with(|values| {
            let old = values.values.get(key).map_or(0, |old| key.len() + old.len());
            let fits = (values.size - old).saturating_add(key.len()).saturating_add(value.len()) <= limit;
            if fits {
                values.change(key, Some(value))?;
            }
            Ok(fits)
        })
    }

    /// Removes a key.
    pub fn delete(&self, key: &str) -> Result<()> {
        self.with(|values| if values.values.contains_key(key) { values.change(key, None) } else { Ok(()) })
    }

    /// Lists all keys, sorted.
    pub fn keys(&self) -> Result<Vec<String>> {
        self.with(|values| Ok(values.values.keys().cloned().collect()))
    }

    fn with<T>(&self, call: impl FnOnce(&mut Values) -> Result<T>) -> Result<T> {
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        values.load()?;
        call(&mut values)
    }
}

impl Values {
    /// Reads the file at the first use; the next one tries again when the machine
    /// was short of something.
    fn load(&mut self) -> io::Result<()> {
        if self.file.is_some() {
            return Ok(());
        }
        let mut values = BTreeMap::new();
        let mut file = Ledger::open(&self.path, "storage", |line| {
            let Some((key, value)) = entry(&line) else { return false };
            match value {
                Some(value) => drop(values.insert(key, value)),
                None => drop(values.remove(&key)),
            }
            true
        });
        if let Some(shortage) = file.shortage() {
            return Err(io::Error::new(shortage.kind(), format!("reading {}: {shortage}", self.path.display())));
        }
        // A driver may only read for a long time. Without a disk the next entry tries again.
        if !file.is_whole() && !values.is_empty() {
            let _ = file.rewrite(values.iter().map(|(key, value)| line(key, Some(value))));
            file.close();
        }
        self.size = values.iter().map(|(key, value)| key.len() + value.len()).sum();
        (self.values, self.file) = (values, Some(file));
        Ok(())
    }

    /// Sets or removes a value, on the disk first.
    fn change(&mut self, key: &str, value: Option<Vec<u8>>) -> Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let new = line(key, value.as_deref());
        let others = self.values.iter().filter(|(other, _)| *other != key);
        let all = || others.map(|(key, value)| line(key, Some(value))).chain(value.is_some().then(|| new.clone()));
        if let Some(folder) = self.path.parent().filter(|folder| !folder.exists()) {
            std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        }
        let written = file.record(std::slice::from_ref(&new), Safety::Durable, all);
        // Ten thousand devices may store something; few do so often.
        file.close();
        written.with_context(|| format!("writing {}", self.path.display()))?;
        let size = |value: &[u8]| key.len() + value.len();
        self.size += value.as_deref().map_or(0, size);
        let old = match value {
            Some(value) => self.values.insert(key.to_owned(), value),
            None => self.values.remove(key),
        };
        self.size -= old.as_deref().map_or(0, size);
        Ok(())
    }
}

/// A line of the file; without a value the key is removed.
fn line(key: &str, value: Option<&[u8]>) -> Json {
    json!({"key": key, "value": value.map(|value| BASE64.encode(value))})
}

fn entry(line: &Json) -> Option<(String, Option<Vec<u8>>)> {
    let key = line.get("key")?.as_str()?.to_owned();
    match line.get("value")? {
        Json::Null => Some((key, None)),
        value => Some((key, Some(BASE64.decode(value.as_str()?).ok()?))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_see_their_own_keys_and_values_survive_reopening() {
        let folder = tempfile::tempdir().unwrap();
        let (a, ab) = (DeviceId::new("a"), DeviceId::new("ab"));
        {
            let storage = Storage::open(folder.path());
            assert!(storage.device(&a).set("x", b"1".to_vec(), 100).unwrap());
            assert!(storage.device(&ab).set("y", b"2".to_vec(), 100).unwrap());
            assert!(storage.device(&a).set("z", b"3".to_vec(), 100).unwrap());
            storage.device(&a).delete("z").unwrap();
        }
        let storage = Storage::open(folder.path());
        assert_eq!(storage.device(&a).keys().unwrap(), ["x"]);
        assert_eq!(storage.device(&ab).get("y").unwrap(), Some(b"2".to_vec()));
        assert_eq!(storage.device(&a).get("y").unwrap(), None);
    }

    #[test]
    fn a_damaged_file_costs_what_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("storage/a.jsonl");
        let device = DeviceId::new("a");
        for key in ["x", "y"] {
            assert!(Storage::open(folder.path()).device(&device).set(key, vec![7], 100).unwrap());
        }
        let mut lines: Vec<String> = std::fs::read_to_string(&path).unwrap().lines().map(str::to_owned).collect();
        lines[1] = lines[1].replace("\"x\"", "\"w\"");
        std::fs::write(&path, lines.join("\n") + "\n").unwrap();
        // Also of a life that only reads, and dies.
        assert_eq!(Storage::open(folder.path()).device(&device).keys().unwrap(), ["y"]);
        let storage = Storage::open(folder.path()).device(&device);
        assert_eq!(storage.keys().unwrap(), ["y"]);
        assert!(storage.set("z", vec![1], 100).unwrap());
        assert_eq!(Storage::open(folder.path()).device(&device).keys().unwrap(), ["y", "z"]);
    }

    #[test]
    fn a_device_cannot_store_more_than_its_limit_whatever_its_keys_are_but_can_replace() {
        let folder = tempfile::tempdir().unwrap();
        let storage = Storage::open(folder.path()).device(&DeviceId::new("a"));
        assert!(storage.set("x", vec![0; 8], 10).unwrap());
        for key in ["y", "\u{10FFFF}\u{10FFFF}"] {
            assert!(!storage.set(key, vec![0; 8], 10).unwrap());
        }
        assert!(storage.set("x", vec![0; 9], 10).unwrap());
        assert_eq!(storage.keys().unwrap(), ["x"]);
        storage.delete("x").unwrap();
        assert!(storage.set("\u{10FFFF}", vec![0; 6], 10).unwrap());
    }

    #[test]
    fn a_disk_that_fails_is_told_and_works_again_when_it_does() {
        let folder = tempfile::tempdir().unwrap();
        let blocked = folder.path().join("storage");
        std::fs::write(&blocked, "").unwrap();
        let storage = Storage::open(folder.path()).device(&DeviceId::new("a"));
        assert!(storage.set("x", vec![1], 100).is_err());
        assert_eq!(storage.get("x").unwrap(), None);
        std::fs::remove_file(&blocked).unwrap();
        assert!(storage.set("x", vec![1], 100).unwrap());
    }
}
