//! What is handed to the MQTT client, and when: many messages with one write,
//! never more on the way than the broker takes, and no doubt about what a
//! packet id stands for.
//!
//! The client tells of what it wrote in the order in which it was handed over.
//! So nothing is handed over before it has told of everything: the writer is
//! quiet then.

use std::collections::VecDeque;

use rumqttc::{AsyncClient, ClientError, ConnectionError, EventLoop, Publish, QoS, Request};
use tokio::time::timeout;

use super::client::{patience, slow};
use super::dialogue::{Outgoing, Proof};
use super::stall::Stall;
use super::window::{MOST, Window};
use crate::outbox::Sequence;

/// Bytes that are written at once at most, but for a single larger message:
/// nothing is read meanwhile.
const BURST: usize = 64 << 10;

/// A message without a PUBACK.
#[derive(Debug, Clone, Copy)]
struct Message {
    proof: Proof,
    /// Its size in bytes.
    size: usize,
}

/// See the module documentation.
pub(super) struct Writer {
    client: AsyncClient,
    qos: QoS,
    /// What was handed to the client and has no packet id yet.
    handed: VecDeque<Message>,
    /// Requests other than messages in the client's channel.
    in_channel: usize,
    /// What has no PUBACK, by packet id: the client uses ids up to `MOST`.
    unproved: Vec<Option<Message>>,
    /// How many those are.
    open: usize,
    /// The size of all that was handed over and has no PUBACK.
    bytes: usize,
    window: Window,
    /// Whether each message goes by itself.
    pub is_careful: bool,
    /// How many PUBACKs came.
    proofs: u64,
    stall: Stall,
    /// Whether a burst may be written: what has arrived was looked at since the last one.
    pub may_burst: bool,
    /// Whether the last burst left something to say.
    pub has_more: bool,
}

/// Messages that are written together.
pub(super) struct Burst {
    size: usize,
}

impl Writer {
    pub(super) fn new(client: AsyncClient, qos: QoS, is_careful: bool) -> Self {
        Writer {
            client,
            qos,
            handed: VecDeque::new(),
            in_channel: 0,
            unproved: vec![None; usize::from(MOST) + 1],
            open: 0,
            bytes: 0,
            window: Window::new(),
            is_careful,
            proofs: 0,
            stall: Stall::default(),
            may_burst: true,
            has_more: false,
        }
    }

    /// Notes a message as the next one that is written, and gives its packet.
    pub(super) fn hand_over(&mut self, message: Outgoing) -> Request {
        let Outgoing { publication, proof } = message;
        let size = publication.topic.len() + publication.payload.len();
        self.handed.push_back(Message { proof, size });
        self.bytes += size;
        Request::Publish(Publish::from_bytes(&*publication.topic, self.qos, publication.payload))
    }

    /// Begins a burst, if it is time for one: after all acknowledgements that
    /// came together, so that as many messages go together.
    ///
    /// The client's channel would write each message by itself, which costs more
    /// than all else that is done for it.
    pub(super) fn burst(&mut self, events: &EventLoop) -> Option<Burst> {
        let is_free = self.is_quiet() && events.state.events.is_empty() && events.state.collision.is_none();
        let may_write = is_free && self.may_burst && events.network.is_some();
        self.has_more |= may_write;
        may_write.then_some(Burst { size: 0 })
    }

    /// Whether one more message fits into a burst.
    pub(super) fn takes_more(&self, burst: &Burst) -> bool {
        self.has_room() && burst.size < BURST
    }

    /// Adds a request to a burst; false when nothing more can be added.
    pub(super) async fn add(
        &mut self,
        burst: &mut Burst,
        events: &mut EventLoop,
        request: Request,
    ) -> Result<bool, ConnectionError> {
        let Some(network) = &mut events.network else { return Ok(false) };
        if let Request::Publish(publish) = &request {
            burst.size += publish.payload.len() + publish.topic.len();
        }
        // Without a packet its id is in use; the client sends it when that is free.
        let Some(packet) = events.state.handle_outgoing_packet(request)? else { return Ok(false) };
        timeout(patience(burst.size), network.write(packet)).await.map_err(slow)??;
        self.may_burst = false;
        Ok(true)
    }

