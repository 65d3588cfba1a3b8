//! How a cloud talks over one connection: what is said after a connect, when
//! a message counts as delivered, what an arriving message means.
//!
//! No IO: the session publishes what a dialogue gives and hands it what
//! arrives. Time comes in as an argument.

use serde_json::Value as Json;
use std::sync::Arc;
use tokio::time::Instant;

use super::Picture;
use crate::message::{CommandRequest, DeviceId, Offer, Publication, Time};
use crate::outbox::Sequence;
use crate::question::Question;
use crate::router::Recipient;

/// See the module documentation.
pub trait Dialogue: Send + Sync {
    /// A connection stands: forgets the one before and prepares what is said first.
    fn connected(&mut self, picture: &Picture, now: Time);

    /// Takes a new picture of the gateway, while connected.
    fn changed(&mut self, picture: &Picture, now: Time);

    /// Gives what the cloud must know before it is asked for anything: it is
    /// published ahead of subscriptions and of `next`.
    fn announce(&mut self) -> Option<Publication> {
        None
    }

    /// Gives the next message to publish, if there is one.
    fn next(&mut self, now: Instant) -> Option<Outgoing>;

    /// The broker took a message whose proof is the packet.
    fn delivered(&mut self, sequence: Sequence);

    /// The messages on their way whose proof is the cloud's answer: the entries
    /// of the outbox that each delivers.
    fn unanswered(&self) -> Vec<Vec<Sequence>> {
        Vec::new()
    }

    /// Takes what arrived.
    fn receive(&mut self, topic: &str, payload: &[u8], now: Instant) -> Vec<Event>;

    /// Takes a question of a driver; it is answered later.
    fn ask(&mut self, question: Question, now: Instant);

    /// When `wake` is to be called; `ready` says that there is room for a message.
    fn next_wake(&self, ready: bool) -> Option<Instant>;

    /// Does what is due.
    fn wake(&mut self, now: Instant, time: Time);
}

/// A message on its way out.
#[derive(Debug)]
pub struct Outgoing {
    /// What is published.
    pub publication: Publication,
    /// What shows that it arrived.
    pub proof: Proof,
}

/// What shows that a message arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// The packet's PUBACK, for this entry of the outbox.
    Packet(Sequence),
    /// The cloud's answer, which the dialogue waits for; for this entry, the
    /// first of those that it delivers.
    Answer(Sequence),
    /// Nothing of the outbox goes with it.
    None,
}

impl Proof {
    /// The first entry of the outbox that goes.
    pub fn sequence(self) -> Option<Sequence> {
        match self {
            Proof::Packet(sequence) | Proof::Answer(sequence) => Some(sequence),
            Proof::None => None,
        }
    }
}

/// What an arriving message means.
#[derive(Debug)]
pub enum Event {
    /// Someone wants something done.
    Command {
        /// Who shall do it.
        recipient: Recipient,
        /// What.
        request: CommandRequest,
    },
    /// The cloud has something to take over.
    Offered {
        /// For whom.
        device: DeviceId,
        /// What.
        offer: Offer,
        /// The configuration, or the description of the software.
        document: Json,
    },
    /// The cloud has answered: it has, or will never take, the entries of the
    /// outbox that a message delivered, which are gone by now; their device and topic.
    Answered {
        /// The entries.
        sequences: Vec<Sequence>,
        /// Whose they were.
        device: DeviceId,
        /// Their topic.
        topic: Arc<str>,
    },
    /// The message cannot be used. The text has no secrets.
    Refused(String),
    /// A command cannot be used, and whoever gave it can be told.
    Unusable {
        /// Who should have done it.
        recipient: Recipient,
        /// The command's id.
        command: String,
        /// What was wrong and what was expected.
        problem: String,
    },
}
