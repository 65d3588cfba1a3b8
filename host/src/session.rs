//! One MQTT connection to a cloud: the task that owns it.
//!
//! Connects for ever, with growing delays, and publishes what its dialogue
//! with the cloud gives: what is said first, then what waits in the outbox. A
//! message leaves the outbox on proof of delivery only; after a lost
//! connection the unproved ones are sent again.

mod acknowledgements;
mod blame;
mod client;
mod complaints;
mod contact;
mod dialogue;
pub mod enapter;
pub mod kaa;
mod parts;
mod picture;
mod reception;
mod stall;
mod subscriptions;
mod suspects;
mod tls;
mod window;
mod wishes;
mod writer;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::FutureExt;
use rumqttc::ConnectReturnCode::{BadClientId, RefusedProtocolVersion};
use rumqttc::{ConnectionError, Event, EventLoop, Outgoing, Packet, PubAck, Publish, QoS, Request, SubAck};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

pub use contact::Contact;
pub use dialogue::Dialogue;
pub use parts::Parts;
pub use picture::{Facts, Order, Picture, SessionStatus};
pub use tls::check as check_tls;

use crate::journal::Journal;
use crate::message::{SessionName, now};
use crate::outbox::Outbox;
use crate::question::Question;
use crate::statistics::Counter;
use crate::text;
use acknowledgements::Acknowledgements;
use blame::Blame;
use client::{LONGEST_PATIENCE, explain, farewell, is_closed_by_peer};
use complaints::Complaints;
use dialogue::{Event as Meaning, Outgoing as Message, Proof};
use reception::Reception;
use subscriptions::Subscriptions;
use suspects::Suspect;
use wishes::{Wish, Wishes};
use writer::Writer;

const SHORTEST_DELAY: Duration = Duration::from_secs(1);
/// With its jitter less than a minute, after which a way that is well again is found.
const LONGEST_DELAY: Duration = Duration::from_secs(35);
/// A connection that ends sooner is short. After this number of short ones in a
/// row the broker may have another client that is called the same.
const SHORT_LIFE: Duration = Duration::from_secs(10);
const SHORT_LIVES: u32 = 3;
/// How long a stop waits for DISCONNECT to be written.
const FAREWELL: Duration = Duration::from_secs(1);
/// Events that are taken before everything else is looked at as well.
const STREAK: u32 = 64;
/// A connection that lasts longer is a good one.
const STABLE: Duration = Duration::from_secs(30);

/// One cloud's session. It outlives connections.
pub struct Session {
    name: SessionName,
    parts: Parts,
    wishes: Wishes,
    reception: Reception,
    blame: Blame,
    contact: Contact,
    /// Whether the broker has kept messages that may be too old.
    must_forget: bool,
    status: watch::Sender<SessionStatus>,
    /// A message that goes as soon as nothing else is on the way.
    trial: Option<Message>,
}

/// What connects a session with the gateway.
pub struct Links {
    /// The gateway as the session sees it.
    pub picture: watch::Receiver<Arc<Picture>>,
    /// Where orders for the gateway itself go.
    pub gateway: mpsc::Sender<Order>,
    /// Questions of drivers to the cloud.
    pub questions: mpsc::Receiver<Question>,
    /// Where commands are noted.
    pub journal: Arc<Journal>,
    /// When the broker was heard last.
    pub contact: Contact,
    /// Where the state is told.
    pub status: watch::Sender<SessionStatus>,
    /// Counts messages from the cloud that could not be used.
    pub refused: Arc<Counter>,
}

/// What ends with a connection.
struct Connection {
    writer: Writer,
    subscriptions: Subscriptions,
    acknowledgements: Acknowledgements,
    since: Instant,
    /// Whether the broker is asked to keep messages while the gateway is away.
    is_kept: bool,
    /// Whether the broker has taken the CONNECT.
    stands: bool,
    /// Events that were taken in a row.
    streak: u32,
}

