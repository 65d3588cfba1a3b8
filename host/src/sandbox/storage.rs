//! The import `storage`.

use tokio::time::Instant;

use super::contract::sandgate::driver::storage::StorageError;
use super::limits::RateLimiter;
use super::state::State;
use crate::config::Rate;
use crate::storage::DeviceStorage;

const MAX_KEY: usize = 256;
/// Writes that change the disk; those that come faster wait.
const WRITES: Rate = Rate { per_second: 5.0, burst: 50.0 };

/// The part of the state that stored values need.
pub(super) struct Stored {
    storage: Option<DeviceStorage>,
    /// Bytes of keys and values.
    limit: usize,
    writes: RateLimiter,
}

impl Stored {
    pub(super) fn new(storage: Option<DeviceStorage>, limit: usize, now: Instant) -> Self {
        Stored { storage, limit, writes: RateLimiter::new(WRITES, now) }
    }
}

impl State {
    /// Does something with the device's values on a thread that may block.
    async fn stored<T: Send + 'static>(
        &mut self,
        call: impl FnOnce(&DeviceStorage) -> anyhow::Result<T> + Send + 'static,
    ) -> Result<T, StorageError> {
        let Some(storage) = self.stored.storage.clone() else {
            return Err(StorageError::Failed("this gateway has no storage".into()));
        };
        // A few at a time: the disk is everybody's.
        let _turn = storage.turn().await;
        let work = tokio::task::spawn_blocking(move || call(&storage)).await;
        let failed = |error: String| StorageError::Failed(error);
        work.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(format!("{error:#}")))
    }

    /// The same for what changes the disk, at a bounded rate.
    async fn change<T: Send + 'static>(
        &mut self,
        call: impl FnOnce(&DeviceStorage) -> anyhow::Result<T> + Send + 'static,
    ) -> Result<T, StorageError> {
        while let Err(wait) = self.stored.writes.take(Instant::now()) {
            tokio::time::sleep(wait).await;
        }
        self.stored(call).await
    }
}

fn checked(key: String) -> Result<String, StorageError> {
    if (1..=MAX_KEY).contains(&key.len()) { Ok(key) } else { Err(StorageError::InvalidKey) }
}

impl State {
    pub(super) async fn stored_value(&mut self, key: String) -> Result<Option<Vec<u8>>, StorageError> {
        let key = checked(key)?;
        self.stored(move |storage| storage.get(&key)).await
    }

    pub(super) async fn store_value(&mut self, key: String, value: Vec<u8>) -> Result<(), StorageError> {
        let (key, limit) = (checked(key)?, self.stored.limit);
        let too_large = StorageError::TooLarge(u32::try_from(limit).unwrap_or(u32::MAX));
        if value.len() > limit {
            return Err(too_large);
        }
        let fits = self.change(move |storage| storage.set(&key, value, limit)).await?;
        if fits { Ok(()) } else { Err(too_large) }
    }

    pub(super) async fn delete_value(&mut self, key: String) -> Result<(), StorageError> {
        let key = checked(key)?;
        self.change(move |storage| storage.delete(&key)).await
    }

    pub(super) async fn stored_keys(&mut self) -> Result<Vec<String>, StorageError> {
        self.stored(DeviceStorage::keys).await
    }
}
