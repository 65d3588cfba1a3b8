//! Persistent key-values of devices, in one database file.
//!
//! Each device sees its own keys only. A write is on disk when it returns.
//! All functions block; callers on async threads use a blocking thread.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use crate::message::DeviceId;

const VALUES: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("values");

/// The database of all devices.
#[derive(Clone)]
pub struct Storage(Arc<Database>);

/// One device's part of it.
#[derive(Clone)]
pub struct DeviceStorage {
    database: Arc<Database>,
    device: DeviceId,
}

impl Storage {
    /// Opens or creates the file.
    pub fn open(path: &Path) -> Result<Storage> {
        let open = || -> Result<Database> {
            let database = Database::create(path)?;
            let transaction = database.begin_write()?;
            transaction.open_table(VALUES)?;
            transaction.commit()?;
            Ok(database)
        };
        let database = open().or_else(|error| {
            // A damaged file must not keep the site dark; it is kept for a look.
            let aside = path.with_extension("damaged");
            tracing::error!("storage {}: {error:#}; set aside as {}", path.display(), aside.display());
            std::fs::rename(path, &aside)?;
            open()
        });
        Ok(Storage(Arc::new(database.with_context(|| format!("opening storage {}", path.display()))?)))
    }

    /// The part of one device.
    pub fn device(&self, device: &DeviceId) -> DeviceStorage {
        DeviceStorage { database: Arc::clone(&self.0), device: device.clone() }
    }
}

impl DeviceStorage {
    /// Reads a value.
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let table = self.database.begin_read()?.open_table(VALUES)?;
        Ok(table.get((self.device.as_str(), key))?.map(|value| value.value().to_vec()))
    }

    /// Writes a value, unless all keys and values of the device would become
    /// larger than `limit` bytes; then it returns false.
    pub fn set(&self, key: &str, value: &[u8], limit: usize) -> Result<bool> {
        let transaction = self.database.begin_write()?;
        {
            let mut table = transaction.open_table(VALUES)?;
            let mut size = key.len() + value.len();
            for entry in table.range(self.range())? {
                let (name, old) = entry?;
                if name.value().1 != key {
                    size += name.value().1.len() + old.value().len();
                }
            }
            if size > limit {
                return Ok(false);
            }
            table.insert((self.device.as_str(), key), value)?;
        }
        transaction.commit()?;
        Ok(true)
    }

    /// Removes a key.
    pub fn delete(&self, key: &str) -> Result<()> {
        let transaction = self.database.begin_write()?;
        transaction.open_table(VALUES)?.remove((self.device.as_str(), key))?;
        transaction.commit()?;
        Ok(())
    }

    /// Lists all keys, sorted.
    pub fn keys(&self) -> Result<Vec<String>> {
        let table = self.database.begin_read()?.open_table(VALUES)?;
        let mut keys = Vec::new();
        for entry in table.range(self.range())? {
            keys.push(entry?.0.value().1.to_owned());
        }
        Ok(keys)
    }

    /// All keys of this device: ids have no byte as high as the end's.
    fn range(&self) -> std::ops::RangeInclusive<(&str, &str)> {
        (self.device.as_str(), "")..=(self.device.as_str(), "\u{10FFFF}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_see_their_own_keys_and_values_survive_reopening() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("storage.redb");
        let (a, ab) = (DeviceId::new("a"), DeviceId::new("ab"));
        {
            let storage = Storage::open(&path).unwrap();
            assert!(storage.device(&a).set("x", b"1", 100).unwrap());
            assert!(storage.device(&ab).set("y", b"2", 100).unwrap());
            assert!(storage.device(&a).set("z", b"3", 100).unwrap());
            storage.device(&a).delete("z").unwrap();
        }
        let storage = Storage::open(&path).unwrap();
        assert_eq!(storage.device(&a).keys().unwrap(), ["x"]);
        assert_eq!(storage.device(&ab).get("y").unwrap(), Some(b"2".to_vec()));
        assert_eq!(storage.device(&a).get("y").unwrap(), None);
    }

    #[test]
    fn a_damaged_file_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("storage.redb");
        std::fs::write(&path, "nonsense".repeat(1000)).unwrap();
        let storage = Storage::open(&path).unwrap().device(&DeviceId::new("a"));
        assert!(storage.set("x", b"1", 100).unwrap());
        assert!(folder.path().join("storage.damaged").exists());
    }

    #[test]
    fn a_device_cannot_store_more_than_its_limit_but_can_replace() {
        let folder = tempfile::tempdir().unwrap();
        let storage = Storage::open(&folder.path().join("storage.redb")).unwrap().device(&DeviceId::new("a"));
        assert!(storage.set("x", &[0; 8], 10).unwrap());
        assert!(!storage.set("y", &[0; 8], 10).unwrap());
        assert!(storage.set("x", &[0; 9], 10).unwrap());
        assert_eq!(storage.keys().unwrap(), ["x"]);
    }
}
