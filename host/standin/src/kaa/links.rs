//! The open connections: a queue to each, and what each has subscribed to.
//!
//! `cloud` delivers through it; a connection's task holds the other end of its queue.

use std::collections::BTreeMap;

use bytes::Bytes;
use rumqttc::matches;
use tokio::sync::mpsc;

use super::routes::ConnectionId;

/// Maximum connections.
pub const MAX_CONNECTIONS: usize = 1024;
/// Maximum subscriptions of a connection.
pub const MAX_SUBSCRIPTIONS: usize = 20_000;
/// A connection that lets more messages wait is closed.
pub const QUEUE: usize = 8192;

/// A message on its way to a connection.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The topic.
    pub topic: String,
    /// The payload.
    pub payload: Bytes,
    /// The QoS.
    pub qos: u8,
}

/// All open connections.
#[derive(Debug, Default)]
pub struct Links {
    open: BTreeMap<ConnectionId, Link>,
    last_id: u64,
}

#[derive(Debug)]
struct Link {
    // Dropping it closes the connection.
    queue: mpsc::Sender<Delivery>,
    client_id: String,
    subscriptions: BTreeMap<String, u8>,
}

impl Links {
    /// Adds a connection; None if there are too many.
    pub fn open(&mut self) -> Option<(ConnectionId, mpsc::Receiver<Delivery>)> {
        if self.open.len() >= MAX_CONNECTIONS {
            return None;
        }
        let (queue, receiver) = mpsc::channel(QUEUE);
        self.last_id += 1;
        let id = ConnectionId(self.last_id);
        self.open.insert(id, Link { queue, client_id: String::new(), subscriptions: BTreeMap::new() });
        Some((id, receiver))
    }

    /// Notes a connection's client id; an older connection with the same one is closed, as MQTT demands.
    pub fn identify(&mut self, id: ConnectionId, client_id: &str) {
        if !client_id.is_empty() {
            self.open.retain(|other, link| *other == id || link.client_id != client_id);
        }
        if let Some(link) = self.open.get_mut(&id) {
            client_id.clone_into(&mut link.client_id);
        }
    }

    /// Closes a connection.
    pub fn close(&mut self, id: ConnectionId) {
        self.open.remove(&id);
    }

    /// Closes all connections.
    pub fn close_all(&mut self) {
        self.open.clear();
    }

    /// How many connections are open.
    pub fn count(&self) -> usize {
        self.open.len()
    }

    /// Notes a subscription; false if there are too many.
    pub fn subscribe(&mut self, id: ConnectionId, filter: &str, qos: u8) -> bool {
        let Some(link) = self.open.get_mut(&id) else { return false };
        if link.subscriptions.len() >= MAX_SUBSCRIPTIONS && !link.subscriptions.contains_key(filter) {
            return false;
        }
        link.subscriptions.insert(filter.to_owned(), qos);
        true
    }

    /// Forgets a subscription.
    pub fn unsubscribe(&mut self, id: ConnectionId, filter: &str) {
        if let Some(link) = self.open.get_mut(&id) {
            link.subscriptions.remove(filter);
        }
    }

    /// Queues a message for the speaker, subscribed or not, and for every listener that has subscribed to
    /// its topic. Without a speaker it is for the listeners alone. A queue that is full closes its connection.
    pub fn deliver(&mut self, speaker: Option<ConnectionId>, delivery: &Delivery) {
        self.open.retain(|id, link| {
            let qos = if Some(*id) == speaker {
                delivery.qos
            } else {
                match link.granted(&delivery.topic) {
                    Some(granted) => granted.min(delivery.qos),
                    None => return true,
                }
            };
            link.queue.try_send(Delivery { qos, ..delivery.clone() }).is_ok()
        });
    }
}

impl Link {
    fn granted(&self, topic: &str) -> Option<u8> {
        let subscriptions = self.subscriptions.iter().filter(|(filter, _)| matches(topic, filter));
        subscriptions.map(|(_, qos)| *qos).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(topic: &str) -> Delivery {
        Delivery { topic: topic.to_owned(), payload: Bytes::new(), qos: 1 }
    }

    #[test]
    fn the_speaker_gets_everything_and_listeners_what_they_subscribed_to() {
        let mut links = Links::default();
        let (speaker, mut to_speaker) = links.open().unwrap();
        let (listener, mut to_listener) = links.open().unwrap();
        assert!(links.subscribe(listener, "kp1/a/dcx/T/json/#", 0));
        links.deliver(Some(speaker), &delivery("kp1/a/dcx/T/json/5/status"));
        links.deliver(Some(speaker), &delivery("kp1/a/epmx/T/get/5/status"));
        assert_eq!(to_speaker.try_recv().unwrap().qos, 1);
        assert_eq!(to_speaker.try_recv().unwrap().topic, "kp1/a/epmx/T/get/5/status");
        assert_eq!(to_listener.try_recv().unwrap().qos, 0);
        assert!(to_listener.try_recv().is_err());
        links.unsubscribe(listener, "kp1/a/dcx/T/json/#");
        links.deliver(None, &delivery("kp1/a/dcx/T/json/5/status"));
        assert!(to_listener.try_recv().is_err());
    }

    #[test]
    fn a_connection_that_does_not_read_and_one_whose_client_id_is_taken_are_closed() {
        let mut links = Links::default();
        let (slow, mut to_slow) = links.open().unwrap();
        for _ in 0..=QUEUE {
            links.deliver(Some(slow), &delivery("x"));
        }
        assert_eq!(links.count(), 0);
        assert_eq!(std::iter::from_fn(|| to_slow.try_recv().ok()).count(), QUEUE);
        let (old, _to_old) = links.open().unwrap();
        links.identify(old, "gateway");
        let (new, _to_new) = links.open().unwrap();
        links.identify(new, "gateway");
        assert!(!links.subscribe(old, "x", 0));
        assert!(links.subscribe(new, "x", 0));
        links.close_all();
        assert_eq!(links.count(), 0);
    }
}
