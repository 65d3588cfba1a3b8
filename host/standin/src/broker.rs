//! The MQTT 3.1.1 side of a stand-in: connections, subscriptions, delivery.
//!
//! Tells everything to one observer, in order and before it acknowledges, and
//! ends with the task that runs it. Delivers with quality of service 0 or 1, as
//! a client subscribes. Not a broker for production: no sessions that outlive a
//! connection, nothing retained, no last wills, no credentials. Clients are
//! hostile here: packets, subscriptions, queues and connections are bounded.

mod connection;
mod filter;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rumqttc::{Publish, QoS};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

/// The largest packet; a larger one ends its connection.
pub const MAX_PACKET: usize = 4 << 20;
/// How many clients may be connected.
const MAX_CONNECTIONS: usize = 250;
/// How many filters one client may subscribe to: one for each channel.
const MAX_FILTERS: usize = 4000;
/// The bytes that wait for one client; what is more is dropped, for a client
/// that does not take its messages must not cost the others theirs.
const QUEUE: usize = 4 << 20;
/// What a message costs beside its topic and payload.
const MESSAGE: usize = 128;
/// How long accepting pauses when the system has no more sockets.
const PAUSE: Duration = Duration::from_millis(100);

/// One connection, unique in the life of the broker.
pub type Link = u64;

/// What happens at the broker.
#[derive(Debug)]
pub enum Happening<'a> {
    /// A client has connected.
    Connected {
        /// Its connection.
        link: Link,
        /// What it calls itself.
        client: &'a str,
    },
    /// A client has published; it is acknowledged when the observer is done.
    Published {
        /// Its connection.
        link: Link,
        /// The topic, any text.
        topic: &'a str,
        /// The payload, at most `MAX_PACKET` bytes.
        payload: &'a [u8],
    },
    /// A connection has ended.
    Disconnected {
        /// The connection.
        link: Link,
        /// Why.
        reason: &'a str,
    },
    /// A connection ended before it was one, or was refused.
    Refused {
        /// Why.
        reason: &'a str,
    },
}

