//! Which devices have news, for the one who looks after them.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::message::DeviceId;

/// Ids of devices whose status has changed. Bounded by the number of devices:
/// whoever has news twice is in it once. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct News(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    devices: Mutex<BTreeSet<DeviceId>>,
    told: Notify,
}

impl News {
    /// A device's status has changed.
    pub fn tell(&self, device: &DeviceId) {
        let is_new = self.0.devices.lock().unwrap_or_else(PoisonError::into_inner).insert(device.clone());
        if is_new {
            self.0.told.notify_one();
        }
    }

    /// Waits for news and takes all.
    pub async fn wait(&self) -> BTreeSet<DeviceId> {
        loop {
            self.0.told.notified().await;
            let devices = std::mem::take(&mut *self.0.devices.lock().unwrap_or_else(PoisonError::into_inner));
            if !devices.is_empty() {
                return devices;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn news_are_taken_once_and_together() {
        let news = News::default();
        for id in ["a", "b", "a"] {
            news.tell(&DeviceId::new(id));
        }
        let taken = news.wait().await;
        assert_eq!(taken.iter().map(DeviceId::as_str).collect::<Vec<_>>(), ["a", "b"]);
        let waiting = tokio::spawn({
            let news = news.clone();
            async move { news.wait().await }
        });
        tokio::task::yield_now().await;
        news.tell(&DeviceId::new("a"));
        assert_eq!(waiting.await.unwrap().len(), 1);
    }
}
