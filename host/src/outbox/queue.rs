//! What waits in an outbox: entries, each device's queue of them, and whose
//! turn it is. Plain state behind the outbox's lock; time comes in.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Batch, Batching, Bounds, Class, Drops, Sequence, Stats};
use crate::clock::Moment;
use crate::message::{DeviceId, Publication};

/// What an entry costs beside its texts.
pub(super) const OVERHEAD: usize = 96;
/// Places in a list that entries may take which are gone, beside as many as there are others.
const SPARE: usize = 64;

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) entries: Entries,
    /// What each device has here; devices with nothing have no queue.
    pub(super) devices: HashMap<DeviceId, DeviceQueue>,
    /// Devices with something to send now, in turn.
    turns: VecDeque<DeviceId>,
    /// Devices whose next message has to wait: for a batch, or for a pause to end.
    waiting: BTreeSet<(Instant, DeviceId)>,
    /// Whose messages may go; none: everybody's.
    admitted: Option<HashSet<DeviceId>>,
    pub(super) next: Sequence,
    /// Whether it is noted which entries are gone, and which those are.
    pub(super) is_kept: bool,
    pub(super) gone: Vec<Sequence>,
    pub(super) stats: Stats,
    /// What was dropped since somebody asked, and since the start.
    pub(super) drops: BTreeMap<DeviceId, Drops>,
    pub(super) all_drops: BTreeMap<DeviceId, Drops>,
    pub(super) bounds: Bounds,
}

/// Entries by number. Every message is looked up some times, so the numbers
/// are spread by one multiplication instead of a hash that withstands attacks:
/// nobody outside chooses them.
pub(super) type Entries = HashMap<Sequence, Entry, BuildHasherDefault<Spread>>;

#[derive(Debug, Default)]
pub(super) struct Spread(u64);

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

/// One device's messages. All lists are in order and may hold entries that are
/// gone, but never at their front.
#[derive(Debug, Default)]
pub(super) struct DeviceQueue {
    /// What is to be sent, by topic: each topic keeps its order, and can be paused.
    lanes: Vec<Lane>,
    /// What may be dropped, sent or not.
    streams: VecDeque<Sequence>,
    bytes: usize,
    /// Size of what is unsent.
    unsent_bytes: usize,
    turn: Turn,
    /// Nothing is sent before.
    paused_until: Option<Instant>,
    /// When the first unsent message has waited long enough for others.
    linger_until: Option<Instant>,
    /// How many entries it has.
    count: usize,
    /// Up to this entry nothing waits for a batch: someone waits for it.
    urgent: Option<Sequence>,
}

/// The unsent messages of a device on one topic.
#[derive(Debug)]
struct Lane {
    topic: Arc<str>,
    /// Answers go before the rest.
    is_answer: bool,
    unsent: VecDeque<Sequence>,
    paused_until: Option<Instant>,
}

/// Where a device stands in the order of sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Turn {
    /// It has nothing to send.
    #[default]
    None,
    /// It is in the list of turns.
    Now,
    /// It waits until then.
    At(Instant),
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) device: DeviceId,
    pub(super) class: Class,
    pub(super) moment: Moment,
    pub(super) place: Place,
    /// Goes without a batch: in one, it was refused.
    pub(super) alone: bool,
    pub(super) publication: Publication,
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
    fn cost(&self) -> usize {
        OVERHEAD + self.publication.topic.len() + self.publication.payload.len()
    }

    /// Whether `other` may travel in the same message; both are on one topic.
    fn joins(&self, other: &Entry) -> bool {
        self.publication.joins && other.publication.joins && !(self.alone || other.alone)
    }

    /// The message, its time corrected if the clock was set meanwhile.
    fn publication_at(&self, now: Moment) -> Publication {
        let mut publication = self.publication.clone();
        if let Some(stamp) = publication.stamp
            && let Some(shift) = now.set_since(self.moment)
        {
            publication.payload = stamp.corrected(&publication.payload, shift);
        }
        publication
    }
}

impl Queue {
    pub(super) fn new(bounds: Bounds) -> Self {
        Queue { bounds, ..Queue::default() }
    }

