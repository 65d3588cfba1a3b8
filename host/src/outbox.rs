//! The queue between devices and one session: bounded, fair, in order for each
//! device, released only on proof of delivery.
//!
//! Devices append, one session takes and acknowledges. It never blocks: when
//! it is full, the device that holds the most loses its oldest telemetry or log
//! lines first, and that is counted.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::message::{DeviceId, Publication, Time};

/// What may happen to a message when there is no room or no hurry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Measurements and logs: the oldest are dropped when there is no room.
    Stream,
    /// Results and properties: dropped only when nothing else is left.
    Keep,
}

/// The number of an entry; rises with every append.
pub type Sequence = u64;

/// Bounds.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Bytes of topics and payloads, with a little for each entry.
    pub bytes: usize,
    /// The age at which an entry of class `Stream` is worth nothing.
    pub age: Duration,
}

/// Counts since the start, and what waits now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Appended.
    pub appended: u64,
    /// Delivered, as far as the protocol can prove it.
    pub delivered: u64,
    /// Dropped for lack of room or for age.
    pub dropped: u64,
    /// Waiting, sent ones without proof included.
    pub waiting: usize,
    /// Their size in bytes.
    pub bytes: usize,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Outbox {
    queue: Mutex<Queue>,
    appended: Notify,
    bounds: Bounds,
}

#[derive(Debug, Default)]
struct Queue {
    entries: Entries,
    /// What each device has here; devices with nothing have no share.
    shares: HashMap<DeviceId, Share>,
    /// Devices with unsent entries, in turn.
    turns: VecDeque<DeviceId>,
    next: Sequence,
    stats: Stats,
}

/// Entries by number. Every message is looked up some times, so the numbers
/// are spread by one multiplication instead of a hash that withstands attacks:
/// nobody outside chooses them.
type Entries = HashMap<Sequence, Entry, BuildHasherDefault<Spread>>;

