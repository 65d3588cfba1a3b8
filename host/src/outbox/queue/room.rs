//! The room of a queue: what is dropped when there is none, or when it is too
//! old, and for how long the room lasts.

use std::collections::HashMap;
use std::time::Duration;

use super::Queue;
use super::device::{DeviceQueue, Oldest};
use crate::clock::Moment;
use crate::message::DeviceId;
use crate::outbox::stored::Stored;
use crate::outbox::{Class, Drops, OwnBounds, Sequence};

/// One of so many messages of a device may be a log line, when there is no room.
const LOG_SHARE: usize = 16;

impl Queue {
    pub(super) fn drop_loaded(&mut self, sequence: Sequence, count: impl Fn(&mut Drops)) {
        if let Some(entry) = self.remove(sequence) {
            self.count_drop(&entry.message.device, count);
        }
    }

    pub(super) fn drop_stored(
        &mut self,
        device: &DeviceId,
        class: Class,
        sequence: Sequence,
        count: impl Fn(&mut Drops),
    ) {
        if self.remove_stored(device, class, sequence).is_some() {
            self.count_drop(device, count);
        }
    }

    pub(super) fn drop_oldest(&mut self, device: &DeviceId, oldest: Oldest, count: impl Fn(&mut Drops)) {
        match oldest {
            Oldest::Loaded(sequence) => self.drop_loaded(sequence, count),
            Oldest::Stored(class, sequence) => self.drop_stored(device, class, sequence, count),
        }
    }

    pub(super) fn count_drop(&mut self, device: &DeviceId, count: impl Fn(&mut Drops)) {
        self.stats.dropped += 1;
        count(self.all_drops.entry(device.clone()).or_default());
        count(self.drops.entry(device.clone()).or_default());
    }

    /// How long the oldest message has been waiting since it was accepted.
    pub(in crate::outbox) fn oldest(&self, now: Moment) -> Option<Duration> {
        let loaded = self.entries.keys().min().and_then(|first| Some(self.entries.get(first)?.message.moment));
        let shelves = self.devices.values().flat_map(|queue| queue.shelf.firsts().map(Stored::accepted));
        shelves.chain(loaded).map(|moment| now.since(moment)).max()
    }

    /// For how many hours so many bytes are enough when nothing goes.
    #[allow(clippy::cast_precision_loss)] // for people
    pub(in crate::outbox) fn hours_left(&self, room: usize, now: Moment) -> Option<f64> {
        let room = room.saturating_sub(self.stats.bytes) as f64;
        let hours = room / self.pace.rate(now).filter(|rate| *rate > 0.0)? / 3600.0;
        Some((hours * 10.0).round() / 10.0)
    }

    /// Bounds of single devices, instead of those that were given before.
    pub(in crate::outbox) fn bound_devices(&mut self, bounds: HashMap<DeviceId, OwnBounds>, now: Moment) {
        self.own_bounds = bounds;
        let devices: Vec<DeviceId> = self.own_bounds.keys().cloned().collect();
        for device in devices {
            self.drop_old(&device, now);
            self.drop_for_own_room(&device);
        }
    }

    /// Drops what is too old of one device: the one that just sent something.
    pub(super) fn drop_old(&mut self, device: &DeviceId, now: Moment) {
        let oldest: [fn(&DeviceQueue) -> Option<Oldest>; 2] = [DeviceQueue::oldest_log, DeviceQueue::oldest_sample];
        for oldest in oldest {
            while let Some(oldest) = self.devices.get(device).and_then(oldest)
                && self.is_old(device, oldest, now)
            {
                self.drop_oldest(device, oldest, |drops| drops.for_age += 1);
            }
        }
    }

    /// Drops what is too old of all devices.
    pub(in crate::outbox) fn drop_all_old(&mut self, now: Moment) {
        let devices: Vec<DeviceId> = self.devices.keys().cloned().collect();
        devices.iter().for_each(|device| self.drop_old(device, now));
    }

