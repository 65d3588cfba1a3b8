//! One device's messages in an outbox, and which of them goes next.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::thinning::Thinning;
use super::{Entries, Place};
use crate::clock::Moment;
use crate::message::Publication;
use crate::outbox::record::Message;
use crate::outbox::stored::Shelf;
use crate::outbox::{Batching, Bounds, Class, Sequence};

/// Places in a list that entries may take which are gone, beside as many as there are others.
const SPARE: usize = 64;

/// One device's messages. All lists are in order and may hold entries that are
/// gone, but never at their front.
#[derive(Debug, Default)]
pub(in crate::outbox) struct DeviceQueue {
    /// What is to be sent, by topic: each topic keeps its order, and can be paused.
    pub(super) lanes: Vec<Lane>,
    /// What may be dropped, sent or not.
    pub(super) logs: VecDeque<Sequence>,
    pub(super) telemetry: VecDeque<Sequence>,
    pub(super) thinning: Thinning,
    /// What is on the disk only; later than what is loaded, but for what came
    /// when the disk did not take it.
    pub(in crate::outbox) shelf: Shelf,
    /// Whether it is in the list of those whose shelf is to be looked into.
    pub(super) is_hungry: bool,
    pub(super) bytes: usize,
    /// Size of what is loaded and unsent, and of what is not in the log.
    pub(super) unsent_bytes: usize,
    pub(super) unwritten_bytes: usize,
    pub(super) turn: Turn,
    /// Nothing is sent before.
    pub(super) paused_until: Option<Instant>,
    /// When the first unsent message has waited long enough for others.
    pub(super) linger_until: Option<Instant>,
    /// How many entries it has.
    pub(super) count: usize,
    /// Up to this entry nothing waits for a batch: someone waits for it.
    pub(super) urgent: Option<Sequence>,
    /// The last entry of each set of properties, the latest last.
    pub(super) sets: VecDeque<(u64, Sequence)>,
    /// How much of the messages is due to what is not live, in percent of one.
    pub(super) due: u32,
}

/// The unsent messages of a device on one topic.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) topic: Arc<str>,
    pub(super) rank: Rank,
    pub(super) unsent: VecDeque<Sequence>,
    pub(super) paused_until: Option<Instant>,
}

/// What goes before what else a device has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::outbox) enum Rank {
    /// Somebody waits for it.
    Answer,
    /// It came since the connection stands, where that goes first.
    Live,
    /// The rest, in its order.
    Ordinary,
}

/// Where a device stands in the order of sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Turn {
    /// It has nothing to send.
    #[default]
    None,
    /// It is in the list of turns.
    Now,
    /// It waits until then.
    At(Instant),
}

/// What is dropped next of a device.
#[derive(Debug, Clone, Copy)]
pub(super) enum Oldest {
    Loaded(Sequence),
    Stored(Class, Sequence),
}

impl DeviceQueue {
    /// The list of unsent entries where one belongs.
    pub(super) fn lane(&mut self, message: &Message, rank: Rank) -> &mut VecDeque<Sequence> {
        let topic = &message.publication.topic;
        let found = self.lanes.iter().position(|lane| lane.rank == rank && lane.topic == *topic);
        let place = found.unwrap_or_else(|| {
            // What is paused is the topic.
            let others = self.lanes.iter().filter(|lane| lane.topic == *topic);
            let paused_until = others.filter_map(|lane| lane.paused_until).max();
            self.lanes.push(Lane { topic: Arc::clone(topic), rank, unsent: VecDeque::new(), paused_until });
            self.lanes.len() - 1
        });
        #[allow(clippy::indexing_slicing)] // found, or pushed right here
        &mut self.lanes[place].unsent
    }

    /// How many loaded entries may go before what is stored.
    pub(super) fn ready(&self) -> usize {
        let stored = self.shelf.first(false).unwrap_or(Sequence::MAX);
        let lanes = self.lanes.iter().filter(|lane| lane.rank == Rank::Ordinary);
        lanes.map(|lane| lane.unsent.partition_point(|sequence| *sequence < stored)).sum()
    }

    /// Takes an unsent entry out of the lists.
    pub(super) fn take_out(&mut self, sequence: Sequence) {
        let lists = self.lanes.iter_mut().map(|lane| &mut lane.unsent).chain([&mut self.logs, &mut self.telemetry]);
        for list in lists {
            if let Ok(place) = list.binary_search(&sequence) {
                list.remove(place);
            }
        }
    }

    /// Whether entries from this number on wait without being live.
    pub(super) fn has_ordinary_from(&self, number: Sequence) -> bool {
        let lanes = self.lanes.iter().filter(|lane| lane.rank == Rank::Ordinary);
        let lasts = lanes.filter_map(|lane| lane.unsent.back().copied());
        lasts.chain(self.shelf.last()).any(|last| last >= number)
    }

