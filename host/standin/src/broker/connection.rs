//! One client's connection, from CONNECT to its end.
//!
//! Reads packets, answers them, writes what the client has subscribed to. A
//! client that breaks the protocol, or does not take its messages, is ended
//! with the reason; the others do not notice.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bytes::BytesMut;
use rumqttc::mqttbytes::Error;
use rumqttc::{
    ConnAck, ConnectReturnCode, Packet, Protocol, PubAck, PubComp, PubRec, Publish, QoS, SubAck, SubscribeReasonCode,
    UnsubAck,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Broker, Happening, Link, MAX_PACKET, Place, Queue};

/// How long a client may take to say CONNECT, and to take what is written.
const PATIENCE: Duration = Duration::from_secs(10);
/// The first byte of CONNECT.
const CONNECT: u8 = 0x10;
/// Longer client ids are of no use.
const MAX_CLIENT_ID: usize = 256;
/// What waits is written at the latest at this many bytes.
const FLUSH: usize = 64 << 10;
/// How many messages may be on their way to a client that acknowledges them.
pub(super) const WINDOW: usize = 100;

/// Serves one client and tells its beginning and its end.
pub(super) async fn serve(stream: TcpStream, broker: Broker) {
    let _ = stream.set_nodelay(true);
    let mut wire = Wire { stream, read: BytesMut::new(), write: BytesMut::new() };
    let (client, keep_alive) = match timeout(PATIENCE, greet(&mut wire)).await {
        Ok(Ok(connect)) => connect,
        Ok(Err(error)) => return broker.tell(Happening::Refused { reason: &format!("{error:#}") }),
        Err(_) => return broker.tell(Happening::Refused { reason: "a client did not send CONNECT" }),
    };
    let Place { link, name, queue, lost } = broker.enter(client);
    broker.tell(Happening::Connected { link, client: &name });
    // Also when the task is ended from outside.
    let _leaving = Leaving { broker: broker.clone(), link };
    let mut connection =
        Connection { link, broker, wire, exactly_once: HashSet::new(), unproved: HashSet::new(), last_id: 0 };
    let reason = match connection.run(queue, lost, keep_alive).await {
        Ok(reason) => reason.to_owned(),
        Err(error) => format!("{error:#}"),
    };
    connection.broker.tell(Happening::Disconnected { link, reason: &reason });
}

struct Leaving {
    broker: Broker,
    link: Link,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.broker.leave(self.link);
    }
}

/// Waits for CONNECT and answers it: client id and keep-alive.
async fn greet(wire: &mut Wire) -> Result<(String, Option<Duration>)> {
    // Other protocols are told by their first byte; their "length" may never come.
    if wire.first().await?.is_some_and(|byte| byte != CONNECT) {
        bail!("expected CONNECT as the first packet");
    }
    let Some(packet) = wire.read().await? else { bail!("a client left without a CONNECT") };
    let Packet::Connect(connect) = packet else { bail!("expected CONNECT as the first packet") };
    let refusal = match connect.protocol {
        Protocol::V5 => Some((ConnectReturnCode::RefusedProtocolVersion, "expected MQTT 3.1.1, found MQTT 5")),
        Protocol::V4 if connect.client_id.len() > MAX_CLIENT_ID => {
            Some((ConnectReturnCode::BadClientId, "expected a shorter client id"))
        }
        Protocol::V4 => None,
    };
    let code = refusal.map_or(ConnectReturnCode::Success, |(code, _)| code);
    wire.put(&Packet::ConnAck(ConnAck::new(code, false)))?;
    wire.flush().await?;
    if let Some((_, reason)) = refusal {
        bail!("{reason}");
    }
    // The standard gives a client one and a half times its keep-alive.
    let seconds = u64::from(connect.keep_alive);
    let keep_alive = (seconds > 0).then(|| Duration::from_millis(seconds * 1500));
    Ok((connect.client_id, keep_alive))
}

struct Connection {
    link: Link,
    broker: Broker,
    wire: Wire,
    /// Packet ids that were delivered and not released; at most all 65,535.
    exactly_once: HashSet<u16>,
    /// Packet ids that the client has not acknowledged; at most `WINDOW`.
    unproved: HashSet<u16>,
    last_id: u16,
}

impl Connection {
    /// Returns why the connection ended well; an error is any other end.
    async fn run(
        &mut self,
        mut queue: Queue,
        mut lost: oneshot::Receiver<()>,
        keep_alive: Option<Duration>,
    ) -> Result<&'static str> {
        let mut heard = Instant::now();
        loop {
            let silent = async {
                match keep_alive {
                    Some(time) => sleep_until(heard + time).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                packet = self.wire.read() => {
                    heard = Instant::now();
                    match packet? {
                        None => return Ok("the connection was closed"),
                        Some(Packet::Disconnect) => return Ok("the client said good-bye"),
                        Some(packet) => self.answer(packet)?,
                    }
                    // Answers to packets that came together leave together.
                    while self.wire.write.len() < FLUSH && let Some(packet) = self.wire.buffered()? {
                        if packet == Packet::Disconnect {
                            return Ok("the client said good-bye");
                        }
                        self.answer(packet)?;
                    }
                }
                _ = &mut lost => return Ok("another connection uses the same client id"),
                Some(message) = queue.next(), if self.unproved.len() < WINDOW => {
                    self.deliver(message)?;
                    // What waits leaves together.
                    while self.unproved.len() < WINDOW
                        && self.wire.write.len() < FLUSH
                        && let Some(message) = queue.waiting()
                    {
                        self.deliver(message)?;
                    }
                }
                () = silent => bail!("nothing was heard for longer than the keep-alive allows"),
            }
            self.wire.flush().await?;
        }
    }

