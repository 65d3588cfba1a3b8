//! A device that never subscribes, as vendor code does.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};

use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use serde_json::Value as Json;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::harness::PATIENCE;

/// One MQTT connection; it speaks for as many endpoints as it likes.
pub struct Device {
    client: AsyncClient,
    seen: mpsc::UnboundedReceiver<Seen>,
    kept: Vec<Message>,
    pub acknowledged: usize,
    task: tokio::task::JoinHandle<()>,
}

/// A message that came.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    pub topic: String,
    pub payload: String,
    pub qos: u8,
    pub retain: bool,
}

enum Seen {
    Message(Message),
    Acknowledged,
    Closed,
}

impl Drop for Device {
    fn drop(&mut self) {
        // The connection goes with its task.
        self.task.abort();
    }
}

impl Seen {
    fn from_event(event: Event) -> Option<Seen> {
        match event {
            Event::Incoming(Packet::Publish(publish)) => Some(Seen::Message(Message {
                payload: String::from_utf8(publish.payload.to_vec()).unwrap(),
                qos: publish.qos as u8,
                retain: publish.retain,
                topic: publish.topic,
            })),
            Event::Incoming(Packet::PubAck(_) | Packet::PubComp(_)) => Some(Seen::Acknowledged),
            _ => None,
        }
    }
}

impl Message {
    pub fn json(&self) -> Json {
        serde_json::from_str(&self.payload).unwrap_or_else(|error| panic!("{self:?}: {error}"))
    }
}

impl Device {
    /// Connects; nothing is subscribed.
    pub async fn connect(address: SocketAddr) -> Device {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("device-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let mut options = MqttOptions::new(name, address.ip().to_string(), address.port());
        options.set_max_packet_size(32 << 20, 32 << 20);
        let (client, mut events) = AsyncClient::new(options, 100);
        let (sink, seen) = mpsc::unbounded_channel();
        let (tell, connected) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(async move {
            let mut tell = Some(tell);
            loop {
                match events.poll().await {
                    Ok(Event::Incoming(Packet::ConnAck(_))) => drop(tell.take().map(|tell| tell.send(()))),
                    Ok(event) => drop(Seen::from_event(event).map(|seen| sink.send(seen))),
                    Err(_) => {
                        // The client tells of the end before what came just ahead of it.
                        for event in events.state.events.drain(..) {
                            drop(Seen::from_event(event).map(|seen| sink.send(seen)));
                        }
                        let _ = sink.send(Seen::Closed);
                        return;
                    }
                }
            }
        });
        timeout(PATIENCE, connected).await.expect("a connection").expect("a connection");
        Device { client, seen, kept: Vec::new(), acknowledged: 0, task }
    }

    /// Publishes with QoS 1.
    pub async fn send(&self, topic: &str, payload: &str) {
        self.send_with(topic, payload.as_bytes(), QoS::AtLeastOnce).await;
    }

    /// Publishes.
    pub async fn send_with(&self, topic: &str, payload: &[u8], qos: QoS) {
        self.client.publish(topic, qos, false, payload).await.unwrap();
    }

    /// Subscribes; what comes afterwards is seen as everything else.
    pub async fn subscribe(&self, filter: &str) {
        self.client.subscribe(filter, QoS::AtLeastOnce).await.unwrap();
    }

    /// The first message on a topic that has not been waited for.
    pub async fn wait(&mut self, topic: &str) -> Message {
        let search = async {
            loop {
                if let Some(found) = self.kept.iter().position(|message| message.topic == topic) {
                    return self.kept.remove(found);
                }
                match self.seen.recv().await {
                    Some(Seen::Message(message)) => self.kept.push(message),
                    Some(Seen::Acknowledged) => self.acknowledged += 1,
                    Some(Seen::Closed) | None => panic!("closed before {topic}; there was {:#?}", self.kept),
                }
            }
        };
        match timeout(PATIENCE, search).await {
            Ok(message) => message,
            Err(_) => panic!("waited in vain for {topic}; there was {:#?}", self.kept),
        }
    }

    /// Asks for something and waits for the positive answer.
    pub async fn ask(&mut self, request: &str, payload: &str) -> Message {
        self.send(request, payload).await;
        self.wait(&format!("{request}/status")).await
    }

    /// Waits until an answer to a last request shows that nothing more comes before it; returns what was not waited for.
    pub async fn rest(&mut self, token: &str) -> Vec<Message> {
        let request = format!("kp1/a-v1/tsx/{token}/77777");
        self.ask(&request, "").await;
        std::mem::take(&mut self.kept)
    }

    /// Waits until the server closes the connection; returns what was not waited for.
    pub async fn closed(&mut self) -> Vec<Message> {
        let search = async {
            loop {
                match self.seen.recv().await {
                    Some(Seen::Message(message)) => self.kept.push(message),
                    Some(Seen::Acknowledged) => self.acknowledged += 1,
                    Some(Seen::Closed) | None => return std::mem::take(&mut self.kept),
                }
            }
        };
        timeout(PATIENCE, search).await.expect("the server closes the connection")
    }
}
