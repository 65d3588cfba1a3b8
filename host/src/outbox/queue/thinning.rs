//! What becomes of telemetry when there is no room: the older half of what a
//! device has waiting gets thinner, again and again, so that a long outage leaves
//! a history of the whole of it, coarser the older it is, and its newer half whole.
//!
//! Which samples go is a matter of chance: of two kinds that a driver sends in
//! turn, every second one would be all of one kind.

use super::device::DeviceQueue;
use super::{Entries, Place, Queue};
use crate::message::DeviceId;
use crate::outbox::{Class, Sequence};

/// With fewer samples a device loses its oldest.
const FEWEST: usize = 64;
/// How often it is tried to find some that may go.
const TRIES: usize = 4;

/// How far a round through a device's telemetry is; it begins with the oldest,
/// and takes half of it away up to where its newer half began.
#[derive(Debug, Default)]
pub(super) struct Thinning {
    next: Sequence,
    until: Sequence,
}

impl DeviceQueue {
    /// The next samples of a round: those that are loaded, and those that are stored.
    fn next_to_thin(&mut self, entries: &Entries) -> (Vec<Sequence>, Vec<Sequence>) {
        let begins = self.thinning.next >= self.thinning.until;
        if begins {
            self.telemetry.retain(|sequence| entries.contains_key(sequence));
        }
        let stored = self.shelf.of(Class::Telemetry);
        let count = self.telemetry.len() + stored.len();
        if count < FEWEST {
            return Default::default();
        }
        let before = |sequence| {
            let loaded = self.telemetry.partition_point(|loaded| *loaded < sequence);
            (loaded, stored.partition_point(|entry| entry.sequence < sequence))
        };
        if begins {
            let last = self.telemetry.back().copied().max(stored.back().map(|entry| entry.sequence));
            let (mut low, mut high) = (0, last.unwrap_or_default());
            while low < high {
                let middle = low + (high - low) / 2;
                let (loaded, stored) = before(middle);
                if loaded + stored < count / 2 { low = middle + 1 } else { high = middle }
            }
            self.thinning = Thinning { next: 0, until: low };
        }
        let (loaded_from, stored_from) = before(self.thinning.next);
        let (loaded_to, stored_to) = before(self.thinning.until);
        // More at once where there are many: those behind them move up.
        let number = (count / 256).max(FEWEST / 2);
        let loaded = self.telemetry.range(loaded_from..loaded_to.max(loaded_from)).take(number).copied();
        let stored = stored.range(stored_from..stored_to.max(stored_from)).take(number).map(|entry| entry.sequence);
        let (mut loaded, mut stored): (Vec<_>, Vec<_>) = (loaded.collect(), stored.collect());
        let mut all = [&loaded[..], &stored].concat();
        all.sort_unstable();
        let last = all.get(number.min(all.len()).saturating_sub(1)).copied().unwrap_or(self.thinning.until);
        self.thinning.next = last + 1;
        loaded.retain(|sequence| *sequence <= last && fastrand::bool());
        stored.retain(|sequence| *sequence <= last && fastrand::bool());
        (loaded, stored)
    }
}

impl Queue {
    /// Takes some of a device's telemetry away; false when there is too little.
    pub(super) fn thin(&mut self, device: &DeviceId) -> bool {
        // Few are left at the end of a round, and chance may spare them.
        (0..TRIES).any(|_| self.thin_once(device))
    }

    fn thin_once(&mut self, device: &DeviceId) -> bool {
        let Some(queue) = self.devices.get_mut(device) else { return false };
        let (loaded, stored) = queue.next_to_thin(&self.entries);
        let before = self.stats.bytes;
        for sequence in loaded {
            if self.entries.get(&sequence).is_some_and(|entry| entry.place == Place::Unsent) {
                self.drop_loaded(sequence, |drops| drops.thinned += 1);
            }
        }
        for _ in 0..self.remove_all_stored(device, Class::Telemetry, &stored) {
            self.count_drop(device, |drops| drops.thinned += 1);
        }
        self.stats.bytes < before
    }
}