    /// Takes an entry, and makes room for it. Gives its number.
    pub(super) fn append(&mut self, entry: Entry) -> Sequence {
        let sequence = self.next;
        self.next += 1;
        self.stats.appended += 1;
        self.restore(sequence, entry);
        sequence
    }

    /// Takes an entry that has a number already, higher than all that are here.
    pub(super) fn restore(&mut self, sequence: Sequence, entry: Entry) {
        self.stats.waiting += 1;
        let cost = entry.cost();
        self.stats.bytes += cost;
        let (device, now) = (entry.device.clone(), entry.moment);
        let queue = self.devices.entry(device.clone()).or_default();
        queue.count += 1;
        queue.bytes += cost;
        queue.unsent_bytes += cost;
        match entry.class {
            Class::Stream => queue.streams.push_back(sequence),
            Class::Keep => queue.urgent = Some(sequence),
            Class::Answer => {}
        }
        queue.lane(&entry).push_back(sequence);
        // Most often it is in turn already.
        let (is_in_turn, oldest) = (queue.turn == Turn::Now, queue.streams.front().copied());
        self.entries.insert(sequence, entry);
        if !is_in_turn {
            self.schedule(&device);
        }
        if oldest.is_some_and(|oldest| self.is_old(oldest, now)) {
            self.drop_old(&device, now);
        }
        self.drop_for_room();
    }

    /// Takes the next message: of the device whose turn it is, as large a batch
    /// as its topic and the bounds allow.
    pub(super) fn take(&mut self, now: Instant, moment: Moment) -> Option<Batch> {
        self.wake(now);
        while let Some(device) = self.turns.pop_front() {
            // A device whose entries were all dropped has no queue any more.
            let Some(queue) = self.devices.get_mut(&device) else { continue };
            queue.turn = Turn::None;
            let parts = queue.take(&mut self.entries, self.bounds.batching, moment);
            self.schedule(&device);
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
        let is_admitted = self.is_admitted(device);
        let Some(queue) = self.devices.get_mut(device) else { return };
        let before = queue.turn;
        if before == Turn::Now {
            return;
        }
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
        }
    }

    pub(super) fn remove(&mut self, sequence: Sequence) -> Option<Entry> {
        let entry = self.entries.remove(&sequence)?;
        if self.is_kept {
            self.gone.push(sequence);
        }
        self.stats.waiting -= 1;
        self.stats.bytes -= entry.cost();
        let Some(queue) = self.devices.get_mut(&entry.device) else { return Some(entry) };
        queue.count -= 1;
        queue.bytes -= entry.cost();
        if entry.place == Place::Unsent {
            queue.unsent_bytes -= entry.cost();
        }
        if queue.count == 0 {
            if let Turn::At(time) = queue.turn {
                self.waiting.remove(&(time, entry.device.clone()));
            }
            // One that is paused goes on being so.
            if queue.paused_until.is_none() && queue.lanes.iter().all(|lane| lane.paused_until.is_none()) {
                self.devices.remove(&entry.device);
            } else {
                queue.clear();
            }
            return Some(entry);
        }
        queue.tidy(&self.entries);
        Some(entry)
    }

    fn drop_entry(&mut self, sequence: Sequence, count: impl Fn(&mut Drops)) {
        if let Some(entry) = self.remove(sequence) {
            self.stats.dropped += 1;
            count(self.all_drops.entry(entry.device.clone()).or_default());
            count(self.drops.entry(entry.device).or_default());
        }
    }

    /// When the oldest message that waits was accepted.
    pub(super) fn oldest(&self) -> Option<Moment> {
        let lists = self.devices.values().flat_map(|queue| {
            let unsent = queue.lanes.iter().filter_map(|lane| lane.unsent.front());
            unsent.chain(queue.streams.front()).copied().min()
        });
        lists.min().and_then(|first| Some(self.entries.get(&first)?.moment))
    }

    /// Drops what is too old of one device: the one that just sent something.
    fn drop_old(&mut self, device: &DeviceId, now: Moment) {
        while let Some(first) = self.devices.get(device).and_then(|queue| queue.streams.front()).copied()
            && self.is_old(first, now)
        {
            self.drop_entry(first, |drops| drops.for_age += 1);
        }
    }

