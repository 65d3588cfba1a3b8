//! What waits in an outbox: entries, each device's share of them, and whose
//! turn it is. Plain state behind the outbox's lock; time comes in.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::time::{Duration, Instant};

use super::{Batching, Bounds, Class, Parcel, Sequence, Stats};
use crate::message::{DeviceId, Publication, Time};

/// What an entry costs beside its texts.
pub(super) const OVERHEAD: usize = 96;
/// So many places may be taken by entries that are gone, beside as many as there are others.
const SPARE: usize = 64;

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) entries: Entries,
    /// What each device has here; devices with nothing have no share.
    pub(super) shares: HashMap<DeviceId, Share>,
    /// Devices with something to send now, in turn.
    turns: VecDeque<DeviceId>,
    /// Devices whose next message has to wait: for company, or for a pause to end.
    waiting: BTreeSet<(Instant, DeviceId)>,
    next: Sequence,
    pub(super) stats: Stats,
    bounds: Bounds,
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

/// One device's part. All lists are in order and may hold entries that are
/// gone, but never at their front.
#[derive(Debug, Default)]
pub(super) struct Share {
    /// What is to be sent, and what goes before that.
    unsent: VecDeque<Sequence>,
    answers: VecDeque<Sequence>,
    /// What may be dropped, sent or not.
    streams: VecDeque<Sequence>,
    bytes: usize,
    /// Size of what is unsent.
    unsent_bytes: usize,
    turn: Turn,
    /// Nothing is sent before.
    paused_until: Option<Instant>,
    /// When the first unsent message has waited long enough for others.
    company_until: Option<Instant>,
    /// How many entries it has.
    count: usize,
    /// Up to this entry nothing waits for company: someone waits for it.
    urgent: Option<Sequence>,
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
    pub(super) time: Time,
    pub(super) sent: bool,
    /// Goes without company: with it, it was refused.
    pub(super) alone: bool,
    pub(super) publication: Publication,
}

impl Entry {
    fn cost(&self) -> usize {
        OVERHEAD + self.publication.topic.len() + self.publication.payload.len()
    }

    /// Whether `other` may travel in the same message.
    fn takes(&self, other: &Entry) -> bool {
        self.publication.joins
            && other.publication.joins
            && !(self.alone || other.alone)
            && self.publication.topic == other.publication.topic
    }
}

impl Queue {
    pub(super) fn new(bounds: Bounds) -> Self {
        Queue { bounds, ..Queue::default() }
    }

    /// Takes an entry, and makes room for it.
    pub(super) fn append(&mut self, entry: Entry) {
        let sequence = self.next;
        self.next += 1;
        self.stats.appended += 1;
        self.stats.waiting += 1;
        let cost = entry.cost();
        self.stats.bytes += cost;
        let (device, now) = (entry.device.clone(), entry.time);
        let share = self.shares.entry(device.clone()).or_default();
        share.count += 1;
        share.bytes += cost;
        share.unsent_bytes += cost;
        match entry.class {
            Class::Stream => share.streams.push_back(sequence),
            Class::Keep => share.urgent = Some(sequence),
            Class::Answer => {}
        }
        share.list(entry.class).push_back(sequence);
        // Most often it is in turn already.
        let (is_in_turn, oldest) = (share.turn == Turn::Now, share.streams.front().copied());
        self.entries.insert(sequence, entry);
        if !is_in_turn {
            self.schedule(&device);
        }
        if oldest.is_some_and(|oldest| self.is_old(oldest, now)) {
            self.drop_old(&device, now);
        }
        self.drop_for_room();
    }

