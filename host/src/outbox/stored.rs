//! Entries whose texts are on the disk only: a few bytes of each are in memory.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use super::log::Spot;
use super::{Class, Sequence};
use crate::clock::Moment;
use crate::message::DeviceId;

/// What an entry costs beside its texts.
pub(super) const OVERHEAD: usize = 96;

/// See the module documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stored {
    pub sequence: Sequence,
    pub spot: Spot,
    /// What it counts as in the outbox's bounds.
    pub cost: u32,
    /// The steady clock when it was accepted.
    seconds: u32,
}

impl Stored {
    /// An entry that lies there, with texts of this many bytes.
    pub(super) fn new(sequence: Sequence, spot: Spot, texts: usize, accepted: Moment) -> Stored {
        let cost = u32::try_from(OVERHEAD + texts).unwrap_or(u32::MAX);
        Stored { sequence, spot, cost, seconds: u32::try_from(accepted.steady / 1000).unwrap_or(u32::MAX) }
    }

    /// When it was accepted, to a second.
    pub(super) fn accepted(&self) -> Moment {
        Moment { wall: 0, steady: u64::from(self.seconds) * 1000 }
    }
}

/// Something for each class.
pub(super) type ByClass<T> = [T; 4];

const CLASSES: ByClass<Class> = [Class::Log, Class::Telemetry, Class::Keep, Class::Answer];

/// The stored entries of one device, in order by class.
#[derive(Debug, Default)]
pub(super) struct Shelf(ByClass<VecDeque<Stored>>);

impl Shelf {
    /// Puts entries in order, where the later copy of two counts, and gives the others.
    pub(super) fn from_unsorted(mut classes: ByClass<Vec<Stored>>) -> (Shelf, Vec<Stored>) {
        let mut copies = Vec::new();
        for entries in &mut classes {
            let key = |entry: &Stored| (entry.sequence, std::cmp::Reverse((entry.spot.file, entry.spot.at)));
            if !entries.is_sorted_by_key(key) {
                entries.sort_unstable_by_key(key);
            }
            entries.dedup_by(|next, first| {
                let is_copy = next.sequence == first.sequence;
                copies.extend(is_copy.then_some(*next));
                is_copy
            });
            entries.shrink_to_fit();
        }
        (Shelf(classes.map(VecDeque::from)), copies)
    }

    /// The entries of a class.
    pub(super) fn of(&self, class: Class) -> &VecDeque<Stored> {
        let [logs, telemetry, keeps, answers] = &self.0;
        match class {
            Class::Log => logs,
            Class::Telemetry => telemetry,
            Class::Keep => keeps,
            Class::Answer => answers,
        }
    }

    /// The same, to change them.
    pub(super) fn of_mut(&mut self, class: Class) -> &mut VecDeque<Stored> {
        let [logs, telemetry, keeps, answers] = &mut self.0;
        match class {
            Class::Log => logs,
            Class::Telemetry => telemetry,
            Class::Keep => keeps,
            Class::Answer => answers,
        }
    }

    /// The first one that is an answer, or that is none.
    pub(super) fn first(&self, is_answer: bool) -> Option<Sequence> {
        let first = |class| self.of(class).front().map(|entry| entry.sequence);
        match is_answer {
            true => first(Class::Answer),
            false => [Class::Log, Class::Telemetry, Class::Keep].into_iter().filter_map(first).min(),
        }
    }

    /// The first one of each class.
    pub(super) fn firsts(&self) -> impl Iterator<Item = &Stored> {
        self.0.iter().filter_map(VecDeque::front)
    }

    /// The last one.
    pub(super) fn last(&self) -> Option<Sequence> {
        self.0.iter().filter_map(|entries| Some(entries.back()?.sequence)).max()
    }

    /// Those that are loaded next: answers, then the rest in its order.
    pub(super) fn next(&self) -> impl Iterator<Item = (Class, Stored)> {
        let answers = self.of(Class::Answer).iter().map(|entry| (Class::Answer, *entry));
        let of = |class| self.of(class).iter().map(move |entry| (class, *entry)).peekable();
        let mut rest = [Class::Log, Class::Telemetry, Class::Keep].map(of);
        let first = move || {
            let firsts = rest.iter_mut().filter_map(|of| Some((of.peek()?.1.sequence, of)));
            firsts.min_by_key(|(sequence, _)| *sequence).and_then(|(_, of)| of.next())
        };
        answers.chain(std::iter::from_fn(first))
    }

    /// Adds an entry where it belongs: most often at the end.
    pub(super) fn insert(&mut self, class: Class, entry: Stored) {
        let entries = self.of_mut(class);
        let is_last = entries.back().is_none_or(|last| last.sequence < entry.sequence);
        let place = match is_last {
            true => entries.len(),
            false => entries.partition_point(|other| other.sequence < entry.sequence),
        };
        entries.insert(place, entry);
    }

    /// The entry with this number.
    pub(super) fn find(&mut self, class: Class, sequence: Sequence) -> Option<&mut Stored> {
        let entries = self.of_mut(class);
        let place = entries.binary_search_by_key(&sequence, |entry| entry.sequence).ok()?;
        entries.get_mut(place)
    }

    /// Takes the entry with this number out.
    pub(super) fn remove(&mut self, class: Class, sequence: Sequence) -> Option<Stored> {
        let entries = self.of_mut(class);
        let place = entries.binary_search_by_key(&sequence, |entry| entry.sequence).ok()?;
        entries.remove(place)
    }

    /// Takes entries out, whose numbers are in order; at once, because the rest moves up.
    pub(super) fn remove_all(&mut self, class: Class, sequences: &[Sequence]) -> Vec<Stored> {
        let (Some(first), Some(last)) = (sequences.first(), sequences.last()) else { return Vec::new() };
        let entries = self.of_mut(class);
        let from = entries.partition_point(|entry| entry.sequence < *first);
        let to = entries.partition_point(|entry| entry.sequence <= *last);
        let (removed, kept): (Vec<Stored>, Vec<Stored>) =
            entries.range(from..to).partition(|entry| sequences.binary_search(&entry.sequence).is_ok());
        entries.range_mut(from..from + kept.len()).zip(kept).for_each(|(place, entry)| *place = entry);
        entries.drain(to - removed.len()..to);
        removed
    }

    /// All entries.
    pub(super) fn all(&self) -> impl Iterator<Item = (Class, &Stored)> {
        CLASSES.into_iter().flat_map(|class| self.of(class).iter().map(move |entry| (class, entry)))
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.iter().map(VecDeque::len).sum()
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Stored entries by device, as they are found in a log.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub devices: FxHashMap<DeviceId, ByClass<Vec<Stored>>>,
}

impl Found {
    /// Adds an entry of a device.
    pub(super) fn add(&mut self, device: &str, class: Class, entry: Stored) {
        if !self.devices.contains_key(device) {
            self.devices.insert(DeviceId::new(device), Default::default());
        }
        if let Some(classes) = self.devices.get_mut(device) {
            let [logs, telemetry, keeps, answers] = classes;
            match class {
                Class::Log => logs,
                Class::Telemetry => telemetry,
                Class::Keep => keeps,
                Class::Answer => answers,
            }
            .push(entry);
        }
    }
}
