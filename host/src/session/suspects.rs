//! Messages at which a broker may have closed the connection, because one of
//! them is too large for it or on a topic that it forbids. One message that
//! it cannot take must not stop all others for ever; and a way to the broker
//! that is cut again and again must not cost a message.
//!
//! After two such losses each message goes by itself. A message is only to
//! blame when it was alone at three of them while others like it passed
//! between. Then it is held back, and tried again now and then: the broker may
//! have changed its mind. It is dropped when that goes on for a quarter of an
//! hour. When the next message on its topic fares the same, the topic waits
//! as a whole, and one message is tried at a time. When all are hit alike, it
//! is the way and no message.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::message::DeviceId;
use crate::outbox::Sequence;

/// Losses in a row after which each message goes by itself.
const LOSSES: u32 = 2;
/// Losses with a message alone on the way after which it is held back.
const ALONE: u32 = 3;
/// Messages like it that must have passed meanwhile.
const OTHERS: u64 = 2;
/// How long a device waits after such a loss, so that others are tried: at first, at most.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(40);
/// Losses with a message alone after which its device's wait is told of.
const TOLD: u32 = 5;
/// How long a message that is held back waits: at first, at most.
const SHORTEST_WAIT: Duration = Duration::from_secs(60);
const LONGEST_WAIT: Duration = Duration::from_secs(480);
/// How long a topic waits: at first, at most. A broker that is well again gets
/// all within a minute.
const SHORTEST_CLOSED: Duration = Duration::from_secs(10);
const LONGEST_CLOSED: Duration = Duration::from_secs(40);
/// When a message that is tried again in vain is dropped: not before, and not
/// with fewer tries.
const GIVE_UP: Duration = Duration::from_secs(900);
const TRIES: u32 = 4;

/// Something on its way: a message, or several as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Suspect {
    /// Its entries of the outbox.
    pub sequences: Vec<Sequence>,
    pub device: DeviceId,
    pub topic: Arc<str>,
    /// What it is, whatever its device: messages of one kind are like each other.
    pub kind: String,
}

/// What is to be done about a message after a loss.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing: nobody is to blame, or nobody knows who.
    None,
    /// Its device waits a little, so that others are tried; that is told once,
    /// when others pass.
    LetOthersTry { until: Instant, is_told: bool },
    /// Each of the messages that went as one goes by itself from now on.
    Split,
    /// It waits by itself.
    HoldBack,
    /// Everything on its topic waits; `is_new` the first time.
    CloseTopic { until: Instant, is_new: bool },
    /// It is dropped.
    Drop,
}

/// See the module documentation. It outlives connections.
#[derive(Debug, Default)]
pub struct Suspects {
    losses: u32,
    suspects: HashSet<Sequence>,
    /// What was alone on the way at a loss.
    accused: HashMap<Sequence, Accusation>,
    /// Messages that the broker took, by kind.
    passed: HashMap<String, u64>,
    /// What is held back, and since when.
    held: BTreeMap<Sequence, Trial>,
    /// Topics of which a message was held back; with a trial, those that wait as a whole.
    topics: HashMap<Arc<str>, Option<Trial>>,
    /// Messages that the broker took, all together; and when this was asked last.
    proofs: u64,
    proofs_seen: u64,
}

/// How often a message was alone on the way at a loss.
#[derive(Debug, Clone, Copy)]
struct Accusation {
    times: u32,
    /// Messages of its kind that had passed at the first of these losses, and at the last.
    passed_first: u64,
    passed_last: u64,
    /// Messages of any kind that had passed at the first.
    proofs_first: u64,
}

/// What is tried again and again.
#[derive(Debug, Clone, Copy)]
struct Trial {
    since: Instant,
    tries: u32,
    next: Instant,
}

