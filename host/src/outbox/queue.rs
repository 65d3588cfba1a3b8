//! What waits in an outbox: entries, each device's queue of them, and whose
//! turn it is. Plain state behind the outbox's lock; time comes in.
//!
//! What goes soon is loaded: all of it is here. When much waits, the texts of
//! what goes later are on the disk only (`Shelf`), and are loaded when their
//! device's turn comes near.

mod device;
mod room;
mod shelves;
mod thinning;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use rustc_hash::FxHashMap;
use tokio::time::Instant;

use super::log::Spot;
use super::pace::Pace;
use super::record::Message;
use super::stored::{OVERHEAD, Stored};
use super::{Batch, Bounds, Class, Drops, OwnBounds, Sequence, Stats};
use crate::clock::Moment;
use crate::message::{DeviceId, Publication};
use device::{DeviceQueue, Rank, Turn, push_in_order};

/// Sets of properties of a device of which the last is known.
const SETS: usize = 16;

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// What is loaded.
    pub(super) entries: Entries,
    /// What each device has here; devices with nothing have no queue.
    pub(super) devices: FxHashMap<DeviceId, DeviceQueue>,
    /// Devices with something to send now, in turn.
    turns: VecDeque<DeviceId>,
    /// Devices whose next message has to wait: for a batch, or for a pause to end.
    waiting: BTreeSet<(Instant, DeviceId)>,
    /// Whose messages may go; none: everybody's.
    admitted: Option<HashSet<DeviceId>>,
    pub(super) next: Sequence,
    /// From this number on entries are live; none are where all go in their order.
    live_from: Option<Sequence>,
    /// Entries that are gone and lie in the log.
    pub(super) gone: Vec<(Sequence, Spot)>,
    /// Devices that have stored entries and few loaded ones, in the order in which they came to that.
    hungry: VecDeque<DeviceId>,
    /// How many devices have stored entries.
    shelves: usize,
    /// The size of what is loaded, and of what of that is not in the log.
    loaded_bytes: usize,
    unwritten_bytes: usize,
    pub(super) stats: Stats,
    /// What was dropped since somebody asked, and since the start.
    pub(super) drops: BTreeMap<DeviceId, Drops>,
    pub(super) all_drops: BTreeMap<DeviceId, Drops>,
    pub(super) bounds: Bounds,
    /// Those of single devices.
    own_bounds: HashMap<DeviceId, OwnBounds>,
    pace: Pace,
}

/// Entries by number.
pub(super) type Entries = FxHashMap<Sequence, Entry>;

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) message: Message,
    pub(super) place: Place,
    /// Where it lies in the log, if it does.
    pub(super) spot: Option<Spot>,
}

/// Where an entry is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// It waits for its turn.
    Unsent,
    /// It is on its way, without proof.
    Sent,
    /// It is held back by itself, and does not hold up others.
    Aside,
}

impl Entry {
    /// A message that waits for its turn.
    pub(super) fn unsent(message: Message, spot: Option<Spot>) -> Entry {
        Entry { message, place: Place::Unsent, spot }
    }

    fn cost(&self) -> usize {
        self.message.cost()
    }

    /// Whether `other` may travel in the same message; both are on one topic.
    fn joins(&self, other: &Entry) -> bool {
        let (first, second) = (&self.message, &other.message);
        first.publication.joins && second.publication.joins && !(first.alone || second.alone)
    }

    /// The message, its time corrected if the clock was set meanwhile.
    fn publication_at(&self, now: Moment) -> Publication {
        let mut publication = self.message.publication.clone();
        if let Some(stamp) = publication.stamp
            && let Some(shift) = now.set_since(self.message.moment)
        {
            publication.payload = stamp.corrected(&publication.payload, shift);
        }
        publication
    }
}

impl Message {
    /// What it counts as in the outbox's bounds.
    pub(super) fn cost(&self) -> usize {
        OVERHEAD + self.publication.topic.len() + self.publication.payload.len()
    }
}

impl Queue {
    pub(super) fn new(bounds: Bounds) -> Self {
        Queue { bounds, ..Queue::default() }
    }

    /// The number of the next message that is accepted.
    pub(super) fn number(&mut self) -> Sequence {
        let sequence = self.next;
        self.next += 1;
        self.stats.appended += 1;
        sequence
    }

