//! Messages at which a broker may have closed the connection, because one of
//! them is too large for it or on a topic that it forbids. One message that
//! it cannot take must not stop all others for ever.
//!
//! After some such losses each message goes by itself. One that the broker has
//! closed several connections at is given up when others passed meanwhile, or
//! when it goes on for a minute; and for a while those like it are, at once:
//! on its topic and not smaller.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::outbox::Sequence;

/// Losses in a row after which each message goes by itself.
const LOSSES: u32 = 2;
/// Losses with a message alone on the way after which it is given up.
const ALONE: u32 = 3;
/// How long they must go on when no other message passes.
const STUCK: Duration = Duration::from_secs(60);
/// How long those like it are given up at once.
pub(super) const BAN: Duration = Duration::from_secs(600);

/// See the module documentation. It outlives connections.
#[derive(Debug, Default)]
pub struct Suspects {
    losses: u32,
    suspects: HashSet<Sequence>,
    /// What was alone on the way at a loss.
    accused: HashMap<Sequence, Accusation>,
    /// How many messages the broker took.
    proofs: u64,
    /// How many it had taken when this was last asked.
    proofs_seen: u64,
    /// The smallest payload in bytes that is given up, by topic, and until when.
    banned: HashMap<Arc<str>, (usize, Instant)>,
}

/// How often a message was alone on the way at a loss, and since when.
#[derive(Debug, Clone, Copy)]
struct Accusation {
    times: u32,
    since: Instant,
    proofs: u64,
}

impl Suspects {
    /// The broker closed a working connection while these had no proof, and
    /// messages that are not from the outbox (none); without an answer to
    /// SUBSCRIBE it may be that which it closes at. Gives the message that is to be given up.
    pub(super) fn lost(
        &mut self,
        unproved: &[Option<Sequence>],
        is_subscribed: bool,
        now: Instant,
    ) -> Option<Sequence> {
        unproved.iter().flatten().next()?;
        self.suspects.extend(unproved.iter().flatten());
        self.losses += 1;
        let [Some(only)] = *unproved else { return None };
        if !is_subscribed {
            return None;
        }
        let new = Accusation { times: 0, since: now, proofs: self.proofs };
        let accusation = self.accused.entry(only).or_insert(new);
        accusation.times += 1;
        let is_proved = self.proofs > accusation.proofs || now.duration_since(accusation.since) >= STUCK;
        if accusation.times < ALONE || !is_proved {
            return None;
        }
        self.accused.remove(&only);
        self.suspects.remove(&only);
        Some(only)
    }

    /// The broker took a message; `holds` says which are still to be sent at all.
    pub(super) fn proved(&mut self, sequence: Sequence, holds: impl Fn(Sequence) -> bool) {
        self.proofs += 1;
        self.suspects.remove(&sequence);
        self.accused.remove(&sequence);
        if self.is_careful() {
            self.suspects.retain(|suspect| holds(*suspect));
            self.accused.retain(|suspect, _| holds(*suspect));
        }
        if self.suspects.is_empty() {
            self.losses = 0;
        }
    }

    /// Whether the broker took something since this was last asked.
    pub(super) fn progressed(&mut self) -> bool {
        std::mem::replace(&mut self.proofs_seen, self.proofs) != self.proofs
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

    const ONE: [Option<Sequence>; 1] = [Some(1)];
    const TWO: [Option<Sequence>; 1] = [Some(2)];

    #[test]
    fn the_messages_at_which_the_broker_closes_again_and_again_are_found_among_others() {
        let (mut suspects, now) = (Suspects::default(), Instant::now());
        assert_eq!(suspects.lost(&[Some(1), Some(2), Some(3), None], true, now), None);
        assert!(!suspects.is_careful());
        assert_eq!(suspects.lost(&[Some(1), Some(2), Some(3), None], true, now), None);
        assert!(suspects.is_careful());
        // Of two devices, in turns.
        for _ in 0..2 {
            assert_eq!((suspects.lost(&ONE, true, now), suspects.lost(&TWO, true, now)), (None, None));
        }
        assert_eq!(suspects.lost(&ONE, true, now), None, "nothing else has passed yet");
        suspects.proved(3, |_| true);
        assert_eq!((suspects.lost(&ONE, true, now), suspects.lost(&TWO, true, now)), (Some(1), Some(2)));
        assert!(!suspects.is_careful());
    }

    #[test]
    fn a_message_that_alone_is_stuck_for_long_is_given_up() {
        let (mut suspects, now) = (Suspects::default(), Instant::now());
        for second in 0..60 {
            assert_eq!(suspects.lost(&ONE, true, now + Duration::from_secs(second)), None);
        }
        assert_eq!(suspects.lost(&ONE, true, now + STUCK), Some(1));
    }

    #[test]
    fn a_bad_line_that_is_cut_at_other_messages_each_time_accuses_none() {
        let (mut suspects, now) = (Suspects::default(), Instant::now());
        for sequence in 0..20 {
            assert_eq!(suspects.lost(&[Some(sequence)], true, now), None);
            suspects.proved(sequence, |_| true);
            assert!(suspects.progressed() && !suspects.progressed());
        }
        assert!(!suspects.is_careful() && suspects.accused.is_empty());
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
    fn a_subscription_at_which_the_broker_closes_accuses_no_message() {
        let (mut suspects, now) = (Suspects::default(), Instant::now());
        for second in 0..200 {
            assert_eq!(suspects.lost(&ONE, false, now + Duration::from_secs(second)), None);
        }
        assert!(suspects.is_careful() && suspects.accused.is_empty());
    }

    #[test]
    fn a_suspect_that_was_dropped_meanwhile_does_not_keep_the_rest_slow() {
        let (mut suspects, now) = (Suspects::default(), Instant::now());
        for _ in 0..2 {
            suspects.lost(&[Some(1), Some(2)], true, now);
        }
        suspects.proved(2, |sequence| sequence != 1);
        assert!(!suspects.is_careful());
    }
}