impl Suspects {
    /// The broker closed a working connection while these had no proof; none
    /// stands for a message that is not from the outbox. Without an answer to
    /// SUBSCRIBE it may be that which it closes at.
    pub(super) fn lost(&mut self, unproved: &[Option<Suspect>], is_subscribed: bool, now: Instant) -> Verdict {
        if unproved.iter().flatten().next().is_none() {
            return Verdict::None;
        }
        self.suspects.extend(unproved.iter().flatten().flat_map(|suspect| &suspect.sequences));
        self.losses += 1;
        let [Some(only)] = unproved else { return Verdict::None };
        let Some(first) = only.sequences.first().copied().filter(|_| is_subscribed) else { return Verdict::None };
        let passed = self.passed.get(&only.kind).copied().unwrap_or_default();
        let new = Accusation { times: 0, passed_first: passed, passed_last: passed, proofs_first: self.proofs };
        let accusation = self.accused.entry(first).or_insert(new);
        accusation.times += 1;
        let since_last = passed - std::mem::replace(&mut accusation.passed_last, passed);
        let (times, since_first) = (accusation.times, passed - accusation.passed_first);
        let proofs_first = accusation.proofs_first;
        // One that was tried before needs no more evidence than that others pass all the while.
        let is_known = self.held.contains_key(&first) || self.topics.contains_key(&only.topic);
        let is_to_blame =
            if is_known { since_first > 0 } else { times >= ALONE && since_first >= OTHERS && since_last > 0 };
        if !is_to_blame {
            let until = now + doubled(SHORTEST_PAUSE, times - 1, LONGEST_PAUSE);
            return Verdict::LetOthersTry { until, is_told: times == TOLD && self.proofs > proofs_first };
        }
        self.clear(&only.sequences);
        if only.sequences.len() > 1 {
            return Verdict::Split;
        }
        self.judge(first, &only.topic, now)
    }

    /// What becomes of a message that is to blame.
    fn judge(&mut self, sequence: Sequence, topic: &Arc<str>, now: Instant) -> Verdict {
        let new = Trial { since: now, tries: 0, next: now };
        if let Some(trial) = self.held.get_mut(&sequence) {
            trial.tries += 1;
            if trial.is_over(now) {
                self.held.remove(&sequence);
                return Verdict::Drop;
            }
            trial.next = now + doubled(SHORTEST_WAIT, trial.tries, LONGEST_WAIT);
            return Verdict::HoldBack;
        }
        match self.topics.get_mut(topic) {
            None => {
                self.topics.insert(Arc::clone(topic), None);
                self.held.insert(sequence, Trial { next: now + SHORTEST_WAIT, ..new });
                Verdict::HoldBack
            }
            Some(trial) => {
                let is_new = trial.is_none();
                let trial = trial.get_or_insert(new);
                trial.tries += 1;
                if trial.is_over(now) {
                    // The one behind it has a trial of its own.
                    *trial = new;
                    return Verdict::Drop;
                }
                let until = now + doubled(SHORTEST_CLOSED, trial.tries - 1, LONGEST_CLOSED);
                Verdict::CloseTopic { until, is_new }
            }
        }
    }

    /// The broker took a message; `holds` says which are still to be sent at all.
    pub(super) fn proved(&mut self, suspect: &Suspect, holds: impl Fn(Sequence) -> bool) {
        self.proofs += 1;
        *self.passed.entry(suspect.kind.clone()).or_default() += 1;
        for sequence in &suspect.sequences {
            self.held.remove(sequence);
        }
        self.topics.remove(&suspect.topic);
        self.clear(&suspect.sequences);
        if self.is_careful() {
            self.suspects.retain(|suspect| holds(*suspect));
            self.accused.retain(|suspect, _| holds(*suspect));
        }
        if self.suspects.is_empty() {
            self.losses = 0;
        }
    }

    /// Whether somebody has to be told of what passes.
    pub(super) fn is_interested(&self) -> bool {
        self.losses > 0 || !self.topics.is_empty() || !self.held.is_empty()
    }

    fn clear(&mut self, sequences: &[Sequence]) {
        for sequence in sequences {
            self.suspects.remove(sequence);
            self.accused.remove(sequence);
        }
        if self.suspects.is_empty() {
            self.losses = 0;
        }
    }

    /// A message passed that nobody suspects.
    pub(super) fn passed(&mut self) {
        self.proofs += 1;
    }

    /// Whether the broker took something since this was last asked.
    pub(super) fn progressed(&mut self) -> bool {
        std::mem::replace(&mut self.proofs_seen, self.proofs) != self.proofs
    }