#[derive(Debug, Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        // The odd number next to 2^64 divided by the golden ratio.
        self.0 = (self.0 ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

/// One device's part. Both lists are in order and may hold entries that are
/// gone, but never at their front.
#[derive(Debug, Default)]
struct Share {
    unsent: VecDeque<Sequence>,
    streams: VecDeque<Sequence>,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    device: DeviceId,
    class: Class,
    time: Time,
    sent: bool,
    publication: Publication,
}

/// What an entry costs beside its texts.
const OVERHEAD: usize = 96;

impl Outbox {
    /// An empty outbox.
    pub fn new(bounds: Bounds) -> Self {
        Outbox { queue: Mutex::default(), appended: Notify::new(), bounds }
    }

    /// Takes a message. `time` is now.
    pub fn append(&self, device: &DeviceId, class: Class, time: Time, publication: Publication) {
        let mut queue = self.lock();
        queue.append(Entry { device: device.clone(), class, time, sent: false, publication });
        queue.drop_old(device, time, self.bounds.age);
        queue.drop_for_room(self.bounds.bytes);
        drop(queue);
        self.appended.notify_one();
    }

    /// Gives the next unsent message and marks it as sent: devices in turn,
    /// each in its order.
    pub fn next(&self) -> Option<(Sequence, Publication)> {
        self.lock().next()
    }

    /// Forgets a message that was delivered.
    pub fn acknowledge(&self, sequence: Sequence) {
        let mut queue = self.lock();
        if queue.remove(sequence).is_some() {
            queue.stats.delivered += 1;
        }
    }

    /// Makes all sent messages unsent: their connection is gone.
    pub fn rewind(&self) {
        self.lock().rewind();
        self.appended.notify_one();
    }

    /// Waits until something was appended since the last call.
    pub async fn changed(&self) {
        self.appended.notified().await;
    }

    /// Counts since the start.
    pub fn stats(&self) -> Stats {
        self.lock().stats
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn cost(&self) -> usize {
        OVERHEAD + self.publication.topic.len() + self.publication.payload.len()
    }
}

impl Queue {
    fn append(&mut self, entry: Entry) {
        let sequence = self.next;
        self.next += 1;
        self.stats.appended += 1;
        self.stats.waiting += 1;
        self.stats.bytes += entry.cost();
        let share = self.shares.entry(entry.device.clone()).or_default();
        share.bytes += entry.cost();
        if entry.class == Class::Stream {
            share.streams.push_back(sequence);
        }
        if share.unsent.is_empty() {
            self.turns.push_back(entry.device.clone());
        }
        share.unsent.push_back(sequence);
        self.entries.insert(sequence, entry);
    }

    fn next(&mut self) -> Option<(Sequence, Publication)> {
        while let Some(device) = self.turns.pop_front() {
            // A device whose entries were all dropped has no share any more.
            let Some(share) = self.shares.get_mut(&device) else { continue };
            let Some(sequence) = share.unsent.pop_front() else { continue };
            trim(&mut share.unsent, &self.entries);
            if !share.unsent.is_empty() {
                self.turns.push_back(device);
            }
            if let Some(entry) = self.entries.get_mut(&sequence) {
                entry.sent = true;
                return Some((sequence, entry.publication.clone()));
            }
        }
        None
    }

    fn remove(&mut self, sequence: Sequence) -> Option<Entry> {
        let entry = self.entries.remove(&sequence)?;
        self.stats.waiting -= 1;
        self.stats.bytes -= entry.cost();
        if let Some(share) = self.shares.get_mut(&entry.device) {
            share.bytes -= entry.cost();
            trim(&mut share.unsent, &self.entries);
            trim(&mut share.streams, &self.entries);
            if share.bytes == 0 {
                self.shares.remove(&entry.device);
            }
        }
        Some(entry)
    }

    fn drop_entry(&mut self, sequence: Sequence) {
        if self.remove(sequence).is_some() {
            self.stats.dropped += 1;
        }
    }

    /// Drops what is too old of one device: the one that just sent something.
    fn drop_old(&mut self, device: &DeviceId, now: Time, age: Duration) {
        let age = Time::try_from(age.as_millis()).unwrap_or(Time::MAX);
        while let Some(first) = self.shares.get(device).and_then(|share| share.streams.front()).copied() {
            match self.entries.get(&first) {
                Some(entry) if now.saturating_sub(entry.time) > age => self.drop_entry(first),
                _ => break,
            }
        }
    }

    /// Makes room at the expense of the device that holds the most, so that one
    /// that floods the outbox does not push the others out.
    fn drop_for_room(&mut self, bytes: usize) {
        while self.stats.bytes > bytes {
            let largest = self.shares.values().max_by_key(|share| share.bytes);
            let oldest = largest.and_then(|share| share.streams.front().or(share.unsent.front()).copied());
            let oldest = oldest.or_else(|| self.entries.keys().min().copied());
            let Some(oldest) = oldest else { break };
            self.drop_entry(oldest);
        }
    }

    fn rewind(&mut self) {
        self.turns.clear();
        for share in self.shares.values_mut() {
            share.unsent.clear();
        }
        let mut all: Vec<_> = self.entries.iter_mut().collect();
        all.sort_unstable_by_key(|(sequence, _)| **sequence);
        for (sequence, entry) in all {
            entry.sent = false;
            let share = self.shares.entry(entry.device.clone()).or_default();
            if share.unsent.is_empty() {
                self.turns.push_back(entry.device.clone());
            }
            share.unsent.push_back(*sequence);
        }
    }
}

/// Takes entries that are gone off the front.
fn trim(list: &mut VecDeque<Sequence>, entries: &Entries) {
    while list.front().is_some_and(|first| !entries.contains_key(first)) {
        list.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outbox(bytes: usize) -> Outbox {
        Outbox::new(Bounds { bytes, age: Duration::from_secs(60) })
    }

    fn append(outbox: &Outbox, device: &str, class: Class, time: Time, text: &str) {
        let publication = Publication { topic: text.into(), payload: bytes::Bytes::new() };
        outbox.append(&DeviceId::new(device), class, time, publication);
    }

    fn drain(outbox: &Outbox) -> Vec<String> {
        std::iter::from_fn(|| outbox.next()).map(|(_, publication)| publication.topic).collect()
    }

    #[test]
    fn devices_take_turns_and_each_keeps_its_order() {
        let outbox = outbox(1 << 20);
        for text in ["a1", "a2", "a3"] {
            append(&outbox, "a", Class::Stream, 0, text);
        }
        append(&outbox, "b", Class::Stream, 0, "b1");
        assert_eq!(drain(&outbox), ["a1", "b1", "a2", "a3"]);
    }

    #[test]
    fn what_has_no_proof_is_sent_again_in_order_after_a_rewind() {
        let outbox = outbox(1 << 20);
        for text in ["a1", "a2", "a3"] {
            append(&outbox, "a", Class::Stream, 0, text);
        }
        let (first, _) = outbox.next().unwrap();
        outbox.next().unwrap();
        outbox.acknowledge(first);
        outbox.rewind();
        append(&outbox, "a", Class::Stream, 0, "a4");
        assert_eq!(drain(&outbox), ["a2", "a3", "a4"]);
        assert_eq!(outbox.stats().delivered, 1);
    }

    #[test]
    fn a_full_outbox_drops_the_oldest_stream_entries_and_keeps_results() {
        let outbox = outbox(3 * (OVERHEAD + 2));
        append(&outbox, "a", Class::Keep, 0, "r1");
        for text in ["a1", "a2", "a3", "a4"] {
            append(&outbox, "a", Class::Stream, 0, text);
        }
        assert_eq!(drain(&outbox), ["r1", "a3", "a4"]);
        assert_eq!((outbox.stats().dropped, outbox.stats().waiting), (2, 3));
    }

    #[test]
    fn old_stream_entries_are_dropped_and_old_results_are_not() {
        let outbox = outbox(1 << 20);
        append(&outbox, "a", Class::Keep, 0, "r1");
        append(&outbox, "a", Class::Stream, 0, "a1");
        append(&outbox, "a", Class::Stream, 60_001, "a2");
        assert_eq!(drain(&outbox), ["r1", "a2"]);
    }

    #[test]
    fn a_device_that_floods_the_outbox_pays_for_it_itself() {
        let outbox = outbox(20 * (OVERHEAD + 2));
        append(&outbox, "b", Class::Stream, 0, "b1");
        append(&outbox, "b", Class::Keep, 0, "b2");
        for _ in 0..1000 {
            append(&outbox, "a", Class::Keep, 0, "a1");
        }
        let sent = drain(&outbox);
        assert!(sent.contains(&"b1".to_owned()) && sent.contains(&"b2".to_owned()), "{sent:?}");
    }

    #[test]
    fn an_unsent_result_does_not_make_the_rest_pile_up() {
        let outbox = outbox(20 * (OVERHEAD + 2));
        append(&outbox, "b", Class::Keep, 0, "r1");
        for _ in 0..10_000 {
            append(&outbox, "a", Class::Stream, 0, "a1");
        }
        assert!(outbox.lock().entries.len() <= 20);
        let held: usize = outbox.lock().shares.values().map(|share| share.unsent.len() + share.streams.len()).sum();
        assert!(held <= 40, "{held}");
        outbox.rewind();
        assert_eq!(drain(&outbox).len(), 20);
    }

    #[test]
    fn an_acknowledged_entry_that_was_dropped_meanwhile_counts_once() {
        let outbox = outbox(OVERHEAD + 2);
        append(&outbox, "a", Class::Stream, 0, "a1");
        let (sequence, _) = outbox.next().unwrap();
        append(&outbox, "a", Class::Stream, 0, "a2");
        outbox.acknowledge(sequence);
        let stats = outbox.stats();
        assert_eq!((stats.dropped, stats.delivered, stats.waiting), (1, 0, 1));
    }
}