    /// The loaded entries that what is stored goes before.
    pub(super) fn behind_shelf(&self) -> Vec<Sequence> {
        let Some(stored) = self.shelf.first(false) else { return Vec::new() };
        let lanes = self.lanes.iter().filter(|lane| lane.rank == Rank::Ordinary);
        lanes.flat_map(|lane| lane.unsent.iter().copied().filter(|sequence| *sequence > stored)).collect()
    }

    /// What was live is not any more.
    pub(super) fn age(&mut self) {
        let (live, mut lanes): (Vec<Lane>, Vec<Lane>) =
            std::mem::take(&mut self.lanes).into_iter().partition(|lane| lane.rank == Rank::Live);
        for mut lane in live {
            match lanes.iter_mut().find(|other| other.rank == Rank::Ordinary && other.topic == lane.topic) {
                Some(other) => {
                    other.unsent.append(&mut lane.unsent);
                    other.unsent.make_contiguous().sort_unstable();
                    other.paused_until = other.paused_until.max(lane.paused_until);
                }
                None => lanes.push(Lane { rank: Rank::Ordinary, ..lane }),
            }
        }
        self.lanes = lanes;
    }

    /// The lanes that may send, each with its first message.
    fn open(&self) -> impl Iterator<Item = (usize, Rank, Sequence)> {
        let open = self.lanes.iter().enumerate().filter(|(_, lane)| lane.paused_until.is_none());
        open.filter_map(|(place, lane)| Some((place, lane.rank, *lane.unsent.front()?)))
    }

    /// The lane whose first message goes next: answers first, then what is live,
    /// unless the rest is due; of each the oldest.
    fn next_lane(&self) -> Option<usize> {
        let [answer, live, ordinary] = [Rank::Answer, Rank::Live, Rank::Ordinary].map(|rank| self.first_of(rank));
        let first = answer.or(if self.due >= 100 { ordinary.or(live) } else { live.or(ordinary) });
        first.map(|(_, place)| place)
    }

    /// The first message of a rank that may go, and its lane. What is stored and
    /// older goes before.
    fn first_of(&self, rank: Rank) -> Option<(Sequence, usize)> {
        let stored = match rank {
            Rank::Answer => self.shelf.first(true),
            Rank::Live => None,
            Rank::Ordinary => self.shelf.first(false),
        };
        let own = self.open().filter(|(_, other, _)| *other == rank).map(|(place, _, first)| (first, place));
        own.min().filter(|(first, _)| stored.is_none_or(|stored| *first < stored))
    }

    /// The first unsent message of a rank that is not in this lane.
    fn first_of_others(&self, place: usize, rank: Rank) -> Option<Sequence> {
        let others = self.open().filter(|(other, of, _)| *other != place && *of == rank).map(|(_, _, first)| first);
        others.chain(self.shelf.first(false).filter(|_| rank == Rank::Ordinary)).min()
    }

    /// Counts what goes for its share.
    fn count_share(&mut self, rank: Rank, backfill: u8) {
        let share = u32::from(backfill.clamp(1, 99));
        let waits = self.first_of(Rank::Ordinary).is_some() || !self.shelf.is_empty();
        match rank {
            Rank::Answer => {}
            Rank::Live if waits => self.due = (self.due + share * 100 / (100 - share)).min(10_000),
            Rank::Live => self.due = 0,
            Rank::Ordinary => self.due = self.due.saturating_sub(100),
        }
    }

    pub(super) fn next_turn(&mut self, entries: &Entries, batching: Batching) -> Turn {
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
        if batching.age == Duration::ZERO || lane.rank == Rank::Answer || lane.unsent.len() >= batching.count {
            return None;
        }
        let front = *lane.unsent.front()?;
        let first = entries.get(&front)?;
        let follow = lane.rank == Rank::Ordinary && !self.shelf.is_empty();
        let is_full = self.unsent_bytes >= batching.bytes || follow;
        let hurry = self.urgent.is_some_and(|urgent| front <= urgent) || is_full;
        if hurry || first.message.alone || !first.message.publication.joins {
            return None;
        }
        // What waits already goes on waiting for the same time.
        Some(*self.linger_until.get_or_insert_with(|| Instant::now() + batching.age))
    }

    pub(super) fn end_pauses(&mut self, now: Instant) {
        self.paused_until = self.paused_until.filter(|until| *until > now);
        for lane in &mut self.lanes {
            lane.paused_until = lane.paused_until.filter(|until| *until > now);
        }
    }

