//! The queue between devices and one session: bounded, fair, in order for each
//! device, released only on proof of delivery.
//!
//! Devices append, one session takes and acknowledges. It never blocks: when
//! it is full, the oldest telemetry and logs go first, and that is counted.

use std::collections::{BTreeMap, HashMap, VecDeque};
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
    /// Unsent entries of each device, in order; may hold dropped ones.
    devices: HashMap<DeviceId, VecDeque<Sequence>>,
    /// Devices with unsent entries, in turn.
    turns: VecDeque<DeviceId>,
    /// Entries of class `Stream` in order; may hold delivered ones.
    streams: VecDeque<Sequence>,
    stats: Stats,
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
        queue.drop_old(time, self.bounds.age);
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

/// Entries by their number. Stream entries come and go in order, so slots that
/// are counted from the first one beat a map; the few others would hold that
/// first slot for long, and live in a map.
#[derive(Debug, Default)]
struct Entries {
    first: Sequence,
    streams: VecDeque<Option<Entry>>,
    kept: BTreeMap<Sequence, Entry>,
}

impl Entries {
    /// The number of the next entry.
    fn next(&self) -> Sequence {
        self.first + self.streams.len() as Sequence
    }

    fn push(&mut self, entry: Entry) {
        match entry.class {
            Class::Stream => self.streams.push_back(Some(entry)),
            Class::Keep => {
                self.kept.insert(self.next(), entry);
                self.streams.push_back(None);
            }
        }
    }

    fn slot(&self, sequence: Sequence) -> Option<usize> {
        usize::try_from(sequence.checked_sub(self.first)?).ok()
    }

    fn get(&self, sequence: Sequence) -> Option<&Entry> {
        let stream = self.slot(sequence).and_then(|slot| self.streams.get(slot)?.as_ref());
        stream.or_else(|| self.kept.get(&sequence))
    }

    fn get_mut(&mut self, sequence: Sequence) -> Option<&mut Entry> {
        let slot = self.slot(sequence);
        let stream = slot.and_then(|slot| self.streams.get_mut(slot)?.as_mut());
        stream.or_else(|| self.kept.get_mut(&sequence))
    }

    fn remove(&mut self, sequence: Sequence) -> Option<Entry> {
        let slot = self.slot(sequence);
        let entry = slot.and_then(|slot| self.streams.get_mut(slot)?.take());
        while self.streams.front().is_some_and(Option::is_none) {
            self.streams.pop_front();
            self.first += 1;
        }
        entry.or_else(|| self.kept.remove(&sequence))
    }

    /// The oldest entry that is no stream entry.
    fn oldest_kept(&self) -> Option<Sequence> {
        self.kept.keys().next().copied()
    }

    /// Marks all as unsent and lists them in order, with their devices.
    fn rewind(&mut self) -> Vec<(Sequence, DeviceId)> {
        let numbered = (self.first..).zip(&mut self.streams);
        let streams = numbered.filter_map(|(sequence, slot)| Some((sequence, slot.as_mut()?)));
        let kept = self.kept.iter_mut().map(|(sequence, entry)| (*sequence, entry));
        let mut all: Vec<_> = streams
            .chain(kept)
            .map(|(sequence, entry)| {
                entry.sent = false;
                (sequence, entry.device.clone())
            })
            .collect();
        all.sort_unstable_by_key(|(sequence, _)| *sequence);
        all
    }
}

impl Queue {
    fn append(&mut self, entry: Entry) {
        let sequence = self.entries.next();
        self.stats.appended += 1;
        self.stats.waiting += 1;
        self.stats.bytes += entry.cost();
        if entry.class == Class::Stream {
            self.streams.push_back(sequence);
        }
        let unsent = self.devices.entry(entry.device.clone()).or_default();
        if unsent.is_empty() {
            self.turns.push_back(entry.device.clone());
        }
        unsent.push_back(sequence);
        self.entries.push(entry);
    }

    fn next(&mut self) -> Option<(Sequence, Publication)> {
        while let Some(device) = self.turns.pop_front() {
            let Some(unsent) = self.devices.get_mut(&device) else { continue };
            let found = std::iter::from_fn(|| unsent.pop_front())
                .find(|sequence| self.entries.get(*sequence).is_some_and(|entry| !entry.sent));
            if unsent.is_empty() {
                self.devices.remove(&device);
            } else {
                self.turns.push_back(device);
            }
            let entry = found.and_then(|sequence| Some((sequence, self.entries.get_mut(sequence)?)));
            if let Some((sequence, entry)) = entry {
                entry.sent = true;
                return Some((sequence, entry.publication.clone()));
            }
        }
        None
    }

    fn remove(&mut self, sequence: Sequence) -> Option<Entry> {
        let entry = self.entries.remove(sequence)?;
        self.stats.waiting -= 1;
        self.stats.bytes -= entry.cost();
        // Delivery is nearly in order, so this stays short.
        while self.streams.front().is_some_and(|first| self.entries.get(*first).is_none()) {
            self.streams.pop_front();
        }
        Some(entry)
    }

    fn drop_entry(&mut self, sequence: Sequence) {
        if self.remove(sequence).is_some() {
            self.stats.dropped += 1;
        }
    }

    fn drop_old(&mut self, now: Time, age: Duration) {
        let age = Time::try_from(age.as_millis()).unwrap_or(Time::MAX);
        while let Some(first) = self.streams.front().copied() {
            match self.entries.get(first) {
                Some(entry) if now.saturating_sub(entry.time) <= age => break,
                Some(_) => self.drop_entry(first),
                None => {
                    self.streams.pop_front();
                }
            }
        }
    }

    fn drop_for_room(&mut self, bytes: usize) {
        while self.stats.bytes > bytes {
            let oldest = self.streams.front().copied().or_else(|| self.entries.oldest_kept());
            let Some(oldest) = oldest else { break };
            self.drop_entry(oldest);
            if self.streams.front() == Some(&oldest) {
                self.streams.pop_front();
            }
        }
    }

    fn rewind(&mut self) {
        self.turns.clear();
        self.devices.clear();
        for (sequence, device) in self.entries.rewind() {
            let unsent = self.devices.entry(device.clone()).or_default();
            if unsent.is_empty() {
                self.turns.push_back(device);
            }
            unsent.push_back(sequence);
        }
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
    fn an_unsent_result_does_not_make_the_rest_pile_up() {
        let outbox = outbox(20 * (OVERHEAD + 2));
        append(&outbox, "b", Class::Keep, 0, "r1");
        for _ in 0..10_000 {
            append(&outbox, "a", Class::Stream, 0, "a1");
        }
        assert!(outbox.lock().entries.streams.len() <= 20);
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
