//! The import `storage`.

use super::contract::sandgate::driver::storage::{self, StorageError};
use super::state::State;
use crate::storage::DeviceStorage;

const MAX_KEY: usize = 256;

impl State {
    /// Runs a database call on a thread that may block.
    async fn store<T: Send + 'static>(
        &mut self,
        key: &str,
        call: impl FnOnce(&DeviceStorage) -> anyhow::Result<T> + Send + 'static,
    ) -> Result<T, StorageError> {
        if key.is_empty() || key.len() > MAX_KEY {
            return Err(StorageError::InvalidKey);
        }
        let Some(storage) = self.storage.clone() else {
            return Err(StorageError::Failed("this gateway has no storage".into()));
        };
        let result = tokio::task::spawn_blocking(move || call(&storage)).await;
        match result {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(StorageError::Failed(format!("{error:#}"))),
            Err(error) => Err(StorageError::Failed(error.to_string())),
        }
    }
}

impl storage::Host for State {
    async fn get(&mut self, key: String) -> Result<Option<Vec<u8>>, StorageError> {
        self.store(&key.clone(), move |storage| storage.get(&key)).await
    }

    async fn set(&mut self, key: String, value: Vec<u8>) -> Result<(), StorageError> {
        let limit = self.storage_limit;
        let fits = self.store(&key.clone(), move |storage| storage.set(&key, &value, limit)).await?;
        if fits { Ok(()) } else { Err(StorageError::TooLarge(u32::try_from(limit).unwrap_or(u32::MAX))) }
    }

    async fn delete(&mut self, key: String) -> Result<(), StorageError> {
        self.store(&key.clone(), move |storage| storage.delete(&key)).await
    }

    async fn keys(&mut self) -> Result<Vec<String>, StorageError> {
        self.store("keys", DeviceStorage::keys).await
    }
}