    /// The oldest log line.
    pub(super) fn oldest_log(&self) -> Option<Oldest> {
        self.older(Class::Log, self.logs.front().copied())
    }

    /// The oldest sample.
    pub(super) fn oldest_sample(&self) -> Option<Oldest> {
        self.older(Class::Telemetry, self.telemetry.front().copied())
    }

    /// How many log lines there are, about.
    pub(super) fn log_lines(&self) -> usize {
        self.logs.len() + self.shelf.of(Class::Log).len()
    }

    /// What is dropped first.
    pub(super) fn oldest(&self) -> Option<Oldest> {
        let fronts = |is_answer: bool| {
            let lanes = self.lanes.iter().filter(move |lane| (lane.rank == Rank::Answer) == is_answer);
            lanes.filter_map(|lane| lane.unsent.front().copied()).min()
        };
        let keep = || self.older(Class::Keep, fronts(false));
        self.oldest_log()
            .or_else(|| self.oldest_sample())
            .or_else(keep)
            .or_else(|| self.older(Class::Answer, fronts(true)))
    }

    /// The older one of a loaded entry and the first stored one of its class.
    fn older(&self, class: Class, loaded: Option<Sequence>) -> Option<Oldest> {
        match (loaded, self.shelf.of(class).front().map(|entry| entry.sequence)) {
            (Some(loaded), Some(stored)) if stored < loaded => Some(Oldest::Stored(class, stored)),
            (Some(loaded), _) => Some(Oldest::Loaded(loaded)),
            (None, stored) => stored.map(|stored| Oldest::Stored(class, stored)),
        }
    }

    /// How many places its lists take.
    #[cfg(test)]
    pub(in crate::outbox) fn held(&self) -> usize {
        self.lanes.iter().map(|lane| lane.unsent.len()).sum::<usize>() + self.logs.len() + self.telemetry.len()
    }

    /// The next unsent entry and those that may go with it, now sent. A batch
    /// ends where a message on another topic is older.
    pub(super) fn take(&mut self, entries: &mut Entries, bounds: &Bounds, now: Moment) -> Vec<(Sequence, Publication)> {
        let mut parts: Vec<(Sequence, Publication)> = Vec::new();
        let Some(place) = self.next_lane() else { return parts };
        let Some(rank) = self.lanes.get(place).map(|lane| lane.rank) else { return parts };
        let limit = self.first_of_others(place, rank).unwrap_or(Sequence::MAX);
        if let Some(backfill) = bounds.backfill {
            self.count_share(rank, backfill);
        }
        let Some(lane) = self.lanes.get_mut(place) else { return parts };
        let batching = bounds.batching;
        if rank != Rank::Answer {
            self.linger_until = None;
        }
        let mut bytes = 0;
        while let Some(sequence) = lane.unsent.front().copied() {
            let Some(entry) = entries.get(&sequence) else {
                lane.unsent.pop_front();
                continue;
            };
            bytes += entry.message.publication.payload.len() + 1;
            if let Some((first, _)) = parts.first() {
                let fits = entries.get(first).is_some_and(|first| first.joins(entry));
                let is_full = parts.len() >= batching.count || bytes > batching.bytes;
                if !fits || is_full || (sequence > limit && rank != Rank::Answer) {
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
    pub(super) fn tidy(&mut self, entries: &Entries) {
        let most = 2 * (self.count - self.shelf.len()) + SPARE;
        let lanes = self.lanes.iter_mut().map(|lane| &mut lane.unsent);
        for list in lanes.chain([&mut self.logs, &mut self.telemetry]) {
            trim(list, entries);
            if list.len() > most {
                list.retain(|sequence| entries.contains_key(sequence));
            }
        }
    }

    pub(super) fn sort(&mut self, entries: &Entries) {
        for lane in &mut self.lanes {
            lane.unsent.make_contiguous().sort_unstable();
            trim(&mut lane.unsent, entries);
        }
    }

    pub(super) fn clear(&mut self) {
        self.logs.clear();
        self.telemetry.clear();
        self.lanes.iter_mut().for_each(|lane| lane.unsent.clear());
        self.turn = Turn::None;
    }
}

/// Adds a number where it belongs: most often at the end.
pub(super) fn push_in_order(list: &mut VecDeque<Sequence>, sequence: Sequence) {
    let is_last = list.back().is_none_or(|last| *last < sequence);
    let place = if is_last { list.len() } else { list.partition_point(|other| *other < sequence) };
    list.insert(place, sequence);
}

/// Takes entries that are gone off the front.
fn trim(list: &mut VecDeque<Sequence>, entries: &Entries) {
    while list.front().is_some_and(|first| !entries.contains_key(first)) {
        list.pop_front();
    }
}
