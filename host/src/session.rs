//! One MQTT connection to a cloud: the task that owns it.
//!
//! Connects for ever, with growing delays, and publishes what its dialogue
//! with the cloud gives: what is said first, then what waits in the outbox. A
//! message leaves the outbox on proof of delivery only; after a lost
//! connection the unproved ones are sent again.

mod client;
mod complaints;
mod connection;
mod dialogue;
pub mod enapter;
pub mod kaa;
mod parts;
mod picture;
mod suspects;
mod tls;
mod window;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::FutureExt;
use rumqttc::{AsyncClient, ConnectionError, Event, EventLoop, Outgoing, Packet, Publish, QoS, Request};
use serde_json::Value as Json;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

pub use complaints::Complaints;
pub use dialogue::{Dialogue, Outgoing as Message};
pub use parts::Parts;
pub use picture::{Facts, Order, Picture, SessionStatus};
pub use suspects::Suspects;
pub use tls::check as check_tls;

use crate::clock::Moment;
use crate::cloud::Cloud;
use crate::config::Broker;
use crate::message::{CommandError, CommandRequest, DeviceId, Offer, Uplink, now};
use crate::outbox::{Outbox, Sequence};
use crate::question::{NoAnswer, Question};
use crate::router::{self, GATEWAY, Recipient};
use crate::text;
use client::{LONGEST_PATIENCE, client, explain, is_closed_by_peer, patience, slow};
use connection::Connection;
use dialogue::{Event as Meaning, Proof};
use suspects::{Suspect, Verdict};

const SHORTEST_DELAY: Duration = Duration::from_secs(1);
/// With its jitter less than a minute, after which a way that is well again is found.
const LONGEST_DELAY: Duration = Duration::from_secs(35);
/// A broker that ends connections so soon after they stood, so often in a row,
/// may have another client that is called the same.
const SHORT_LIFE: Duration = Duration::from_secs(10);
const SHORT_LIVES: u32 = 3;
/// How long a stop waits for DISCONNECT to be written.
const FAREWELL: Duration = Duration::from_secs(1);
/// Bytes that are written at once at most, but for a single larger message:
/// nothing is read meanwhile.
const BURST: usize = 64 << 10;
/// Events that are taken before everything else is looked at as well.
const STREAK: u32 = 64;
/// A connection that lasted so long was a good one.
const STABLE: Duration = Duration::from_secs(30);

/// What a session is made of.
pub struct Session {
    /// Its name in the configuration.
    pub name: String,
    /// What is subscribed to.
    pub cloud: Arc<dyn Cloud>,
    /// What is said and understood.
    pub dialogue: Box<dyn Dialogue>,
    /// Where and as whom to connect.
    pub broker: Broker,
    /// The MQTT client id.
    pub client_id: String,
    /// MQTT quality of service, 0 or 1.
    pub qos: u8,
    /// MQTT keep-alive.
    pub keep_alive: Duration,
    /// What waits to be sent.
    pub outbox: Arc<Outbox>,
    /// The gateway as the session sees it.
    pub picture: watch::Receiver<Arc<Picture>>,
    /// Where orders for the gateway itself go.
    pub gateway: mpsc::Sender<Order>,
    /// Questions of drivers to the cloud.
    pub questions: mpsc::Receiver<Question>,
    /// Where the state is told.
    pub status: watch::Sender<SessionStatus>,
    /// Messages from the cloud that could not be used.
    pub complaints: Complaints,
    /// Messages that the broker may not take: none at first.
    pub suspects: Suspects,
    /// Whether the last connection ended at a message.
    pub has_blamed: bool,
    /// A message that goes as soon as nothing else is on the way.
    pub trial: Option<Message>,
}