    /// Drops what is too old of all devices.
    pub(super) fn drop_all_old(&mut self, now: Moment) {
        let devices: Vec<DeviceId> = self.devices.keys().cloned().collect();
        devices.iter().for_each(|device| self.drop_old(device, now));
    }

    fn is_old(&self, sequence: Sequence, now: Moment) -> bool {
        self.entries.get(&sequence).is_some_and(|entry| now.since(entry.moment) > self.bounds.age)
    }

    /// Makes room at the expense of the device that holds the most, so that one
    /// that floods the outbox does not push the others out.
    fn drop_for_room(&mut self) {
        while self.stats.bytes > self.bounds.bytes {
            let largest = self.devices.values().max_by_key(|queue| queue.bytes);
            let oldest = largest.and_then(DeviceQueue::oldest);
            let oldest = oldest.or_else(|| self.entries.keys().min().copied());
            let Some(oldest) = oldest else { break };
            self.drop_entry(oldest, |drops| drops.for_room += 1);
        }
    }

    /// How many messages of a device are here.
    pub(super) fn count(&self, device: &DeviceId) -> usize {
        self.devices.get(device).map_or(0, |queue| queue.count)
    }

    /// Drops all messages of a device that is gone, and says how many.
    pub(super) fn discard(&mut self, device: &DeviceId) -> usize {
        let all = self.entries.iter().filter(|(_, entry)| entry.device == *device).map(|(sequence, _)| *sequence);
        let all: Vec<Sequence> = all.collect();
        all.iter().for_each(|sequence| drop(self.remove(*sequence)));
        self.stats.dropped += all.len() as u64;
        all.len()
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
            let Some(entry) = self.entries.get_mut(&sequence) else { continue };
            entry.alone |= alone;
            if entry.place != from {
                continue;
            }
            entry.place = Place::Unsent;
            if let Some(queue) = self.devices.get_mut(&entry.device) {
                queue.unsent_bytes += entry.cost();
                queue.lane(entry).push_back(sequence);
                devices.insert(entry.device.clone());
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

impl DeviceQueue {
    /// The list of unsent entries where one belongs.
    fn lane(&mut self, entry: &Entry) -> &mut VecDeque<Sequence> {
        let (topic, is_answer) = (&entry.publication.topic, entry.class == Class::Answer);
        let found = self.lanes.iter().position(|lane| lane.is_answer == is_answer && lane.topic == *topic);
        let place = found.unwrap_or_else(|| {
            let topic = Arc::clone(topic);
            self.lanes.push(Lane { topic, is_answer, unsent: VecDeque::new(), paused_until: None });
            self.lanes.len() - 1
        });
        #[allow(clippy::indexing_slicing)] // found, or pushed right here
        &mut self.lanes[place].unsent
    }

    /// The lane whose first message goes next: answers first, then the oldest.
    fn next_lane(&self) -> Option<usize> {
        let open = self.lanes.iter().enumerate().filter(|(_, lane)| lane.paused_until.is_none());
        let first = |(place, lane): (usize, &Lane)| Some(((!lane.is_answer, *lane.unsent.front()?), place));
        open.filter_map(first).min().map(|(_, place)| place)
    }

    /// The first unsent message of the other lanes.
    fn first_of_others(&self, place: usize) -> Option<Sequence> {
        let open = self.lanes.iter().enumerate().filter(|(_, lane)| lane.paused_until.is_none());
        open.filter(|(other, _)| *other != place).filter_map(|(_, lane)| lane.unsent.front().copied()).min()
    }

    fn next_turn(&mut self, entries: &Entries, batching: Batching) -> Turn {
        match (self.next_lane(), self.paused_until) {
            (Some(place), paused) => match self.lingers(place, entries, batching).max(paused) {
                None => Turn::Now,
                Some(time) => Turn::At(time),
            },
            (None, paused) => {
                let lanes = self.lanes.iter().filter(|lane| !lane.unsent.is_empty());
                let soonest = lanes.filter_map(|lane| lane.paused_until).min();
                soonest.max(soonest.and(paused)).map_or(Turn::None, Turn::At)
            }
        }
    }

    /// Until when the next message waits for others that can go with it.
    fn lingers(&mut self, place: usize, entries: &Entries, batching: Batching) -> Option<Instant> {
        let lane = self.lanes.get(place)?;
        if batching.age == Duration::ZERO || lane.is_answer || lane.unsent.len() >= batching.count {
            return None;
        }
        let front = *lane.unsent.front()?;
        let first = entries.get(&front)?;
        let hurry = self.urgent.is_some_and(|urgent| front <= urgent) || self.unsent_bytes >= batching.bytes;
        if hurry || first.alone || !first.publication.joins {
            return None;
        }
        // What waits already goes on waiting for the same time.
        Some(*self.linger_until.get_or_insert_with(|| Instant::now() + batching.age))
    }

    fn end_pauses(&mut self, now: Instant) {
        self.paused_until = self.paused_until.filter(|until| *until > now);
        for lane in &mut self.lanes {
            lane.paused_until = lane.paused_until.filter(|until| *until > now);
        }
    }

    /// What is dropped first.
    fn oldest(&self) -> Option<Sequence> {
        let fronts = |is_answer: bool| {
            let lanes = self.lanes.iter().filter(move |lane| lane.is_answer == is_answer);
            lanes.filter_map(|lane| lane.unsent.front().copied()).min()
        };
        self.streams.front().copied().or_else(|| fronts(false)).or_else(|| fronts(true))
    }

    /// How many places its lists take.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.lanes.iter().map(|lane| lane.unsent.len()).sum::<usize>() + self.streams.len()
    }

    /// The next unsent entry and those that may go with it, now sent. A batch
    /// ends where a message on another topic is older.
    fn take(&mut self, entries: &mut Entries, batching: Batching, now: Moment) -> Vec<(Sequence, Publication)> {
        let mut parts: Vec<(Sequence, Publication)> = Vec::new();
        let Some(place) = self.next_lane() else { return parts };
        let limit = self.first_of_others(place).unwrap_or(Sequence::MAX);
        let Some(lane) = self.lanes.get_mut(place) else { return parts };
        if !lane.is_answer {
            self.linger_until = None;
        }
        let mut bytes = 0;
        while let Some(sequence) = lane.unsent.front().copied() {
            let Some(entry) = entries.get(&sequence) else {
                lane.unsent.pop_front();
                continue;
            };
            bytes += entry.publication.payload.len() + 1;
            if let Some((first, _)) = parts.first() {
                let fits = entries.get(first).is_some_and(|first| first.joins(entry));
                let is_full = parts.len() >= batching.count || bytes > batching.bytes;
                if !fits || is_full || (sequence > limit && !lane.is_answer) {
                    break;
                }
            }
            lane.unsent.pop_front();
            let Some(entry) = entries.get_mut(&sequence) else { continue };
            entry.place = Place::Sent;
            self.unsent_bytes -= entry.cost();
            parts.push((sequence, entry.publication_at(now)));
            if batching.count <= 1 {
                break;
            }
        }
        trim(&mut lane.unsent, entries);
        if lane.unsent.is_empty() && lane.paused_until.is_none() && self.lanes.len() > 1 {
            self.lanes.swap_remove(place);
        }
        parts
    }

    /// Takes what is gone off the fronts of the lists, and out of those that
    /// one that stays at the front makes pile up.
    fn tidy(&mut self, entries: &Entries) {
        let most = 2 * self.count + SPARE;
        for list in self.lanes.iter_mut().map(|lane| &mut lane.unsent).chain([&mut self.streams]) {
            trim(list, entries);
            if list.len() > most {
                list.retain(|sequence| entries.contains_key(sequence));
            }
        }
    }

    fn sort(&mut self, entries: &Entries) {
        for lane in &mut self.lanes {
            lane.unsent.make_contiguous().sort_unstable();
            trim(&mut lane.unsent, entries);
        }
    }

    fn clear(&mut self) {
        self.streams.clear();
        self.lanes.iter_mut().for_each(|lane| lane.unsent.clear());
        self.turn = Turn::None;
    }
}

/// Takes entries that are gone off the front.
fn trim(list: &mut VecDeque<Sequence>, entries: &Entries) {
    while list.front().is_some_and(|first| !entries.contains_key(first)) {
        list.pop_front();
    }
}