    /// Whether each message is to go by itself.
    pub(super) fn is_careful(&self) -> bool {
        self.losses >= LOSSES && !self.suspects.is_empty()
    }

    /// Whether a message is to go by itself because the like of it was to blame.
    pub(super) fn is_trial(&self, sequence: Sequence, topic: &str) -> bool {
        // Most often there is none.
        (!self.held.is_empty() && self.held.contains_key(&sequence))
            || (!self.topics.is_empty() && self.topics.contains_key(topic))
    }

    /// When a message that is held back is tried again.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.held.values().map(|trial| trial.next).min()
    }

    /// The messages whose time has come.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<Sequence> {
        let due = self.held.iter_mut().filter(|(_, trial)| trial.next <= now);
        due.map(|(sequence, trial)| {
            // Until its next loss, or for ever.
            trial.next = now + LONGEST_WAIT;
            *sequence
        })
        .collect()
    }
}

impl Trial {
    fn is_over(&self, now: Instant) -> bool {
        self.tries >= TRIES && now.duration_since(self.since) >= GIVE_UP
    }
}

fn doubled(first: Duration, times: u32, most: Duration) -> Duration {
    first.saturating_mul(1 << times.min(16)).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Message `sequence` of a device with the same number, on a topic of its own.
    fn suspect(sequence: Sequence) -> Suspect {
        on(sequence, &format!("topic{sequence}"))
    }

    fn on(sequence: Sequence, topic: &str) -> Suspect {
        Suspect { sequences: vec![sequence], device: DeviceId::new("d"), topic: topic.into(), kind: "telemetry".into() }
    }

    fn pass(suspects: &mut Suspects, sequences: &[Sequence]) {
        sequences.iter().for_each(|sequence| suspects.proved(&suspect(*sequence), |_| true));
    }

    /// Blames a message as the first on its topic.
    fn convict(suspects: &mut Suspects, message: &Suspect, now: Instant) -> Verdict {
        let mut verdict = Verdict::None;
        for number in 0..10 {
            verdict = suspects.lost(&[Some(message.clone())], true, now);
            if !matches!(verdict, Verdict::LetOthersTry { .. } | Verdict::None) {
                break;
            }
            pass(suspects, &[100 + number]);
        }
        verdict
    }

    #[test]
    fn the_message_at_which_the_broker_closes_while_others_pass_is_held_back() {
        let (mut suspects, now) = (Suspects::default(), Instant::now());
        let all = [Some(suspect(1)), Some(suspect(2)), None];
        assert_eq!(suspects.lost(&all, true, now), Verdict::None);
        assert!(!suspects.is_careful());
        assert_eq!(suspects.lost(&all, true, now), Verdict::None);
        assert!(suspects.is_careful());
        let one = [Some(suspect(1))];
        assert_eq!(
            suspects.lost(&one, true, now),
            Verdict::LetOthersTry { until: now + SHORTEST_PAUSE, is_told: false }
        );
        pass(&mut suspects, &[2]);
        assert!(matches!(suspects.lost(&one, true, now), Verdict::LetOthersTry { .. }));
        assert!(matches!(suspects.lost(&one, true, now), Verdict::LetOthersTry { .. }), "nothing passed between");
        pass(&mut suspects, &[3]);
        assert_eq!(suspects.lost(&one, true, now), Verdict::HoldBack);
        assert!(!suspects.is_careful() && suspects.is_trial(1, "topic1"));
        assert_eq!(suspects.next_wake(), Some(now + SHORTEST_WAIT));
        assert_eq!((suspects.take_due(now), suspects.take_due(now + SHORTEST_WAIT)), (vec![], vec![1]));
        // The broker has changed its mind.
        pass(&mut suspects, &[1]);
        assert!(!suspects.is_trial(1, "topic1") && suspects.next_wake().is_none());
    }

    #[test]
    fn when_all_are_hit_alike_nobody_is_to_blame_however_long_it_takes() {
        let (mut suspects, now) = (Suspects::default(), Instant::now());
        for second in 0..10_000 {
            let now = now + Duration::from_secs(second);
            let verdict = suspects.lost(&[Some(suspect(second % 7))], true, now);
            assert!(matches!(verdict, Verdict::LetOthersTry { .. }), "{verdict:?}");
            // What else passes is not like them.
            suspects.proved(&Suspect { kind: "properties".into(), ..suspect(1000) }, |_| true);
        }
        pass(&mut suspects, &[0, 1, 2, 3, 4, 5, 6]);
        assert!(!suspects.is_careful() && suspects.held.is_empty() && suspects.topics.is_empty());
    }

    #[test]
    fn a_bad_line_that_is_cut_at_other_messages_each_time_accuses_none() {
        let (mut suspects, now) = (Suspects::default(), Instant::now());
        for sequence in 0..200 {
            let verdict = suspects.lost(&[Some(suspect(sequence))], true, now);
            assert!(matches!(verdict, Verdict::LetOthersTry { .. }));
            pass(&mut suspects, &[sequence]);
            assert!(suspects.progressed() && !suspects.progressed());
        }
        assert!(!suspects.is_careful() && suspects.accused.is_empty());
    }

    #[test]
    fn a_message_that_is_held_back_is_dropped_after_a_quarter_of_an_hour_and_not_before() {
        let (mut suspects, now) = (Suspects::default(), Instant::now());
        assert_eq!(convict(&mut suspects, &suspect(1), now), Verdict::HoldBack);
        let end = loop {
            let time = suspects.next_wake().unwrap();
            assert_eq!(suspects.take_due(time), [1]);
            assert!(matches!(suspects.lost(&[Some(suspect(1))], true, time), Verdict::LetOthersTry { .. }));
            pass(&mut suspects, &[200]);
            match suspects.lost(&[Some(suspect(1))], true, time) {
                Verdict::HoldBack => assert!(time < now + GIVE_UP),
                Verdict::Drop => break time,
                other => panic!("{other:?}"),
            }
        };
        assert!(end >= now + GIVE_UP && suspects.next_wake().is_none());
    }

    #[test]
    fn a_topic_on_which_nothing_passes_waits_as_a_whole_and_loses_little() {
        let (mut suspects, now) = (Suspects::default(), Instant::now());
        assert_eq!(convict(&mut suspects, &on(1, "t"), now), Verdict::HoldBack);
        let (mut time, mut dropped) = (now, 0);
        let mut next = 2;
        while time < now + 2 * GIVE_UP {
            pass(&mut suspects, &[300]);
            suspects.lost(&[Some(on(next, "t"))], true, time);
            pass(&mut suspects, &[300]);
            match suspects.lost(&[Some(on(next, "t"))], true, time) {
                Verdict::CloseTopic { until, .. } => {
                    assert!(until <= time + LONGEST_CLOSED);
                    time = until;
                }
                Verdict::Drop => (dropped, next) = (dropped + 1, next + 1),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(dropped, 1);
        suspects.proved(&on(next, "t"), |_| true);
        assert!(!suspects.is_trial(next + 1, "t"));
    }

    #[test]
    fn several_messages_as_one_are_told_apart_before_one_is_blamed() {
        let (mut suspects, now) = (Suspects::default(), Instant::now());
        let batch = Suspect { sequences: vec![1, 2, 3], ..on(1, "t") };
        assert_eq!(convict(&mut suspects, &batch, now), Verdict::Split);
        assert_eq!(convict(&mut suspects, &on(2, "t"), now), Verdict::HoldBack);
    }

    #[test]
    fn a_subscription_at_which_the_broker_closes_accuses_no_message() {
        let (mut suspects, now) = (Suspects::default(), Instant::now());
        for second in 0..200 {
            let now = now + Duration::from_secs(second);
            assert_eq!(suspects.lost(&[Some(suspect(1))], false, now), Verdict::None);
        }
        assert!(suspects.is_careful() && suspects.accused.is_empty());
    }

    #[test]
    fn a_suspect_that_was_dropped_meanwhile_does_not_keep_the_rest_slow() {
        let (mut suspects, now) = (Suspects::default(), Instant::now());
        for _ in 0..2 {
            suspects.lost(&[Some(suspect(1)), Some(suspect(2))], true, now);
        }
        suspects.proved(&suspect(2), |sequence| sequence != 1);
        assert!(!suspects.is_careful());
    }
}