    /// Takes a message with its number, which is higher than all that are here,
    /// and makes room for it. One that lies in the log may stay there; one of a
    /// set of properties replaces the one before.
    pub(super) fn append(&mut self, sequence: Sequence, message: Message, spot: Option<Spot>, set: Option<u64>) {
        let (device, now) = (message.device.clone(), message.moment);
        self.note(&device, 1, message.cost());
        self.pace.note(now, message.cost());
        let rank = self.rank_of_new(message.class, &device);
        match spot.filter(|_| self.is_to_store(rank, &device)) {
            Some(spot) => {
                let texts = message.cost() - OVERHEAD;
                self.store(&device, message.class, Stored::new(sequence, spot, texts, now));
            }
            None => {
                self.insert(sequence, Entry::unsent(message, spot), rank);
                self.schedule(&device);
            }
        }
        if let Some(earlier) = set.and_then(|set| self.note_set(&device, set, sequence)) {
            self.replace(&device, earlier);
        }
        self.drop_old(&device, now);
        self.drop_for_own_room(&device);
        self.drop_for_room();
    }

    /// Notes the entry of a set of properties, and gives the one before.
    fn note_set(&mut self, device: &DeviceId, set: u64, sequence: Sequence) -> Option<Sequence> {
        let queue = self.devices.get_mut(device)?;
        let place = queue.sets.iter().position(|(other, _)| *other == set);
        let before = place.and_then(|place| queue.sets.remove(place));
        if queue.sets.len() >= SETS {
            queue.sets.pop_front();
        }
        queue.sets.push_back((set, sequence));
        before.map(|(_, sequence)| sequence)
    }

    /// Removes properties that newer ones have replaced, unless they are on their way.
    fn replace(&mut self, device: &DeviceId, earlier: Sequence) {
        let is_gone = match self.entries.get(&earlier).map(|entry| entry.place) {
            Some(Place::Unsent) => self.remove(earlier).is_some(),
            Some(Place::Sent | Place::Aside) => false,
            None => self.remove_stored(device, Class::Keep, earlier).is_some(),
        };
        self.stats.replaced += u64::from(is_gone);
    }

    /// Counts entries that come.
    fn note(&mut self, device: &DeviceId, entries: usize, bytes: usize) {
        self.stats.waiting += entries;
        self.stats.bytes += bytes;
        if !self.devices.contains_key(device) {
            self.devices.insert(device.clone(), DeviceQueue::default());
        }
        if let Some(queue) = self.devices.get_mut(device) {
            queue.count += entries;
            queue.bytes += bytes;
        }
    }

    /// The rank of an entry that comes. Live ones pass by what waits and is not
    /// live; once some had to be stored, the others follow those.
    fn rank_of_new(&self, class: Class, device: &DeviceId) -> Rank {
        let has_followers =
            |live_from| self.devices.get(device).is_some_and(|queue| queue.has_ordinary_from(live_from));
        match (class, self.live_from) {
            (Class::Answer, _) => Rank::Answer,
            (_, Some(live_from)) if !has_followers(live_from) => Rank::Live,
            _ => Rank::Ordinary,
        }
    }

    /// Takes what is gone off a device's lists, and lets it go on.
    fn tidy(&mut self, device: &DeviceId) {
        if let Some(queue) = self.devices.get_mut(device) {
            queue.tidy(&self.entries);
        }
        self.schedule(device);
    }

    fn rank(&self, class: Class, sequence: Sequence) -> Rank {
        match class {
            Class::Answer => Rank::Answer,
            _ if self.live_from.is_some_and(|live_from| sequence >= live_from) => Rank::Live,
            _ => Rank::Ordinary,
        }
    }

    /// A connection stands: what comes from now on goes before what waits, if
    /// that is asked for.
    pub(super) fn connected(&mut self) {
        if self.bounds.backfill.is_some() {
            self.live_from = Some(self.next);
            self.devices.values_mut().for_each(DeviceQueue::age);
            let behind: Vec<Sequence> = self.devices.values().flat_map(DeviceQueue::behind_shelf).collect();
            behind.into_iter().for_each(|sequence| self.store_again(sequence));
        }
    }

    /// Adds an entry to what is loaded.
    fn insert(&mut self, sequence: Sequence, entry: Entry, rank: Rank) {
        let Some(queue) = self.devices.get_mut(&entry.message.device) else { return };
        let (cost, class) = (entry.cost(), entry.message.class);
        queue.unsent_bytes += cost;
        self.loaded_bytes += cost;
        if entry.spot.is_none() {
            queue.unwritten_bytes += cost;
            self.unwritten_bytes += cost;
        }
        match class {
            Class::Log => push_in_order(&mut queue.logs, sequence),
            Class::Telemetry => push_in_order(&mut queue.telemetry, sequence),
            Class::Keep => queue.urgent = queue.urgent.max(Some(sequence)),
            Class::Answer => {}
        }
        push_in_order(queue.lane(&entry.message, rank), sequence);
        self.entries.insert(sequence, entry);
    }

