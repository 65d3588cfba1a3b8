//! The MQTT 3.1.1 side of a stand-in: connections, subscriptions, delivery.
//!
//! Tells everything to one observer, in order and before it acknowledges, and
//! ends with the task that runs it. Not a broker for production: quality of
//! service 0 towards clients, no sessions that outlive a connection, nothing
//! retained, no last wills, no credentials. Clients are hostile here: packets,
//! subscriptions, queues and connections are bounded.

mod connection;
mod filter;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rumqttc::{Publish, QoS};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// The largest packet; a larger one ends its connection.
pub const MAX_PACKET: usize = 4 << 20;
/// How many clients may be connected.
const MAX_CONNECTIONS: usize = 250;
/// How many filters one client may subscribe to: one for each channel.
const MAX_FILTERS: usize = 4000;
/// What waits for one client, in messages and in bytes; more is dropped, as
/// quality of service 0 allows.
const QUEUE: usize = 1000;
const QUEUE_BYTES: usize = 4 << 20;
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
}

struct Client {
    id: String,
    filters: Vec<String>,
    queue: mpsc::Sender<Publish>,
    waiting: Arc<AtomicUsize>,
}

/// What a connection takes from when it writes.
struct Queue {
    messages: mpsc::Receiver<Publish>,
    waiting: Arc<AtomicUsize>,
}

impl Broker {
    /// Makes a broker without clients.
    pub fn new(observer: Box<Observer>) -> Broker {
        Broker { inner: Arc::new(Inner { clients: Mutex::default(), next: AtomicU64::new(1), observer }) }
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

    /// Delivers a message to all who subscribed; returns how many these are.
    pub fn publish(&self, topic: &str, payload: &[u8]) -> usize {
        let clients = self.clients();
        let mut subscribed = clients.values().filter(|client| client.wants(topic)).peekable();
        if subscribed.peek().is_none() {
            return 0;
        }
        // A copy of its own: the payload may be a slice of a large buffer.
        let payload = Bytes::copy_from_slice(payload);
        let publish = Publish::from_bytes(topic, QoS::AtMostOnce, payload);
        subscribed.filter(|client| client.offer(&publish)).count()
    }

    fn tell(&self, happening: Happening<'_>) {
        (self.inner.observer)(happening);
    }

    /// Enters a client; an older connection of the same name ends. Returns the
    /// name that it goes by.
    fn enter(&self, id: String) -> (Link, String, Queue) {
        let (queue, messages) = mpsc::channel(QUEUE);
        let waiting = Arc::new(AtomicUsize::new(0));
        let link = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let id = if id.is_empty() { format!("unnamed-{link}") } else { id };
        let mut clients = self.clients();
        // A connection whose queue is gone ends itself.
        clients.retain(|_, client| client.id != id);
        clients.insert(link, Client { id: id.clone(), filters: Vec::new(), queue, waiting: Arc::clone(&waiting) });
        (link, id, Queue { messages, waiting })
    }

    fn leave(&self, link: Link) {
        self.clients().remove(&link);
    }

    /// Adds a subscription; false when it is malformed or one too many.
    fn subscribe(&self, link: Link, filter: String) -> bool {
        let mut clients = self.clients();
        let Some(client) = clients.get_mut(&link) else { return false };
        if !filter::is_valid(&filter) || client.filters.len() >= MAX_FILTERS {
            return false;
        }
        if !client.filters.contains(&filter) {
            client.filters.push(filter);
        }
        true
    }

    fn unsubscribe(&self, link: Link, filter: &str) {
        if let Some(client) = self.clients().get_mut(&link) {
            client.filters.retain(|known| known != filter);
        }
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<Link, Client>> {
        self.inner.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    fn wants(&self, topic: &str) -> bool {
        self.filters.iter().any(|filter| filter::matches(filter, topic))
    }

    /// Puts a message into the queue if there is room.
    fn offer(&self, publish: &Publish) -> bool {
        let size = publish.size();
        if self.waiting.fetch_add(size, Ordering::Relaxed) + size <= QUEUE_BYTES
            && self.queue.try_send(publish.clone()).is_ok()
        {
            return true;
        }
        self.waiting.fetch_sub(size, Ordering::Relaxed);
        false
    }
}

impl Queue {
    /// The next message; none when another connection took the client's name.
    async fn next(&mut self) -> Option<Publish> {
        let publish = self.messages.recv().await?;
        self.waiting.fetch_sub(publish.size(), Ordering::Relaxed);
        Some(publish)
    }
}

#[cfg(test)]
mod tests;