    /// Sends one request by the client's channel, which wakes its event loop;
    /// the channel is empty, so this never waits.
    pub(super) fn nudge(&mut self, request: Request) -> Result<(), ClientError> {
        match request {
            Request::Publish(publish) => {
                self.client.try_publish(publish.topic, publish.qos, publish.retain, publish.payload)
            }
            Request::Subscribe(subscribe) => {
                self.in_channel += 1;
                self.client.try_subscribe_many(subscribe.filters)
            }
            Request::Unsubscribe(unsubscribe) => {
                self.in_channel += 1;
                self.client.try_unsubscribe(unsubscribe.topics.concat())
            }
            Request::PubAck(ack) => {
                self.in_channel += 1;
                let message = Publish { pkid: ack.pkid, ..Publish::new("", QoS::AtLeastOnce, Vec::new()) };
                self.client.try_ack(&message)
            }
            _ => Ok(()),
        }
    }

    /// Puts a DISCONNECT into the client's channel.
    pub(super) fn say_goodbye(&self) -> Result<(), ClientError> {
        self.client.try_disconnect()
    }

    /// The client tells that it wrote a request that is no message.
    pub(super) fn wrote_request(&mut self) {
        self.in_channel = self.in_channel.saturating_sub(1);
    }

    /// The client tells that it wrote a message, by this packet id. Gives the
    /// entry of the outbox that has all the proof there will be: with quality
    /// of service 0 there are no ids.
    pub(super) fn wrote_message(&mut self, packet: u16) -> Option<Sequence> {
        let message = self.handed.pop_front()?;
        if packet == 0 {
            self.bytes -= message.size;
            return message.entry();
        }
        if let Some(place) = self.unproved.get_mut(usize::from(packet)) {
            self.open += usize::from(place.replace(message).is_none());
            self.window.wrote(packet);
        }
        None
    }

    /// A PUBACK came; gives the entry of the outbox that it proves.
    pub(super) fn proved(&mut self, packet: u16) -> Option<Sequence> {
        self.may_burst = true;
        self.proofs += 1;
        let message = self.unproved.get_mut(usize::from(packet))?.take()?;
        self.open -= 1;
        self.bytes -= message.size;
        self.window.proved(packet);
        message.entry()
    }

    /// What has no PUBACK. Those that a cloud answers are not among them.
    pub(super) fn unproved(&self) -> Vec<Option<Sequence>> {
        let all = self.unproved.iter().flatten().chain(&self.handed);
        let is_answered = |message: &&Message| matches!(message.proof, Proof::Answer(_));
        all.filter(|message| !is_answered(message)).map(Message::entry).collect()
    }

    /// Whether nothing is on the way.
    pub(super) fn is_empty(&self) -> bool {
        self.handed.is_empty() && self.open == 0
    }

    /// A ping was answered. Whether the broker answers pings, and acknowledges no message.
    pub(super) fn is_stalled(&mut self) -> bool {
        self.stall.pinged(self.open > 0, self.proofs)
    }

    /// Whether the client has told of everything that it was handed, so that
    /// what is handed next is told of next.
    pub(super) fn is_quiet(&self) -> bool {
        self.handed.is_empty() && self.in_channel == 0 && self.has_room()
    }

    fn has_room(&self) -> bool {
        let messages = self.handed.len() + self.open;
        self.window.has_room(messages, self.bytes) && !(self.is_careful && messages > 0)
    }
}

impl Burst {
    /// Sends all of it.
    pub(super) async fn flush(self, events: &mut EventLoop) -> Result<(), ConnectionError> {
        let Some(network) = &mut events.network else { return Ok(()) };
        Ok(timeout(patience(self.size), network.flush()).await.map_err(slow)??)
    }
}

impl Message {
    /// The entry of the outbox that its PUBACK proves.
    fn entry(&self) -> Option<Sequence> {
        match self.proof {
            Proof::Packet(sequence) => Some(sequence),
            Proof::Answer(_) | Proof::None => None,
        }
    }
}