    /// Takes the next message: of the device whose turn it is, with as much
    /// company as its topic and the bounds allow.
    pub(super) fn take(&mut self, now: Instant) -> Option<Parcel> {
        self.wake(now);
        while let Some(device) = self.turns.pop_front() {
            // A device whose entries were all dropped has no share any more.
            let Some(share) = self.shares.get_mut(&device) else { continue };
            share.turn = Turn::None;
            let parts = share.take(&mut self.entries, self.bounds.batching);
            if !share.is_idle() {
                self.schedule(&device);
            }
            if !parts.is_empty() {
                return Some(Parcel { device, parts });
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
            if let Some(share) = self.shares.get_mut(&device) {
                share.paused_until = share.paused_until.filter(|until| *until > now);
                share.turn = Turn::Now;
                self.turns.push_back(device);
            }
        }
    }

    /// Decides when a device with unsent entries sends the next one.
    fn schedule(&mut self, device: &DeviceId) {
        let Some(share) = self.shares.get_mut(device) else { return };
        let before = share.turn;
        if before == Turn::Now {
            return;
        }
        let company = share.waits_for_company(&self.entries, self.bounds.batching);
        share.turn = match company.max(share.paused_until) {
            _ if share.is_idle() => Turn::None,
            None => Turn::Now,
            Some(time) => Turn::At(time),
        };
        let after = share.turn;
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

    pub(super) fn remove(&mut self, sequence: Sequence) -> Option<Entry> {
        let entry = self.entries.remove(&sequence)?;
        self.stats.waiting -= 1;
        self.stats.bytes -= entry.cost();
        if let Some(share) = self.shares.get_mut(&entry.device) {
            share.count -= 1;
            share.bytes -= entry.cost();
            if !entry.sent {
                share.unsent_bytes -= entry.cost();
            }
            for list in [&mut share.unsent, &mut share.answers, &mut share.streams] {
                trim(list, &self.entries);
                // One that stays at the front must not make the others pile up.
                if list.len() > 2 * share.count + SPARE {
                    list.retain(|sequence| self.entries.contains_key(sequence));
                }
            }
            if share.bytes == 0 {
                if let Turn::At(time) = share.turn {
                    self.waiting.remove(&(time, entry.device.clone()));
                }
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
    fn drop_old(&mut self, device: &DeviceId, now: Time) {
        while let Some(first) = self.shares.get(device).and_then(|share| share.streams.front()).copied()
            && self.is_old(first, now)
        {
            self.drop_entry(first);
        }
    }

    fn is_old(&self, sequence: Sequence, now: Time) -> bool {
        let age = Time::try_from(self.bounds.age.as_millis()).unwrap_or(Time::MAX);
        self.entries.get(&sequence).is_some_and(|entry| now.saturating_sub(entry.time) > age)
    }

    /// Makes room at the expense of the device that holds the most, so that one
    /// that floods the outbox does not push the others out.
    fn drop_for_room(&mut self) {
        while self.stats.bytes > self.bounds.bytes {
            let largest = self.shares.values().max_by_key(|share| share.bytes);
            let oldest = largest.and_then(Share::oldest);
            let oldest = oldest.or_else(|| self.entries.keys().min().copied());
            let Some(oldest) = oldest else { break };
            self.drop_entry(oldest);
        }
    }

    /// Makes sent entries unsent, before what else their device has unsent.
    pub(super) fn send_again(&mut self, sequences: impl Iterator<Item = Sequence>, alone: bool) {
        let mut devices = BTreeSet::new();
        for sequence in sequences {
            let Some(entry) = self.entries.get_mut(&sequence) else { continue };
            entry.alone |= alone;
            if !std::mem::replace(&mut entry.sent, false) {
                continue;
            }
            if let Some(share) = self.shares.get_mut(&entry.device) {
                share.unsent_bytes += entry.cost();
                share.list(entry.class).push_back(sequence);
                devices.insert(entry.device.clone());
            }
        }
        for device in devices {
            if let Some(share) = self.shares.get_mut(&device) {
                for list in [&mut share.unsent, &mut share.answers] {
                    list.make_contiguous().sort_unstable();
                    trim(list, &self.entries);
                }
            }
            self.schedule(&device);
        }
    }

    /// Makes all sent entries unsent.
    pub(super) fn rewind(&mut self) {
        let sent = self.entries.iter().filter(|(_, entry)| entry.sent).map(|(sequence, _)| *sequence);
        let mut sent: Vec<Sequence> = sent.collect();
        sent.sort_unstable();
        self.send_again(sent.into_iter(), false);
    }

    /// Sends nothing of a device until then.
    pub(super) fn pause(&mut self, device: &DeviceId, until: Instant) {
        let Some(share) = self.shares.get_mut(device) else { return };
        share.paused_until = Some(until);
        if share.turn == Turn::Now {
            share.turn = Turn::None;
            self.turns.retain(|other| other != device);
        }
        self.schedule(device);
    }
}

impl Share {
    /// The list of unsent entries where one of this class belongs.
    fn list(&mut self, class: Class) -> &mut VecDeque<Sequence> {
        match class {
            Class::Stream | Class::Keep => &mut self.unsent,
            Class::Answer => &mut self.answers,
        }
    }

    /// Whether nothing is to be sent.
    fn is_idle(&self) -> bool {
        self.unsent.is_empty() && self.answers.is_empty()
    }

    /// What is dropped first.
    fn oldest(&self) -> Option<Sequence> {
        [&self.streams, &self.unsent, &self.answers].into_iter().find_map(|list| list.front().copied())
    }

    /// How many places its lists take.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.unsent.len() + self.answers.len() + self.streams.len()
    }

    /// The first unsent entry and those that may go with it, now sent.
    fn take(&mut self, entries: &mut Entries, batching: Batching) -> Vec<(Sequence, Publication)> {
        let list = match self.answers.is_empty() {
            true => {
                self.company_until = None;
                &mut self.unsent
            }
            false => &mut self.answers,
        };
        let mut parts: Vec<(Sequence, Publication)> = Vec::new();
        let mut bytes = 0;
        while let Some(sequence) = list.front().copied() {
            let Some(entry) = entries.get(&sequence) else {
                list.pop_front();
                continue;
            };
            bytes += entry.publication.payload.len() + 1;
            if let Some((first, _)) = parts.first() {
                let fits = entries.get(first).is_some_and(|first| first.takes(entry));
                if !fits || parts.len() >= batching.count || bytes > batching.bytes {
                    break;
                }
            }
            list.pop_front();
            let Some(entry) = entries.get_mut(&sequence) else { continue };
            entry.sent = true;
            self.unsent_bytes -= entry.cost();
            parts.push((sequence, entry.publication.clone()));
            if batching.count <= 1 {
                break;
            }
        }
        trim(list, entries);
        parts
    }

    /// Until when the next message waits for more that can go with it.
    fn waits_for_company(&mut self, entries: &Entries, batching: Batching) -> Option<Instant> {
        if batching.age == Duration::ZERO || !self.answers.is_empty() || self.unsent.len() >= batching.count {
            return None;
        }
        let front = *self.unsent.front()?;
        let first = entries.get(&front)?;
        let hurry = self.urgent.is_some_and(|urgent| front <= urgent) || self.unsent_bytes >= batching.bytes;
        if hurry || first.alone || !first.publication.joins {
            return None;
        }
        // What waits already goes on waiting for the same time.
        Some(*self.company_until.get_or_insert_with(|| Instant::now() + batching.age))
    }
}

/// Takes entries that are gone off the front.
fn trim(list: &mut VecDeque<Sequence>, entries: &Entries) {
    while list.front().is_some_and(|first| !entries.contains_key(first)) {
        list.pop_front();
    }
}
