//! Messages at which a broker may have closed the connection, because one of
//! them is too large for it or on a topic that it forbids. One message that
//! it cannot take must not stop all others for ever.
//!
//! After some such losses each message goes by itself; one that the broker
//! has closed several connections at, while it took others, is given up, and
//! for a while those like it at once: on its topic and not smaller.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::outbox::Sequence;

/// Losses in a row after which each message goes by itself.
const LOSSES: u32 = 2;
/// Losses with the same single message on the way after which it is given up.
const ALONE: u32 = 3;
/// How long those like it are given up at once.
pub(super) const BAN: Duration = Duration::from_secs(600);

/// See the module documentation. It outlives connections.
#[derive(Debug, Default)]
pub struct Suspects {
    losses: u32,
    suspects: HashSet<Sequence>,
    /// What was alone on the way at the last loss, and at how many in a row.
    accused: Option<(Sequence, u32)>,
    /// The smallest payload in bytes that is given up, by topic, and until when.
    banned: HashMap<Arc<str>, (usize, Instant)>,
}

impl Suspects {
    /// The broker closed a working connection while these had no proof, and
    /// messages that are not from the outbox (none); gives the one that is to be given up.
    pub(super) fn lost(&mut self, unproved: &[Option<Sequence>]) -> Option<Sequence> {
        unproved.iter().flatten().next()?;
        self.suspects.extend(unproved.iter().flatten());
        self.losses += 1;
        let [Some(only)] = *unproved else {
            self.accused = None;
            return None;
        };
        let times = self.accused.filter(|(accused, _)| *accused == only).map_or(0, |(_, times)| times) + 1;
        self.accused = Some((only, times));
        if times < ALONE {
            return None;
        }
        self.accused = None;
        self.suspects.remove(&only);
        Some(only)
    }

    /// The broker took a message; `holds` says which are still to be sent at all.
    pub(super) fn proved(&mut self, sequence: Sequence, holds: impl Fn(Sequence) -> bool) {
        self.suspects.remove(&sequence);
        if self.is_careful() {
            self.suspects.retain(|suspect| holds(*suspect));
        }
        if self.suspects.is_empty() {
            self.losses = 0;
        }
    }

    /// Gives up what is like a message that was given up.
    pub(super) fn ban(&mut self, topic: Arc<str>, size: usize, now: Instant) {
        self.banned.retain(|_, (_, until)| *until > now);
        let (smallest, until) = self.banned.entry(topic).or_insert((size, now));
        (*smallest, *until) = (size.min(*smallest), now + BAN);
    }

    /// Whether a message is given up at once.
    pub(super) fn is_banned(&self, topic: &str, size: usize, now: Instant) -> bool {
        // Most often there is none.
        !self.banned.is_empty()
            && self.banned.get(topic).is_some_and(|(smallest, until)| size >= *smallest && now < *until)
    }

    /// Whether each message is to go by itself.
    pub(super) fn is_careful(&self) -> bool {
        self.losses >= LOSSES && !self.suspects.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_at_which_the_broker_closes_again_and_again_is_found_among_others() {
        let mut suspects = Suspects::default();
        assert_eq!(suspects.lost(&[Some(1), Some(2), Some(3), None]), None);
        assert!(!suspects.is_careful());
        assert_eq!(suspects.lost(&[Some(1), Some(2), Some(3), None]), None);
        assert!(suspects.is_careful());
        suspects.proved(1, |_| true);
        for _ in 0..2 {
            assert_eq!(suspects.lost(&[Some(2)]), None);
        }
        assert_eq!(suspects.lost(&[Some(2)]), Some(2));
        assert!(suspects.is_careful(), "the third is still a suspect");
        suspects.proved(3, |_| true);
        assert!(!suspects.is_careful());
    }

    #[test]
    fn a_bad_line_that_is_cut_at_other_messages_each_time_accuses_none() {
        let mut suspects = Suspects::default();
        for sequence in 0..20 {
            assert_eq!(suspects.lost(&[Some(sequence)]), None);
            suspects.proved(sequence, |_| true);
        }
        assert!(!suspects.is_careful());
    }

    #[test]
    fn what_is_like_a_message_that_was_given_up_is_given_up_for_a_while() {
        let (mut suspects, now) = (Suspects::default(), Instant::now());
        suspects.ban("t".into(), 100, now);
        suspects.ban("t".into(), 90, now);
        for (topic, size, time, banned) in
            [("t", 90, now, true), ("t", 89, now, false), ("u", 100, now, false), ("t", 100, now + BAN, false)]
        {
            assert_eq!(suspects.is_banned(topic, size, time), banned, "{topic} {size}");
        }
    }

    #[test]
    fn a_suspect_that_was_dropped_meanwhile_does_not_keep_the_rest_slow() {
        let mut suspects = Suspects::default();
        for _ in 0..2 {
            suspects.lost(&[Some(1), Some(2)]);
        }
        suspects.proved(2, |sequence| sequence != 1);
        assert!(!suspects.is_careful());
    }
}