    fn answer(&mut self, packet: Packet) -> Result<()> {
        match packet {
            Packet::Publish(publish) => self.publish(publish),
            Packet::PubRel(release) => {
                self.exactly_once.remove(&release.pkid);
                self.wire.put(&Packet::PubComp(PubComp::new(release.pkid)))
            }
            Packet::Subscribe(subscribe) => {
                let (broker, link) = (&self.broker, self.link);
                let codes = subscribe.filters.into_iter().map(|filter| {
                    let granted = broker.subscribe(link, filter.path, filter.qos);
                    granted.map_or(SubscribeReasonCode::Failure, SubscribeReasonCode::Success)
                });
                self.wire.put(&Packet::SubAck(SubAck::new(subscribe.pkid, codes.collect())))
            }
            Packet::Unsubscribe(unsubscribe) => {
                unsubscribe.topics.iter().for_each(|filter| self.broker.unsubscribe(self.link, filter));
                self.wire.put(&Packet::UnsubAck(UnsubAck::new(unsubscribe.pkid)))
            }
            Packet::PingReq => self.wire.put(&Packet::PingResp),
            Packet::PubAck(ack) => {
                self.unproved.remove(&ack.pkid);
                Ok(())
            }
            // Nothing is sent with a quality of service that they could answer.
            Packet::PubRec(_) | Packet::PubComp(_) => Ok(()),
            Packet::Connect(_) => bail!("a second CONNECT"),
            _ => bail!("a packet that only a broker sends"),
        }
    }

    /// Writes a message to the client.
    fn deliver(&mut self, mut message: Publish) -> Result<()> {
        if message.qos == QoS::AtLeastOnce {
            // Ids that are in use are fewer than there are.
            loop {
                self.last_id = self.last_id.checked_add(1).unwrap_or(1);
                if self.unproved.insert(self.last_id) {
                    break;
                }
            }
            message.pkid = self.last_id;
        }
        self.wire.put(&Packet::Publish(message))
    }

    fn publish(&mut self, publish: Publish) -> Result<()> {
        let again = publish.qos == QoS::ExactlyOnce && !self.exactly_once.insert(publish.pkid);
        if !again {
            let (link, topic, payload) = (self.link, publish.topic.as_str(), publish.payload.as_ref());
            self.broker.tell(Happening::Published { link, topic, payload });
            self.broker.publish(topic, payload, publish.qos);
        }
        match publish.qos {
            QoS::AtMostOnce => Ok(()),
            QoS::AtLeastOnce => self.wire.put(&Packet::PubAck(PubAck::new(publish.pkid))),
            QoS::ExactlyOnce => self.wire.put(&Packet::PubRec(PubRec::new(publish.pkid))),
        }
    }
}

/// Packets on a stream of bytes.
struct Wire {
    stream: TcpStream,
    read: BytesMut,
    write: BytesMut,
}

impl Wire {
    /// The first byte that comes; it stays to be read.
    async fn first(&mut self) -> Result<Option<u8>> {
        self.stream.read_buf(&mut self.read).await.context("reading")?;
        Ok(self.read.first().copied())
    }

    /// The next packet, or none at the end; nothing is lost when the wait is
    /// given up.
    async fn read(&mut self) -> Result<Option<Packet>> {
        loop {
            if let Some(packet) = self.buffered()? {
                return Ok(Some(packet));
            }
            if self.stream.read_buf(&mut self.read).await.context("reading")? == 0 {
                return Ok(None);
            }
        }
    }

    /// The next packet that has come already.
    fn buffered(&mut self) -> Result<Option<Packet>> {
        match Packet::read(&mut self.read, MAX_PACKET) {
            Ok(packet) => Ok(Some(packet)),
            Err(Error::InsufficientBytes(_)) => Ok(None),
            Err(Error::PayloadSizeLimitExceeded(size)) => {
                Err(anyhow!("expected packets of at most {MAX_PACKET} bytes, found {size}"))
            }
            Err(error) => Err(anyhow!("expected MQTT 3.1.1: {error}")),
        }
    }

    fn put(&mut self, packet: &Packet) -> Result<()> {
        packet.write(&mut self.write, usize::MAX).map(drop).map_err(|error| anyhow!("encoding an answer: {error}"))
    }

    async fn flush(&mut self) -> Result<()> {
        let written = timeout(PATIENCE, self.stream.write_all_buf(&mut self.write)).await;
        written.context("the client does not take its messages")?.context("writing")
    }
}
