//! Finds the message at which a broker closes the connection, and does what is
//! to be done about it: the others go on, and nothing is dropped in haste.

use std::sync::Arc;

use tokio::time::Instant;

use super::suspects::{Suspect, Suspects, Verdict};
use crate::cloud::Cloud;
use crate::message::SessionName;
use crate::outbox::{Outbox, Sequence};

/// See the module documentation. It outlives connections.
pub(super) struct Blame {
    session: SessionName,
    cloud: Arc<dyn Cloud>,
    outbox: Arc<Outbox>,
    suspects: Suspects,
    /// Whether the last connection ended at a message.
    has_blamed: bool,
}

impl Blame {
    pub(super) fn new(session: &SessionName, cloud: Arc<dyn Cloud>, outbox: Arc<Outbox>) -> Blame {
        Blame { session: session.clone(), cloud, outbox, suspects: Suspects::default(), has_blamed: false }
    }

    /// Whether the broker takes some messages and dislikes one. Asked once for a connection.
    pub(super) fn is_picky(&mut self) -> bool {
        self.suspects.progressed() && std::mem::take(&mut self.has_blamed)
    }

    /// Whether each message goes by itself.
    pub(super) fn is_careful(&self) -> bool {
        self.suspects.is_careful()
    }

    /// Whether an entry of the outbox must go while nothing else is on the way.
    pub(super) fn must_go_alone(&self, sequence: Option<Sequence>) -> bool {
        let is_trial = |sequence: Sequence| {
            let place = self.outbox.look(sequence);
            place.is_some_and(|(_, topic)| self.suspects.is_trial(sequence, &topic))
        };
        self.suspects.is_interested() && sequence.is_some_and(is_trial)
    }

    /// A PUBACK proves an entry of the outbox, which holds it still: what it is, if that matters.
    pub(super) fn recognize(&self, sequence: Sequence) -> Option<Suspect> {
        self.suspects.is_interested().then(|| self.suspect(vec![sequence])).flatten()
    }

    /// What messages on a topic are, whatever their device.
    pub(super) fn kind(&self, topic: &str) -> String {
        self.cloud.kind(topic)
    }

    /// A message arrived.
    pub(super) fn passed(&mut self, suspect: Option<Suspect>) {
        match suspect.filter(|_| self.suspects.is_interested()) {
            Some(suspect) => self.suspects.proved(&suspect, |sequence| self.outbox.holds(sequence)),
            None => self.suspects.passed(),
        }
    }

    /// The broker closed a working connection, perhaps at one of these groups of
    /// entries of the outbox, which had no proof; none is a message that no entry stands for.
    pub(super) fn lost(&mut self, unproved: Vec<Option<Vec<Sequence>>>, is_subscribed: bool) {
        let unproved: Vec<Option<Suspect>> =
            unproved.into_iter().map(|group| group.and_then(|group| self.suspect(group))).collect();
        let verdict = self.suspects.lost(&unproved, is_subscribed, Instant::now());
        if let Some(Some(suspect)) = unproved.first() {
            self.has_blamed = verdict != Verdict::None;
            self.carry_out(verdict, suspect);
        }
    }

    /// When to look again.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.suspects.next_wake()
    }

    /// Lets what was held back be tried again, when it is time.
    pub(super) fn wake(&mut self, now: Instant) {
        self.outbox.recall(&self.suspects.take_due(now));
    }

    /// Something on its way, as long as the outbox has it.
    fn suspect(&self, sequences: Vec<Sequence>) -> Option<Suspect> {
        let (device, topic) = self.outbox.look(*sequences.first()?)?;
        let kind = self.kind(&topic);
        Some(Suspect { sequences, device, topic, kind })
    }

    fn carry_out(&self, verdict: Verdict, suspect: &Suspect) {
        let Suspect { sequences, device, topic, kind } = suspect;
        let (session, name) = (self.session.as_str(), device.as_str());
        let first = sequences.first().copied().unwrap_or_default();
        match verdict {
            Verdict::None => {}
            Verdict::LetOthersTry { until, is_told } => {
                self.outbox.pause(device, None, until);
                if is_told {
                    tracing::warn!(
                        session,
                        device = name,
                        "a message on {kind}: the broker closes the connection at it again and again, and others pass; \
                         the device's messages wait, and are tried again"
                    );
                }
            }
            Verdict::Split => self.outbox.send_again(sequences, true),
            Verdict::HoldBack => {
                self.outbox.set_aside(first);
                tracing::error!(
                    session,
                    device = name,
                    "a message on {kind}: the broker closes the connection at it again and again, while others pass; \
                     it is held back and tried again now and then"
                );
            }
            Verdict::CloseTopic { until, is_new } => {
                self.outbox.pause(device, Some(topic), until);
                if is_new {
                    tracing::error!(
                        session,
                        device = name,
                        "all messages on {kind}: the broker closes the connection at each, while others pass; they \
                         wait, and one is tried every minute"
                    );
                }
            }
            Verdict::Drop => {
                self.outbox.reject(first);
                tracing::error!(
                    session,
                    device = name,
                    "dropped a message on {kind}: the broker has closed the connection at it for a quarter of an hour"
                );
            }
        }
    }
}
