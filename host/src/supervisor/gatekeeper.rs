//! Who may try a new version now: one at a time, and not every device of many.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::sandbox::Digest;

/// Devices on whose tapes the same two versions are compared, where a difference
/// is told only: the others would tell the same, and wait for each other.
const DEVICES: u32 = 3;
/// For how long that counts.
const PERIOD: Duration = Duration::from_secs(600);

/// See the module documentation. Clones are the same.
#[derive(Clone)]
pub(super) struct Gatekeeper {
    turns: Arc<Semaphore>,
    seen: Arc<Mutex<HashMap<(Digest, Digest), (u32, Instant)>>>,
}

impl Gatekeeper {
    pub(super) fn new() -> Gatekeeper {
        Gatekeeper { turns: Arc::new(Semaphore::new(1)), seen: Arc::default() }
    }

    /// Waits for a turn to compare two versions; none when they have been compared enough.
    pub(super) async fn turn(&self, versions: (Digest, Digest), is_strict: bool) -> Option<OwnedSemaphorePermit> {
        if !is_strict && !self.has_room(versions) {
            return None;
        }
        Arc::clone(&self.turns).acquire_owned().await.ok()
    }

    fn has_room(&self, versions: (Digest, Digest)) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|_, (_, since)| since.elapsed() < PERIOD);
        let (devices, _) = seen.entry(versions).or_insert_with(|| (0, Instant::now()));
        *devices += 1;
        *devices <= DEVICES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_same_versions_are_compared_on_a_few_devices_and_later_again() {
        let keeper = Gatekeeper::new();
        let (one, other) = (Digest::of(b"1"), Digest::of(b"2"));
        for _ in 0..DEVICES {
            assert!(keeper.turn((one, other), false).await.is_some());
        }
        assert!(keeper.turn((one, other), false).await.is_none());
        assert!(keeper.turn((other, one), false).await.is_some());
        assert!(keeper.turn((one, other), true).await.is_some());
        tokio::time::advance(PERIOD).await;
        assert!(keeper.turn((one, other), false).await.is_some());
    }
}