/// Sees all that happens.
pub type Observer = dyn Fn(Happening<'_>) + Send + Sync;

/// The connected clients; clones share them.
#[derive(Clone)]
pub struct Broker {
    inner: Arc<Inner>,
}

struct Inner {
    clients: Mutex<HashMap<Link, Client>>,
    next: AtomicU64,
    observer: Box<Observer>,
    /// The bytes that wait for one client.
    room: usize,
}

struct Client {
    id: String,
    filters: Vec<(String, QoS)>,
    queue: mpsc::UnboundedSender<Publish>,
    waiting: Arc<AtomicUsize>,
    /// Gone with the client's place in the table.
    _place: oneshot::Sender<()>,
}

/// What a connection takes from when it writes.
struct Queue {
    messages: mpsc::UnboundedReceiver<Publish>,
    waiting: Arc<AtomicUsize>,
}

/// A client's place among all.
struct Place {
    link: Link,
    /// What the client goes by.
    name: String,
    queue: Queue,
    /// Ends when another connection has taken the client's name.
    lost: oneshot::Receiver<()>,
}

impl Broker {
    /// Makes a broker without clients.
    pub fn new(observer: Box<Observer>) -> Broker {
        Broker::with_room(observer, QUEUE)
    }

    /// Makes a broker that keeps this number of bytes for each client that is slow.
    pub fn with_room(observer: Box<Observer>, room: usize) -> Broker {
        Broker { inner: Arc::new(Inner { clients: Mutex::default(), next: AtomicU64::new(1), observer, room }) }
    }

    /// Serves clients; ends them all when it is dropped.
    pub async fn run(self, listener: TcpListener) {
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = connections.join_next() => continue,
            };
            match accepted {
                Ok((stream, _)) if connections.len() < MAX_CONNECTIONS => {
                    connections.spawn(connection::serve(stream, self.clone()));
                }
                Ok(_) => {
                    let reason = format!("expected at most {MAX_CONNECTIONS} connections");
                    self.tell(Happening::Refused { reason: &reason });
                }
                Err(error) => {
                    self.tell(Happening::Refused { reason: &format!("accepting a connection: {error}") });
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Delivers a message to all who subscribed, with this quality of service at
    /// most; returns how many these are.
    pub fn publish(&self, topic: &str, payload: &[u8], qos: QoS) -> usize {
        let clients = self.clients();
        let mut subscribed = clients.values().filter_map(|client| Some((client, client.wants(topic)?))).peekable();
        if subscribed.peek().is_none() {
            return 0;
        }
        // A copy of its own: the payload may be a slice of a large buffer.
        let mut publish = Publish::from_bytes(topic, qos, Bytes::copy_from_slice(payload));
        let is_taken = |(client, wanted): (&Client, QoS)| {
            let is_sure = qos != QoS::AtMostOnce && wanted != QoS::AtMostOnce;
            publish.qos = if is_sure { QoS::AtLeastOnce } else { QoS::AtMostOnce };
            client.offer(&publish, self.inner.room)
        };
        subscribed.map(is_taken).filter(|is_taken| *is_taken).count()
    }

    fn tell(&self, happening: Happening<'_>) {
        (self.inner.observer)(happening);
    }

    /// Enters a client; an older connection of the same name ends.
    fn enter(&self, id: String) -> Place {
        let (queue, messages) = mpsc::unbounded_channel();
        let (place, lost) = oneshot::channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let link = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let id = if id.is_empty() { format!("unnamed-{link}") } else { id };
        let mut clients = self.clients();
        // A connection that has lost its place ends itself.
        clients.retain(|_, client| client.id != id);
        let client =
            Client { id: id.clone(), filters: Vec::new(), queue, waiting: Arc::clone(&waiting), _place: place };
        clients.insert(link, client);
        Place { link, name: id, queue: Queue { messages, waiting }, lost }
    }

    fn leave(&self, link: Link) {
        self.clients().remove(&link);
    }

    /// Adds a subscription, or changes its quality of service. Gives the one that
    /// it has; none when it is malformed or one too many.
    fn subscribe(&self, link: Link, filter: String, qos: QoS) -> Option<QoS> {
        let mut clients = self.clients();
        let client = clients.get_mut(&link)?;
        let qos = if qos == QoS::AtMostOnce { qos } else { QoS::AtLeastOnce };
        if let Some((_, known)) = client.filters.iter_mut().find(|(known, _)| *known == filter) {
            *known = qos;
            return Some(qos);
        }
        if !filter::is_valid(&filter) || client.filters.len() >= MAX_FILTERS {
            return None;
        }
        client.filters.push((filter, qos));
        Some(qos)
    }

    fn unsubscribe(&self, link: Link, filter: &str) {
        if let Some(client) = self.clients().get_mut(&link) {
            client.filters.retain(|(known, _)| known != filter);
        }
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<Link, Client>> {
        self.inner.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    /// With which quality of service a topic is subscribed to: the best, where
    /// filters overlap.
    fn wants(&self, topic: &str) -> Option<QoS> {
        let matching = self.filters.iter().filter(|(filter, _)| filter::matches(filter, topic));
        matching.map(|(_, qos)| *qos).max_by_key(|qos| *qos as u8)
    }

    /// Puts a message into the queue if there is room.
    fn offer(&self, publish: &Publish, room: usize) -> bool {
        let size = publish.size() + MESSAGE;
        if self.waiting.fetch_add(size, Ordering::Relaxed) + size <= room && self.queue.send(publish.clone()).is_ok() {
            return true;
        }
        self.waiting.fetch_sub(size, Ordering::Relaxed);
        false
    }
}

impl Queue {
    /// The next message; none when there will be no more.
    async fn next(&mut self) -> Option<Publish> {
        let publish = self.messages.recv().await?;
        Some(self.taken(publish))
    }

    /// The next message that waits already.
    fn waiting(&mut self) -> Option<Publish> {
        let publish = self.messages.try_recv().ok()?;
        Some(self.taken(publish))
    }

    fn taken(&self, publish: Publish) -> Publish {
        self.waiting.fetch_sub(publish.size() + MESSAGE, Ordering::Relaxed);
        publish
    }
}

#[cfg(test)]
mod tests;