impl Session {
    /// Runs until the picture's sender is gone.
    pub async fn run(mut self) {
        let (mut failures, mut short_lives) = (0, 0);
        loop {
            let begin = Instant::now();
            let connects = self.status.borrow().connects;
            let Err(error) = self.connect().await else { return };
            // A broker that takes some messages and dislikes one is asked again soon.
            let is_picky = self.suspects.progressed() && std::mem::take(&mut self.has_blamed);
            if begin.elapsed() >= STABLE || is_picky {
                failures = 0;
            }
            let was_connected = self.status.borrow().connects > connects;
            let is_short = was_connected && begin.elapsed() < SHORT_LIFE && !is_picky;
            short_lives = if is_short { short_lives + 1 } else { 0 };
            let delay = delay(failures, fastrand::f64());
            failures += 1;
            let mut problem = format!("{error:#}");
            if short_lives >= SHORT_LIVES {
                let id = &self.client_id;
                problem.push_str(&format!(
                    "; the broker ends each connection soon: is another gateway connected with the same client id {id}?"
                ));
            }
            tracing::warn!(session = self.name, "{problem}; connecting again in {:.1} s", delay.as_secs_f64());
            self.status.send_modify(|status| {
                status.connected = false;
                status.problem = Some(problem);
            });
            let mut picture = self.picture.clone();
            let gone = async move { while picture.changed().await.is_ok() {} };
            let refuse = async {
                while let Some(question) = self.questions.recv().await {
                    // Whoever asked may be gone.
                    let _ = question.reply.send(Err(NoAnswer::Unavailable));
                }
                std::future::pending().await
            };
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = gone => return,
                () = refuse => {}
            }
        }
    }

    /// One connection, from CONNECT to its end. Ok when the gateway stops.
    async fn connect(&mut self) -> Result<()> {
        let address = format!("{}:{}", self.broker.host, self.broker.port);
        let (client, mut events) = client(&self.client_id, &self.broker, self.keep_alive)?;
        let mut connection = Connection::new(client);
        connection.is_careful = self.suspects.is_careful();
        // The outbox gives it again.
        self.trial = None;
        let mut greeted = false;
        let mut streak = 0;
        loop {
            if greeted && let Err(error) = self.feed(&mut connection, &mut events).await {
                return self.lost(connection, events, error, &address);
            }
            let event: Option<Result<Event, ConnectionError>> = {
                // Polling must not be cancelled half-way, so it outlives the inner loop.
                let mut poll = pin!(events.poll());
                loop {
                    // Under load there is always an event: look before waiting for all, but not for ever.
                    streak += 1;
                    if streak < STREAK
                        && let Some(event) = poll.as_mut().now_or_never()
                    {
                        break Some(event);
                    }
                    connection.may_burst |= streak < STREAK;
                    streak = 0;
                    let wake = self.dialogue.next_wake(connection.is_quiet()).into_iter();
                    let wake = wake.chain(self.suspects.next_wake()).chain(connection.subscriptions.next_wake());
                    let wake = wake.min().filter(|_| greeted);
                    tokio::select! {
                        event = &mut poll => break Some(event),
                        () = self.outbox.changed(), if greeted && connection.is_quiet() => {}
                        changed = self.picture.changed() => {
                            if changed.is_err() {
                                break None;
                            }
                            if greeted {
                                self.subscribe(&mut connection);
                                let picture = self.picture.borrow().clone();
                                self.dialogue.changed(&picture, now());
                            }
                        }
                        Some(question) = self.questions.recv(), if greeted => {
                            self.dialogue.ask(question, Instant::now());
                        }
                        () = sleep_until(wake) => {
                            let time = Instant::now();
                            self.outbox.recall(&self.suspects.take_due(time));
                            self.dialogue.wake(time, now());
                            connection.subscriptions.wake(time);
                        }
                        // The nudge below makes room for the next burst.
                        () = std::future::ready(()), if connection.has_more && connection.is_quiet() => {}
                    }
                    // One message by the client's channel wakes its event loop; the others follow in `feed`.
                    if greeted && connection.is_quiet() {
                        self.nudge(&mut connection);
                    }
                }
            };
            let event = match event {
                Some(Ok(event)) => event,
                Some(Err(error)) => return self.lost(connection, events, error, &address),
                None => {
                    // Written or not, the connection ends.
                    let _ = timeout(FAREWELL, farewell(&connection.client, &mut events)).await;
                    return Ok(());
                }
            };
            match event {
                Event::Incoming(Packet::ConnAck(_)) => {
                    events.network_options.set_connection_timeout(LONGEST_PATIENCE.as_secs());
                    self.subscribe(&mut connection);
                    let picture = self.picture.borrow().clone();
                    self.dialogue.connected(&picture, now());
                    self.tell_connected(&connection, &address);
                    greeted = true;
                }
                Event::Incoming(Packet::PingResp) if connection.is_stalled() => {
                    bail!("{address}: the broker answers pings and acknowledges no message, or no subscription");
                }
                event => self.handle(&mut connection, event, &address),
            }
        }
    }

    /// Ends a connection. What came before the end counts, acknowledgements
    /// above all.
    fn lost(
        &mut self,
        mut connection: Connection,
        mut events: EventLoop,
        error: ConnectionError,
        address: &str,
    ) -> Result<()> {
        for event in std::mem::take(&mut events.state.events) {
            self.handle(&mut connection, event, address);
        }
        if is_closed_by_peer(&error) {
            self.blame(&connection);
        }
        Err(explain(error)).with_context(|| address.to_owned())
    }

    /// The broker closed a working connection: perhaps at a message.
    fn blame(&mut self, connection: &Connection) {
        let now = Instant::now();
        let mut groups: Vec<Option<Vec<Sequence>>> =
            connection.unproved().into_iter().map(|entry| entry.map(|entry| vec![entry])).collect();
        let held = self.trial.take().and_then(|message| message.proof.sequence());
        let unanswered = self.dialogue.unanswered().into_iter();
        groups.extend(unanswered.filter(|group| group.first().copied() != held).map(Some));
        let unproved: Vec<Option<Suspect>> =
            groups.into_iter().map(|group| group.and_then(|group| self.suspect(group))).collect();
        let verdict = self.suspects.lost(&unproved, connection.subscriptions.all_answered(), now);
        let Some(Some(Suspect { sequences, device, topic, kind })) = unproved.first() else { return };
        let (session, name) = (self.name.as_str(), device.as_str());
        let first = sequences.first().copied().unwrap_or_default();
        self.has_blamed = verdict != Verdict::None;
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

    /// Something on its way, as long as the outbox has it.
    fn suspect(&self, sequences: Vec<Sequence>) -> Option<Suspect> {
        let (device, topic) = self.outbox.look(*sequences.first()?)?;
        let kind = self.cloud.kind(&topic);
        Some(Suspect { sequences, device, topic, kind })
    }

    /// A message arrived.
    fn passed(&mut self, connection: &mut Connection, suspect: Option<Suspect>) {
        match suspect.filter(|_| self.suspects.is_interested()) {
            Some(suspect) => self.suspects.proved(&suspect, |sequence| self.outbox.holds(sequence)),
            None => self.suspects.passed(),
        }
        connection.is_careful = self.suspects.is_careful();
    }

    fn handle(&mut self, connection: &mut Connection, event: Event, address: &str) {
        match event {
            Event::Outgoing(Outgoing::Publish(packet)) => {
                connection.wrote_message(packet).into_iter().for_each(|sequence| self.dialogue.delivered(sequence));
            }
            Event::Outgoing(Outgoing::Subscribe(packet)) => connection.wrote_subscription(packet),
            Event::Outgoing(Outgoing::Unsubscribe(_)) => connection.wrote_request(),
            Event::Incoming(Packet::PubAck(ack)) => {
                connection.may_burst = true;
                if let Some(sequence) = connection.proved(ack.pkid) {
                    let suspect = self.suspects.is_interested().then(|| self.suspect(vec![sequence])).flatten();
                    self.dialogue.delivered(sequence);
                    self.passed(connection, suspect);
                }
            }
            Event::Incoming(Packet::SubAck(ack)) => {
                let refused = connection.subscriptions.answered(&ack, Instant::now());
                if !refused.is_empty() {
                    let filters = text::list(refused.iter().map(|filter| self.cloud.shown(filter)));
                    tracing::error!(
                        session = self.name,
                        "the broker refused to subscribe to {filters}: what is sent there does not arrive; it is asked \
                         again, less and less often"
                    );
                }
                self.tell_connected(connection, address);
            }
            Event::Incoming(Packet::Publish(publish)) => self.receive(connection, &publish.topic, &publish.payload),
            _ => {}
        }
    }

    /// Sends waiting messages, as many as may be under way, with one write.
    /// The client's channel would write each by itself, which costs more than
    /// all else that is done for a message.
    async fn feed(&mut self, connection: &mut Connection, events: &mut EventLoop) -> Result<(), ConnectionError> {
        // First all acknowledgements that came together, so that as many messages go together.
        let is_busy = !connection.is_quiet() || !events.state.events.is_empty() || events.state.collision.is_some();
        if is_busy || !connection.may_burst {
            return Ok(());
        }
        let Some(network) = &mut events.network else { return Ok(()) };
        let mut size = 0;
        connection.has_more = true;
        while connection.has_room() && size < BURST {
            let Some(request) = self.next_request(connection) else {
                connection.has_more = false;
                break;
            };
            if let Request::Publish(publish) = &request {
                size += publish.payload.len() + publish.topic.len();
            }
            match events.state.handle_outgoing_packet(request)? {
                Some(packet) => timeout(patience(size), network.write(packet)).await.map_err(slow)??,
                // Its packet id is in use; the client sends it when that is free.
                None => break,
            }
            connection.may_burst = false;
        }
        Ok(timeout(patience(size), network.flush()).await.map_err(slow)??)
    }

    fn qos(&self) -> QoS {
        if self.qos == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce }
    }

    /// The next thing to write: what must be known before subscribing, the
    /// subscriptions, and then all else, so that whoever answers a message
    /// finds the gateway listening.
    fn next_request(&mut self, connection: &mut Connection) -> Option<Request> {
        let message = match self.dialogue.announce() {
            Some(publication) => Message { publication, proof: Proof::None },
            None => match connection.subscriptions.next() {
                Some(request) => return Some(request),
                None => self.next_message(connection)?,
            },
        };
        let Message { publication, proof } = message;
        self.tell_exchange("sends", &publication.topic, &publication.payload);
        connection.handed(proof, publication.topic.len() + publication.payload.len());
        Some(Request::Publish(Publish::from_bytes(&*publication.topic, self.qos(), publication.payload)))
    }

    /// The next message of the dialogue. Where one is to go by itself, nothing
    /// else may be on the way.
    fn next_message(&mut self, connection: &mut Connection) -> Option<Message> {
        if connection.is_careful && !(connection.subscriptions.all_answered() && self.dialogue.unanswered().is_empty())
        {
            return None;
        }
        let message = match self.trial.take() {
            Some(message) => message,
            None => self.dialogue.next(Instant::now())?,
        };
        let is_trial = |sequence: Sequence| {
            let place = self.outbox.look(sequence);
            place.is_some_and(|(_, topic)| self.suspects.is_trial(sequence, &topic))
        };
        if self.suspects.is_interested() && message.proof.sequence().is_some_and(is_trial) {
            let others = self.dialogue.unanswered().into_iter();
            let mut others = others.filter(|group| group.first().copied() != message.proof.sequence());
            if !connection.is_empty() || others.next().is_some() || !connection.subscriptions.all_answered() {
                self.trial = Some(message);
                return None;
            }
            connection.is_careful = true;
        }
        Some(message)
    }

    /// Sends one thing by the client's channel.
    fn nudge(&mut self, connection: &mut Connection) {
        let client = connection.client.clone();
        // The channel is empty, so this never waits.
        let sent = match self.next_request(connection) {
            Some(Request::Publish(publish)) => {
                client.try_publish(publish.topic, publish.qos, publish.retain, publish.payload)
            }
            Some(Request::Subscribe(subscribe)) => {
                connection.queued();
                client.try_subscribe_many(subscribe.filters)
            }
            Some(Request::Unsubscribe(unsubscribe)) => {
                connection.queued();
                client.try_unsubscribe(unsubscribe.topics.concat())
            }
            _ => return connection.has_more = false,
        };
        if let Err(error) = sent {
            tracing::error!(session = self.name, "the MQTT client takes no more messages: {error}");
        }
    }

    /// Takes over what the channels of the picture want subscribed.
    fn subscribe(&mut self, connection: &mut Connection) {
        let picture = self.picture.borrow_and_update().clone();
        let wanted = picture.table.names().flat_map(|channel| self.cloud.subscriptions(channel)).collect();
        connection.subscriptions.want(wanted, self.qos());
    }

    /// Tells, once for a connection, that it stands and all is subscribed.
    fn tell_connected(&self, connection: &Connection, address: &str) {
        if !connection.subscriptions.all_answered() || self.status.borrow().connected {
            return;
        }
        let milliseconds = connection.since.elapsed().as_millis();
        tracing::info!(session = self.name, "connected to {address} in {milliseconds} ms");
        self.status.send_modify(|status| {
            status.connected = true;
            status.problem = None;
            status.connects += 1;
        });
    }

    /// Logs that a message passes, not what it says: that may be secret.
    fn tell_exchange(&self, what: &str, topic: &str, payload: &[u8]) {
        if tracing::enabled!(tracing::Level::DEBUG) {
            tracing::debug!(session = self.name, "{what} {} bytes on {}", payload.len(), self.cloud.shown(topic));
        }
    }

    /// Takes a message from the cloud to whom it is for.
    fn receive(&mut self, connection: &mut Connection, topic: &str, payload: &[u8]) {
        self.tell_exchange("receives", topic, payload);
        for meaning in self.dialogue.receive(topic, payload, Instant::now()) {
            match meaning {
                Meaning::Command { recipient, request } => self.dispatch(&recipient, request),
                Meaning::Offered { device, offer, document } => self.offer(device, offer, document),
                Meaning::Answered { sequences, device, topic } => {
                    let kind = self.cloud.kind(&topic);
                    self.passed(connection, Some(Suspect { sequences, device, topic, kind }));
                }
                Meaning::Refused(problem) => self.complaints.refused(&problem),
                Meaning::Unusable { recipient, command, problem } => {
                    self.complaints.refused(&format!("a command: {problem}"));
                    self.answer(&recipient, &command, CommandError::InvalidArgument(problem));
                }
            }
        }
    }

    fn dispatch(&self, recipient: &Recipient, request: CommandRequest) {
        let picture = self.picture.borrow().clone();
        let id = request.id.clone();
        let result = match recipient {
            Recipient::Gateway => self.order(Order::Command(request)),
            Recipient::Device(device) => match picture.devices.get(device) {
                Some(handle) if handle.is_alive() => handle.command(request, None),
                // It is being started, for the first time or afresh, or cannot be.
                _ => self.order(Order::Late { device: device.clone(), request }),
            },
        };
        if let Err(error) = result {
            self.answer(recipient, &id, error);
        }
    }

    /// What is offered and cannot be handed on now is offered again by the
    /// cloud, at the next connect at the latest.
    fn offer(&self, device: DeviceId, offer: Offer, document: Json) {
        let order = Order::Offer { session: self.name.as_str().into(), device, offer, document };
        if self.order(order).is_err() {
            tracing::warn!(session = self.name, "the gateway is busy; an offer of the cloud is left for the next time");
        }
    }

    fn order(&self, order: Order) -> Result<(), CommandError> {
        self.gateway.try_send(order).map_err(|_| CommandError::Busy("the gateway is busy".into()))
    }

    fn answer(&self, recipient: &Recipient, command: &str, error: CommandError) {
        let result = Err(error);
        let picture = self.picture.borrow();
        let Some(channel) = picture.table.channel(recipient) else { return };
        let device = match recipient {
            Recipient::Gateway => DeviceId::new(GATEWAY),
            Recipient::Device(device) => device.clone(),
        };
        let uplink = Uplink::CommandResult { command, result: &result };
        router::send(channel, &self.outbox, &device, Moment::now(), &uplink);
    }
}

/// Ends a connection as the protocol wants it.
async fn farewell(client: &AsyncClient, events: &mut EventLoop) {
    if client.try_disconnect().is_err() {
        return;
    }
    while let Ok(event) = events.poll().await {
        if matches!(event, Event::Outgoing(Outgoing::Disconnect)) {
            return;
        }
    }
}

async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// 1 s, 2 s, 4 s, … 60 s, each with up to half more or less.
fn delay(failures: u32, jitter: f64) -> Duration {
    let delay = SHORTEST_DELAY.saturating_mul(1 << failures.min(16)).min(LONGEST_DELAY);
    delay.mul_f64(0.5 + jitter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_a_minute_and_vary() {
        let seconds: Vec<_> = (0..8).map(|failures| delay(failures, 0.5).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 35, 35]);
        assert_eq!(delay(0, 0.0), Duration::from_millis(500));
    }
}
