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

/// The stored entries of one device, in order by class.
#[derive(Debug, Default)]
pub(super) struct Shelf([VecDeque<Stored>; 3]);

impl Shelf {
    /// Puts entries in order, where the later copy of two counts, and gives the others.
    pub(super) fn from_unsorted(mut classes: [Vec<Stored>; 3]) -> (Shelf, Vec<Stored>) {
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
        let [streams, keeps, answers] = &self.0;
        match class {
            Class::Stream => streams,
            Class::Keep => keeps,
            Class::Answer => answers,
        }
    }

    /// The same, to change them.
    pub(super) fn of_mut(&mut self, class: Class) -> &mut VecDeque<Stored> {
        let [streams, keeps, answers] = &mut self.0;
        match class {
            Class::Stream => streams,
            Class::Keep => keeps,
            Class::Answer => answers,
        }
    }

    /// The first one that is an answer, or that is none.
    pub(super) fn first(&self, is_answer: bool) -> Option<Sequence> {
        let first = |class| self.of(class).front().map(|entry| entry.sequence);
        match is_answer {
            true => first(Class::Answer),
            false => [first(Class::Stream), first(Class::Keep)].into_iter().flatten().min(),
        }
    }

    /// The last one.
    pub(super) fn last(&self) -> Option<Sequence> {
        self.0.iter().filter_map(|entries| Some(entries.back()?.sequence)).max()
    }

    /// Those that are loaded next: answers, then the rest in its order.
    pub(super) fn next(&self) -> impl Iterator<Item = (Class, Stored)> {
        let answers = self.of(Class::Answer).iter().map(|entry| (Class::Answer, *entry));
        let mut streams = self.of(Class::Stream).iter().copied().peekable();
        let mut keeps = self.of(Class::Keep).iter().copied().peekable();
        let rest = std::iter::from_fn(move || {
            let is_stream = match (streams.peek(), keeps.peek()) {
                (Some(stream), Some(keep)) => stream.sequence < keep.sequence,
                (stream, _) => stream.is_some(),
            };
            match is_stream {
                true => streams.next().map(|entry| (Class::Stream, entry)),
                false => keeps.next().map(|entry| (Class::Keep, entry)),
            }
        });
        answers.chain(rest)
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

    /// All entries.
    pub(super) fn all(&self) -> impl Iterator<Item = (Class, &Stored)> {
        let classes = [Class::Stream, Class::Keep, Class::Answer];
        classes.into_iter().flat_map(|class| self.of(class).iter().map(move |entry| (class, entry)))
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
    pub devices: FxHashMap<DeviceId, [Vec<Stored>; 3]>,
}

impl Found {
    /// Adds an entry of a device.
    pub(super) fn add(&mut self, device: &str, class: Class, entry: Stored) {
        if !self.devices.contains_key(device) {
            self.devices.insert(DeviceId::new(device), Default::default());
        }
        if let Some(classes) = self.devices.get_mut(device) {
            let [streams, keeps, answers] = classes;
            match class {
                Class::Stream => streams,
                Class::Keep => keeps,
                Class::Answer => answers,
            }
            .push(entry);
        }
    }
}