    /// An entry was written again; gives where it lay.
    pub(super) fn moved(&mut self, sequence: Sequence, spot: Spot) -> Option<Spot> {
        let entry = self.entries.get_mut(&sequence)?;
        let old = entry.spot.replace(spot);
        if old.is_none() {
            let cost = entry.cost();
            self.unwritten_bytes -= cost;
            if let Some(queue) = self.devices.get_mut(&entry.message.device) {
                queue.unwritten_bytes -= cost;
            }
        }
        old
    }

    /// Takes the next message: of the device whose turn it is, as large a batch
    /// as its topic and the bounds allow.
    pub(super) fn take(&mut self, now: Instant, moment: Moment) -> Option<Batch> {
        self.wake(now);
        while let Some(device) = self.turns.pop_front() {
            // A device whose entries were all dropped has no queue any more.
            let Some(queue) = self.devices.get_mut(&device) else { continue };
            queue.turn = Turn::None;
            queue.end_pauses(now);
            let parts = queue.take(&mut self.entries, &self.bounds, moment);
            self.schedule(&device);
            self.look_at_shelf(&device);
            if !parts.is_empty() {
                return Some(Batch { device, parts });
            }
        }
        None
    }

    /// When the first waiting device may send.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.waiting.first().map(|(time, _)| *time)
    }

    fn wake(&mut self, now: Instant) {
        while self.next_wake().is_some_and(|time| time <= now) {
            let Some((_, device)) = self.waiting.pop_first() else { return };
            if let Some(queue) = self.devices.get_mut(&device) {
                queue.end_pauses(now);
                queue.turn = Turn::Now;
                self.turns.push_back(device);
            }
        }
    }

    /// Decides when a device with unsent entries sends the next one.
    fn schedule(&mut self, device: &DeviceId) {
        // Most often it is in turn already.
        if self.devices.get(device).is_none_or(|queue| queue.turn == Turn::Now) {
            return;
        }
        let is_admitted = self.is_admitted(device);
        let Some(queue) = self.devices.get_mut(device) else { return };
        let before = queue.turn;
        let after = if is_admitted { queue.next_turn(&self.entries, self.bounds.batching) } else { Turn::None };
        queue.turn = after;
        if before == after {
            return;
        }
        if let Turn::At(time) = before {
            self.waiting.remove(&(time, device.clone()));
        }
        match after {
            Turn::None => {}
            Turn::Now => self.turns.push_back(device.clone()),
            Turn::At(time) => drop(self.waiting.insert((time, device.clone()))),
        }
    }

    /// Takes a device out of the order of sending, to be scheduled anew.
    fn unschedule(&mut self, device: &DeviceId) {
        let Some(queue) = self.devices.get_mut(device) else { return };
        match std::mem::take(&mut queue.turn) {
            Turn::None => {}
            Turn::Now => self.turns.retain(|other| other != device),
            Turn::At(time) => drop(self.waiting.remove(&(time, device.clone()))),
        }
    }

    fn is_admitted(&self, device: &DeviceId) -> bool {
        self.admitted.as_ref().is_none_or(|admitted| admitted.contains(device))
    }

    /// Sends messages of these devices only.
    pub(super) fn admit(&mut self, devices: HashSet<DeviceId>) {
        self.admitted = Some(devices);
        let all: Vec<DeviceId> = self.devices.keys().cloned().collect();
        for device in all {
            if !self.is_admitted(&device) {
                self.unschedule(&device);
            }
            self.schedule(&device);
            self.look_at_shelf(&device);
        }
    }

    pub(super) fn remove(&mut self, sequence: Sequence) -> Option<Entry> {
        let entry = self.entries.remove(&sequence)?;
        let (cost, device) = (entry.cost(), &entry.message.device);
        self.gone.extend(entry.spot.map(|spot| (sequence, spot)));
        self.loaded_bytes -= cost;
        if let Some(queue) = self.devices.get_mut(device) {
            if entry.place == Place::Unsent {
                queue.unsent_bytes -= cost;
            }
            if entry.spot.is_none() {
                queue.unwritten_bytes -= cost;
                self.unwritten_bytes -= cost;
            }
            queue.tidy(&self.entries);
        }
        self.forget(device, cost);
        Some(entry)
    }

    /// Counts an entry that is gone, and forgets a device that has none left.
    fn forget(&mut self, device: &DeviceId, cost: usize) {
        self.stats.waiting -= 1;
        self.stats.bytes -= cost;
        let Some(queue) = self.devices.get_mut(device) else { return };
        queue.count -= 1;
        queue.bytes -= cost;
        if queue.count > 0 {
            // What was dropped may have been what the rest waited for.
            self.schedule(device);
            self.look_at_shelf(device);
            return;
        }
        if let Turn::At(time) = queue.turn {
            self.waiting.remove(&(time, device.clone()));
        }
        // One that is paused goes on being so.
        if queue.paused_until.is_none() && queue.lanes.iter().all(|lane| lane.paused_until.is_none()) {
            self.devices.remove(device);
        } else {
            queue.clear();
        }
    }

    /// That nothing is left of what was counted.
    #[cfg(test)]
    pub(super) fn assert_empty(&self) {
        assert_eq!((self.entries.len(), self.loaded_bytes, self.unwritten_bytes, self.shelves), (0, 0, 0, 0));
        assert!(self.devices.values().all(|queue| queue.unsent_bytes == 0 && queue.count == 0));
    }

    /// How many messages of a device are here.
    pub(super) fn count(&self, device: &DeviceId) -> usize {
        self.devices.get(device).map_or(0, |queue| queue.count)
    }

    /// Drops all messages of a device that is gone, and says how many.
    pub(super) fn discard(&mut self, device: &DeviceId) -> usize {
        let own = self.entries.iter().filter(|(_, entry)| entry.message.device == *device);
        let loaded: Vec<Sequence> = own.map(|(sequence, _)| *sequence).collect();
        let shelf = self.devices.get(device).into_iter().flat_map(|queue| queue.shelf.all());
        let stored: Vec<(Class, Sequence)> = shelf.map(|(class, entry)| (class, entry.sequence)).collect();
        let number = loaded.len() + stored.len();
        loaded.into_iter().for_each(|sequence| drop(self.remove(sequence)));
        for (class, sequence) in stored {
            self.remove_stored(device, class, sequence);
        }
        self.stats.dropped += number as u64;
        number
    }

    /// Holds a sent message back by itself: others of its device do not wait for it.
    pub(super) fn set_aside(&mut self, sequence: Sequence) {
        if let Some(entry) = self.entries.get_mut(&sequence).filter(|entry| entry.place == Place::Sent) {
            entry.place = Place::Aside;
        }
    }

    /// Makes messages unsent that are in a place, before what else their topics
    /// have unsent.
    pub(super) fn send_again(&mut self, sequences: impl Iterator<Item = Sequence>, from: Place, alone: bool) {
        let mut devices = BTreeSet::new();
        for sequence in sequences {
            let Some(class) = self.entries.get(&sequence).map(|entry| entry.message.class) else { continue };
            let rank = self.rank(class, sequence);
            let Some(entry) = self.entries.get_mut(&sequence) else { continue };
            entry.message.alone |= alone;
            if entry.place != from {
                continue;
            }
            entry.place = Place::Unsent;
            let device = &entry.message.device;
            if let Some(queue) = self.devices.get_mut(device) {
                queue.unsent_bytes += entry.cost();
                queue.lane(&entry.message, rank).push_back(sequence);
                devices.insert(device.clone());
            }
        }
        for device in devices {
            if let Some(queue) = self.devices.get_mut(&device) {
                queue.sort(&self.entries);
            }
            self.schedule(&device);
        }
    }

    /// Makes all messages on their way unsent.
    pub(super) fn rewind(&mut self) {
        let sent = self.entries.iter().filter(|(_, entry)| entry.place == Place::Sent).map(|(sequence, _)| *sequence);
        let mut sent: Vec<Sequence> = sent.collect();
        sent.sort_unstable();
        self.send_again(sent.into_iter(), Place::Sent, false);
    }

    /// Sends nothing of a device until then; with a topic, nothing on that.
    pub(super) fn pause(&mut self, device: &DeviceId, topic: Option<&str>, until: Instant) {
        let Some(queue) = self.devices.get_mut(device) else { return };
        match topic {
            None => queue.paused_until = Some(until),
            Some(topic) => {
                let lanes = queue.lanes.iter_mut().filter(|lane| &*lane.topic == topic);
                lanes.for_each(|lane| lane.paused_until = Some(until));
            }
        }
        self.unschedule(device);
        self.schedule(device);
    }
}