impl Session {
    /// A session that has not connected yet.
    pub fn new(name: &SessionName, parts: Parts, links: Links) -> Session {
        let Links { picture, gateway, questions, journal, contact, status, refused } = links;
        Session {
            name: name.clone(),
            reception: Reception {
                session: name.clone(),
                picture: picture.clone(),
                gateway,
                journal,
                outbox: Arc::clone(&parts.outbox),
                complaints: Complaints::new(name, refused),
            },
            blame: Blame::new(name, Arc::clone(&parts.cloud), Arc::clone(&parts.outbox)),
            wishes: Wishes { picture, questions },
            must_forget: false,
            contact,
            parts,
            status,
            trial: None,
        }
    }

    /// Runs in a task of its own, until the picture's sender is gone. A bug in
    /// this program must not end it in silence.
    pub fn start(self) -> JoinHandle<()> {
        let (name, status) = (self.name.clone(), self.status.clone());
        let run = tokio::spawn(self.run());
        tokio::spawn(async move {
            if let Err(error) = run.await {
                tracing::error!(session = name.as_str(), "the session ended: {error}");
                status.send_modify(|status| {
                    status.connected = false;
                    status.problem = Some("a bug in the gateway ended it; restart the gateway".into());
                });
            }
        })
    }

    async fn run(mut self) {
        let (mut failures, mut short_lives) = (0, 0);
        loop {
            let begin = Instant::now();
            let connects = self.status.borrow().connects;
            let Err(error) = self.connect().await else { return };
            // A broker that takes some messages and dislikes one is asked again soon.
            let is_picky = self.blame.is_picky();
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
                let id = &self.parts.client_id;
                problem.push_str(&format!(
                    "; the broker ends each connection soon: is another gateway connected with the same client id {id}?"
                ));
            }
            tracing::warn!(session = self.name.as_str(), "{problem}; connecting again in {:.1} s", delay.as_secs_f64());
            self.status.send_modify(|status| {
                status.connected = false;
                status.problem = Some(problem);
            });
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = self.wishes.refuse() => return,
            }
        }
    }

    /// One connection, from CONNECT to its end. Ok when the gateway stops.
    async fn connect(&mut self) -> Result<()> {
        let address = self.parts.address();
        if std::mem::take(&mut self.must_forget) {
            tokio::select! {
                forgotten = self.parts.forget() => forgotten.with_context(|| address.clone())?,
                () = self.wishes.refuse() => return Ok(()),
            }
            self.contact.heard();
        }
        let is_kept = self.contact.asks_to_keep();
        let (client, mut events) = self.parts.client(!is_kept)?;
        let mut connection = Connection {
            writer: Writer::new(client, self.qos(), self.blame.is_careful()),
            subscriptions: Subscriptions::default(),
            acknowledgements: Acknowledgements::default(),
            since: Instant::now(),
            is_kept,
            stands: false,
            streak: 0,
        };
        // The outbox gives it again.
        self.trial = None;
        loop {
            let written = self.write_waiting(&mut connection, &mut events).await;
            let event = match written {
                Ok(()) => self.next_event(&mut connection, &mut events).await,
                Err(error) => Some(Err(error)),
            };
            match event {
                Some(Ok(event)) => self.handle(&mut connection, &mut events, event).with_context(|| address.clone())?,
                Some(Err(error)) => return Err(self.lost(connection, events, error)).with_context(|| address.clone()),
                None => {
                    // Written or not, the connection ends.
                    if connection.writer.say_goodbye().is_ok() {
                        let _ = timeout(FAREWELL, farewell(&mut events)).await;
                    }
                    return Ok(());
                }
            }
        }
    }

    /// Sends waiting messages, as many as may be under way, with one write.
    async fn write_waiting(
        &mut self,
        connection: &mut Connection,
        events: &mut EventLoop,
    ) -> Result<(), ConnectionError> {
        if !connection.stands {
            return Ok(());
        }
        let Some(mut burst) = connection.writer.burst(events) else { return Ok(()) };
        while connection.writer.takes_more(&burst) {
            let Some(request) = self.next_request(connection) else {
                connection.writer.has_more = false;
                break;
            };
            if !connection.writer.add(&mut burst, events, request).await? {
                break;
            }
        }
        burst.flush(events).await
    }

    /// Waits for the client's next event; what the gateway wants meanwhile is
    /// done. None when the gateway stops.
    async fn next_event(
        &mut self,
        connection: &mut Connection,
        events: &mut EventLoop,
    ) -> Option<Result<Event, ConnectionError>> {
        // Polling must not be cancelled half-way, so it outlives the loop.
        let mut poll = pin!(events.poll());
        loop {
            // Under load there is always an event: look before waiting for all, but not for ever.
            connection.streak += 1;
            if connection.streak < STREAK
                && let Some(event) = poll.as_mut().now_or_never()
            {
                return Some(event);
            }
            connection.writer.may_burst |= connection.streak < STREAK;
            connection.streak = 0;
            let (stands, wake) = (connection.stands, self.next_wake(connection));
            let (may_write, has_more) = (stands && connection.writer.is_quiet(), connection.writer.has_more);
            tokio::select! {
                event = &mut poll => return Some(event),
                // The nudge below makes room for a burst.
                () = something_to_say(&self.parts.outbox, has_more), if may_write => {}
                () = connection.acknowledgements.changed(), if may_write => {}
                wish = self.wishes.next(stands) => match wish {
                    Wish::Stop => return None,
                    Wish::Look => self.look(connection),
                    Wish::Ask(question) => self.parts.dialogue.ask(question, Instant::now()),
                },
                () = sleep_until(wake) => self.wake(connection),
            }
            // One message by the client's channel wakes its event loop; the others are written together.
            if stands && connection.writer.is_quiet() {
                self.nudge(connection);
            }
        }
    }

    /// Takes an event of the client. An error ends the connection.
    fn handle(&mut self, connection: &mut Connection, events: &mut EventLoop, event: Event) -> Result<()> {
        match event {
            Event::Incoming(Packet::ConnAck(ack))
                if ack.session_present && connection.is_kept && self.contact.is_stale() =>
            {
                self.must_forget = true;
                bail!(
                    "the broker has kept messages since a time that is long ago or unknown; it is told to forget them"
                );
            }
            Event::Incoming(Packet::ConnAck(ack)) => {
                self.contact.stands();
                // What it has kept is as old as it was, until it comes.
                if !ack.session_present {
                    self.contact.heard();
                }
                events.network_options.set_connection_timeout(LONGEST_PATIENCE.as_secs());
                let picture = self.subscribe(connection);
                self.parts.outbox.connected();
                self.parts.dialogue.connected(&picture, now());
                self.tell_connected(connection);
                connection.stands = true;
            }
            Event::Incoming(Packet::PingResp) => {
                self.contact.heard();
                let is_stalled = [connection.writer.is_stalled(), connection.subscriptions.is_stalled()];
                if is_stalled.contains(&true) {
                    bail!("the broker answers pings and acknowledges no message, or no subscription");
                }
            }
            event => self.note(connection, event),
        }
        Ok(())
    }

    /// Takes an event that ends nothing.
    fn note(&mut self, connection: &mut Connection, event: Event) {
        if matches!(event, Event::Incoming(_)) {
            self.contact.heard();
        }
        let Connection { writer, subscriptions, .. } = connection;
        match event {
            Event::Outgoing(Outgoing::Publish(packet)) => {
                writer.wrote_message(packet).into_iter().for_each(|sequence| self.parts.dialogue.delivered(sequence));
            }
            Event::Outgoing(Outgoing::Subscribe(packet)) => {
                writer.wrote_request();
                subscriptions.wrote(packet);
            }
            Event::Outgoing(Outgoing::Unsubscribe(_) | Outgoing::PubAck(_)) => writer.wrote_request(),
            Event::Incoming(Packet::PubAck(ack)) => {
                if let Some(sequence) = writer.proved(ack.pkid) {
                    let suspect = self.blame.recognize(sequence);
                    self.parts.dialogue.delivered(sequence);
                    self.passed(connection, suspect);
                }
            }
            Event::Incoming(Packet::SubAck(ack)) => self.subscribed(connection, &ack),
            Event::Incoming(Packet::Publish(publish)) => self.receive(connection, &publish),
            _ => {}
        }
    }

    /// Ends a connection and says why. What came before the end counts,
    /// acknowledgements above all.
    fn lost(&mut self, mut connection: Connection, mut events: EventLoop, error: ConnectionError) -> anyhow::Error {
        for event in std::mem::take(&mut events.state.events) {
            self.note(&mut connection, event);
        }
        if matches!(error, ConnectionError::ConnectionRefused(BadClientId | RefusedProtocolVersion)) {
            self.contact.refused();
        }
        if is_closed_by_peer(&error) {
            if !connection.stands {
                self.contact.closed_early();
            }
            let entries = connection.writer.unproved().into_iter();
            let mut groups: Vec<_> = entries.map(|entry| entry.map(|entry| vec![entry])).collect();
            let held = self.trial.take().and_then(|message| message.proof.sequence());
            let unanswered = self.parts.dialogue.unanswered().into_iter();
            groups.extend(unanswered.filter(|group| group.first().copied() != held).map(Some));
            self.blame.lost(groups, connection.subscriptions.all_answered());
        }
        explain(error)
    }

    fn passed(&mut self, connection: &mut Connection, suspect: Option<Suspect>) {
        self.blame.passed(suspect);
        connection.writer.is_careful = self.blame.is_careful();
    }

    fn qos(&self) -> QoS {
        if self.parts.qos == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce }
    }

    /// The next thing to write: acknowledgements, what must be known before
    /// subscribing, the subscriptions, and then all else, so that whoever answers
    /// a message finds the gateway listening.
    fn next_request(&mut self, connection: &mut Connection) -> Option<Request> {
        if let Some(packet) = connection.acknowledgements.next(Instant::now()) {
            return Some(Request::PubAck(PubAck::new(packet)));
        }
        let message = match self.parts.dialogue.announce() {
            Some(publication) => Message { publication, proof: Proof::None },
            None => match connection.subscriptions.next() {
                Some(request) => return Some(request),
                None => self.next_message(connection)?,
            },
        };
        self.tell_exchange("sends", &message.publication.topic, &message.publication.payload);
        Some(connection.writer.hand_over(message))
    }

    /// The next message of the dialogue. Where one is to go by itself, nothing
    /// else may be on the way.
    fn next_message(&mut self, connection: &mut Connection) -> Option<Message> {
        let Connection { writer, subscriptions, .. } = connection;
        let is_subscribed = subscriptions.all_answered();
        if writer.is_careful && !(is_subscribed && self.parts.dialogue.unanswered().is_empty()) {
            return None;
        }
        let message = match self.trial.take() {
            Some(message) => message,
            None => self.parts.dialogue.next(Instant::now())?,
        };
        let sequence = message.proof.sequence();
        if self.blame.must_go_alone(sequence) {
            let others = self.parts.dialogue.unanswered().into_iter();
            let mut others = others.filter(|group| group.first().copied() != sequence);
            if !writer.is_empty() || others.next().is_some() || !is_subscribed {
                self.trial = Some(message);
                return None;
            }
            writer.is_careful = true;
        }
        Some(message)
    }

    /// Sends one thing by the client's channel.
    fn nudge(&mut self, connection: &mut Connection) {
        let Some(request) = self.next_request(connection) else { return connection.writer.has_more = false };
        if let Err(error) = connection.writer.nudge(request) {
            tracing::error!(session = self.name.as_str(), "the MQTT client takes no more messages: {error}");
        }
    }

    /// Takes a new picture of the gateway.
    fn look(&mut self, connection: &mut Connection) {
        if connection.stands {
            let picture = self.subscribe(connection);
            self.parts.dialogue.changed(&picture, now());
        }
    }

    /// Takes over what the channels of the picture want subscribed.
    fn subscribe(&mut self, connection: &mut Connection) -> Arc<Picture> {
        let picture = self.wishes.picture.borrow_and_update().clone();
        let wanted = picture.table.names().flat_map(|channel| self.parts.cloud.subscriptions(channel)).collect();
        connection.subscriptions.want(wanted, self.qos());
        picture
    }

    /// A SUBACK came.
    fn subscribed(&mut self, connection: &mut Connection, ack: &SubAck) {
        let refused = connection.subscriptions.answered(ack, Instant::now());
        if !refused.is_empty() {
            let filters = text::list(refused.iter().map(|filter| self.parts.cloud.shown(filter)));
            tracing::error!(
                session = self.name.as_str(),
                "the broker refused to subscribe to {filters}: what is sent there does not arrive; it is asked again, \
                 less and less often"
            );
        }
        self.tell_connected(connection);
    }

    /// When something is due.
    fn next_wake(&self, connection: &Connection) -> Option<Instant> {
        if !connection.stands {
            return None;
        }
        let times = [
            self.parts.dialogue.next_wake(connection.writer.is_quiet()),
            self.blame.next_wake(),
            connection.subscriptions.next_wake(),
            connection.acknowledgements.next_wake().filter(|_| connection.writer.is_quiet()),
        ];
        times.into_iter().flatten().min()
    }

    /// Does what is due.
    fn wake(&mut self, connection: &mut Connection) {
        let time = Instant::now();
        self.blame.wake(time);
        self.parts.dialogue.wake(time, now());
        connection.subscriptions.wake(time);
    }

    /// Tells, once for a connection, that it stands and all is subscribed.
    fn tell_connected(&self, connection: &Connection) {
        if !connection.subscriptions.all_answered() || self.status.borrow().connected {
            return;
        }
        let milliseconds = connection.since.elapsed().as_millis();
        tracing::info!(session = self.name.as_str(), "connected to {} in {milliseconds} ms", self.parts.address());
        self.status.send_modify(|status| {
            status.connected = true;
            status.problem = None;
            status.connects += 1;
        });
    }

    /// Logs that a message passes, not what it says: that may be secret.
    fn tell_exchange(&self, what: &str, topic: &str, payload: &[u8]) {
        if tracing::enabled!(tracing::Level::DEBUG) {
            tracing::debug!(
                session = self.name.as_str(),
                "{what} {} bytes on {}",
                payload.len(),
                self.parts.cloud.shown(topic)
            );
        }
    }

    /// Takes a message from the cloud to whom it is for.
    fn receive(&mut self, connection: &mut Connection, message: &Publish) {
        let (topic, payload) = (&*message.topic, &*message.payload);
        let receipt = connection.acknowledgements.begin(message.pkid, Instant::now());
        self.tell_exchange("receives", topic, payload);
        for meaning in self.parts.dialogue.receive(topic, payload, Instant::now()) {
            match meaning {
                Meaning::Command { recipient, request } => {
                    self.reception.command(&recipient, request, receipt.clone());
                }
                Meaning::Offered { device, offer, document } => self.reception.offer(device, offer, document),
                Meaning::Answered { sequences, device, topic } => {
                    // It makes room for a message that waits, also where no PUBACK comes.
                    connection.writer.has_more = true;
                    let kind = self.blame.kind(&topic);
                    self.passed(connection, Some(Suspect { sequences, device, topic, kind }));
                }
                Meaning::Refused(problem) => self.reception.complaints.refused(&problem),
                Meaning::Unusable { recipient, command, problem } => {
                    self.reception.unusable(&recipient, &command, problem);
                }
            }
        }
    }
}

/// Waits for a message that may be written.
async fn something_to_say(outbox: &Outbox, has_more: bool) {
    if !has_more {
        outbox.changed().await;
    }
}

async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// 1 s, 2 s, 4 s, … 35 s, each with up to half more or less.
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