    pub(super) fn is_old(&self, device: &DeviceId, oldest: Oldest, now: Moment) -> bool {
        let accepted = match oldest {
            Oldest::Loaded(sequence) => self.entries.get(&sequence).map(|entry| entry.message.moment),
            Oldest::Stored(class, _) => {
                self.devices.get(device).and_then(|queue| queue.shelf.of(class).front()).map(Stored::accepted)
            }
        };
        let age = self.own_bounds.get(device).and_then(|own| own.age).unwrap_or(self.bounds.age);
        accepted.is_some_and(|accepted| now.since(accepted) > age)
    }

    /// Makes room at the expense of the device that holds the most, so that one
    /// that floods the outbox does not push the others out. A little more than
    /// needed, because it is looked for among all devices.
    pub(in crate::outbox) fn drop_for_room(&mut self) {
        if self.stats.bytes > self.bounds.bytes {
            let target = self.bounds.bytes - self.bounds.bytes / 4096;
            while self.stats.bytes > target {
                let Some(device) = self.largest(|queue| queue.bytes) else { break };
                let spare = self.devices.get(&device).map_or(0, |queue| queue.bytes / 2);
                while self.stats.bytes > target
                    && self.devices.get(&device).is_some_and(|queue| queue.bytes >= spare)
                    && self.give_way(&device)
                {}
            }
        }
        // What the disk does not take is in memory only, which has bounds of its own.
        while self.unwritten_bytes > self.bounds.memory {
            let excess = self.unwritten_bytes - (self.bounds.memory - self.bounds.memory / 64);
            let Some(device) = self.largest(|queue| queue.unwritten_bytes) else { break };
            let unwritten = self.unwritten_of(&device, excess);
            unwritten.into_iter().for_each(|sequence| self.drop_loaded(sequence, |drops| drops.for_room += 1));
        }
    }

    /// The same for a device that has bounds of its own.
    pub(super) fn drop_for_own_room(&mut self, device: &DeviceId) {
        let Some(bytes) = self.own_bounds.get(device).and_then(|own| own.bytes) else { return };
        while self.devices.get(device).is_some_and(|queue| queue.bytes > bytes) && self.give_way(device) {}
    }

    /// Drops something of a device: log lines while there are many, telemetry, and
    /// then what is kept and answers. False when it has nothing.
    fn give_way(&mut self, device: &DeviceId) -> bool {
        let Some(queue) = self.devices.get(device) else { return false };
        let many_logs = queue.oldest_log().filter(|_| queue.log_lines() > queue.count / LOG_SHARE);
        if many_logs.is_none() && self.thin(device) {
            return true;
        }
        let Some(queue) = self.devices.get(device) else { return false };
        let Some(oldest) = many_logs.or_else(|| queue.oldest()).or_else(|| self.first_of(device)) else { return false };
        self.drop_oldest(device, oldest, |drops| drops.for_room += 1);
        true
    }

    pub(super) fn largest(&self, size: impl Fn(&DeviceQueue) -> usize) -> Option<DeviceId> {
        let largest = self.devices.iter().max_by_key(|(_, queue)| size(queue))?;
        (size(largest.1) > 0).then(|| largest.0.clone())
    }

    /// The first entry of a device, if all that it has is on its way.
    pub(super) fn first_of(&self, device: &DeviceId) -> Option<Oldest> {
        let own = self.entries.iter().filter(|(_, entry)| entry.message.device == *device);
        own.map(|(sequence, _)| *sequence).min().map(Oldest::Loaded)
    }

    /// Entries of a device that are not in the log, about as many bytes as asked:
    /// telemetry before the rest, the oldest first.
    pub(super) fn unwritten_of(&self, device: &DeviceId, bytes: usize) -> Vec<Sequence> {
        let own = self.entries.iter().filter(|(_, entry)| entry.message.device == *device && entry.spot.is_none());
        let mut own: Vec<_> = own.map(|(sequence, entry)| (entry.message.class, *sequence, entry.cost())).collect();
        own.sort_unstable();
        let mut sum = 0;
        let enough = own.into_iter().take_while(|(_, _, cost)| {
            let before = sum;
            sum += cost;
            before < bytes
        });
        enough.map(|(_, sequence, _)| sequence).collect()
    }
}
