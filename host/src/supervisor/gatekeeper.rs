//! Who may try a new version now: one at a time, and not every device of many.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::gate::{Allowed, Grounds, Order, Problem, compare_in_child};
use crate::receipt::Comparison;
use crate::sandbox::Digest;

/// Devices on whose tapes the same two versions are compared, where a difference
/// is told only: the others would tell the same, and wait for each other.
const DEVICES: u32 = 3;
/// For how long that counts.
const PERIOD: Duration = Duration::from_secs(600);

/// The one that runs, and the one that shall.
type Versions = (Digest, Digest);

/// See the module documentation. Clones are the same.
#[derive(Clone)]
pub(super) struct Gatekeeper {
    /// This program, and the state folder with drivers and their code.
    program: PathBuf,
    state: PathBuf,
    turns: Arc<Semaphore>,
    seen: Arc<Mutex<HashMap<Versions, (u32, Instant)>>>,
}

impl Gatekeeper {
    pub(super) fn new(program: PathBuf, state: PathBuf) -> Gatekeeper {
        Gatekeeper { program, state, turns: Arc::new(Semaphore::new(1)), seen: Arc::default() }
    }

    /// Compares two versions; none when they have been compared enough.
    pub(super) async fn compare(
        &self,
        (old, new): Versions,
        is_strict: bool,
        tape: &[u8],
        grounds: &Grounds,
    ) -> Option<Result<Comparison, Problem>> {
        if !is_strict && !self.has_room((old, new)) {
            return None;
        }
        let _turn = self.turns.acquire().await.ok()?;
        let copy = |digest: Digest| self.state.join("drivers").join(format!("{digest}.wasm"));
        let cache = self.state.join("cache");
        let order = Order { old: copy(old), new: copy(new), cache, allowed: Allowed::from(grounds) };
        Some(compare_in_child(&self.program, &order, tape).await)
    }

    fn has_room(&self, versions: Versions) -> bool {
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
        let keeper = Gatekeeper::new(PathBuf::new(), PathBuf::new());
        let (one, other) = (Digest::of(b"1"), Digest::of(b"2"));
        for _ in 0..DEVICES {
            assert!(keeper.has_room((one, other)));
        }
        assert!(!keeper.has_room((one, other)) && keeper.has_room((other, one)));
        tokio::time::advance(PERIOD).await;
        assert!(keeper.has_room((one, other)));
    }
}
