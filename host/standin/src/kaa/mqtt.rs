//! The MQTT side: one connection.
//!
//! The protocol itself (3.1, 3.1.1 and 5, QoS 0 to 2, keep-alive) is `mqtt-protocol-core`'s; this
//! moves bytes, gives publications to the core and writes what it wants delivered. It is a
//! server and no broker: what a client publishes reaches no other client.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mqtt::common::Cursor;
use mqtt::connection::{ConnectionOptions, Event, TimerKind};
use mqtt::packet::{GenericPacketTrait, Packet, Qos, SubEntry};
use mqtt::{Version, packet, result_code as code, role};
use mqtt_protocol_core::mqtt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::cloud::{Cloud, Place};
use super::links::Delivery;
use super::mqtt31::{is_beginning, modern};
use super::service::{Message, Source};
use super::user::User;

/// Larger packets close the connection; the core refuses smaller ones with an answer.
pub const MAX_PACKET: u32 = 16 << 20;
/// Maximum unacknowledged publications of QoS 1 and 2; more wait.
const MAX_IN_FLIGHT: usize = 100;
/// A client that lets more wait is closed.
const MAX_WAITING: usize = 10_000;
/// How long a client may take to say CONNECT, and to read what is written to it.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// How long a client that is dropped on purpose gets to take note of its last acknowledgement: some see a
/// closed connection before what came just ahead of it.
const PARTING: Duration = Duration::from_millis(100);

type Protocol = mqtt::Connection<role::Server>;

/// One connection from CONNECT to its end.
pub(super) struct Session {
    cloud: Cloud,
    place: Place,
    users: Arc<[User]>,
    protocol: Protocol,
    /// The first bytes, until there are enough to tell the version; none afterwards.
    head: Option<Vec<u8>>,
    /// Bytes to write.
    output: Vec<u8>,
    /// Deliveries that wait for acknowledgements of earlier ones.
    waiting: VecDeque<Delivery>,
    in_flight: usize,
    deadline: Option<Instant>,
    closing: bool,
    /// Why, if the client did something wrong.
    trouble: Option<String>,
    /// By a fault.
    dropped: bool,
    /// Whether it may publish; one without a client certificate is noticed only then.
    is_trusted: bool,
}

impl Session {
    /// One that has said nothing yet.
    pub(super) fn new(cloud: Cloud, place: Place, users: Arc<[User]>, is_trusted: bool) -> Session {
        let options = ConnectionOptions::new().maximum_packet_size_recv(MAX_PACKET);
        let mut protocol = Protocol::with_options(Version::Undetermined, options);
        protocol.set_auto_pub_response(true);
        protocol.set_auto_ping_response(true);
        Session {
            cloud,
            place,
            users,
            protocol,
            head: Some(Vec::new()),
            output: Vec::new(),
            waiting: VecDeque::new(),
            in_flight: 0,
            deadline: Some(Instant::now() + PATIENCE),
            closing: false,
            trouble: None,
            dropped: false,
            is_trusted,
        }
    }

    /// Serves it to its end; an error says what the client did wrong.
    pub(super) async fn run(
        mut self,
        mut stream: impl AsyncRead + AsyncWrite + Unpin,
        mut inbox: mpsc::Receiver<Delivery>,
    ) -> Result<()> {
        let mut buffer = vec![0; 16 << 10];
        while !self.closing {
            let deadline = self.deadline;
            let timer = async move {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                read = stream.read(&mut buffer) => {
                    let length = read.context("reading")?;
                    if length == 0 {
                        return Ok(());
                    }
                    self.receive(buffer.get(..length).unwrap_or_default(), &mut inbox);
                }
                delivery = inbox.recv() => match delivery {
                    Some(delivery) => self.deliver(delivery),
                    // A second connection of the same client, or a tester.
                    None => return Ok(()),
                },
                () = timer => self.time_out(),
            }
            self.drain(&mut inbox);
            let write = async {
                stream.write_all(&self.output).await?;
                stream.flush().await
            };
            let written = timeout(PATIENCE, write).await.context("the client does not read");
            self.output.clear();
            // What the client did wrong matters more than that it went.
            if self.trouble.is_none() {
                written??;
            }
        }
        if self.dropped {
            tokio::time::sleep(PARTING).await;
        }
        // So that the last bytes arrive although the client may have sent more.
        let closed = timeout(PATIENCE, stream.shutdown()).await.context("closing");
        if self.trouble.is_none() {
            closed??;
        }
        let rest = async { while stream.read(&mut buffer).await.is_ok_and(|length| length > 0) {} };
        let _ = timeout(Duration::from_secs(1), rest).await;
        self.trouble.map_or(Ok(()), |trouble| bail!("{trouble}"))
    }

    fn receive(&mut self, bytes: &[u8], inbox: &mut mpsc::Receiver<Delivery>) {
        let first = match self.head.take() {
            None => None,
            Some(head) => {
                let head = [&head, bytes].concat();
                if is_beginning(&head) {
                    self.head = Some(head);
                    return;
                }
                Some(modern(&head).into_owned())
            }
        };
        let bytes = first.as_deref().unwrap_or(bytes);
        let mut cursor = Cursor::new(bytes);
        while !self.closing && cursor.position() < bytes.len() as u64 {
            let events = self.protocol.recv(&mut cursor);
            self.take(events);
            // One chunk can hold more requests than the inbox holds answers.
            self.drain(inbox);
        }
    }

    fn drain(&mut self, inbox: &mut mpsc::Receiver<Delivery>) {
        while let Ok(delivery) = inbox.try_recv() {
            self.deliver(delivery);
        }
    }

    fn time_out(&mut self) {
        self.deadline = None;
        if self.protocol.get_protocol_version() == Version::Undetermined {
            return self.close(format!("no CONNECT within {} s", PATIENCE.as_secs()));
        }
        let events = self.protocol.notify_timer_fired(TimerKind::PingreqRecv);
        self.take(events);
        self.close("nothing within its keep-alive".to_owned());
    }

    fn close(&mut self, trouble: String) {
        self.closing = true;
        self.trouble.get_or_insert(trouble);
    }

    /// Does what the protocol asks for.
    fn take(&mut self, events: Vec<Event>) {
        let is_publication = |event: &Event| {
            matches!(event, Event::NotifyPacketReceived(Packet::V3_1_1Publish(_) | Packet::V5_0Publish(_)))
        };
        if events.iter().any(is_publication) && (!self.is_trusted || self.place.drops_publication()) {
            // Before the PUBACK, which is among the events.
            self.closing = true;
            if !self.is_trusted {
                self.close("a publication without a client certificate".to_owned());
            }
            return;
        }
        for event in events {
            match event {
                Event::RequestSendPacket { packet, .. } => self.output.extend(packet.to_continuous_buffer()),
                Event::NotifyPacketReceived(packet) => self.packet(packet),
                Event::NotifyPacketIdReleased(_) => {
                    self.in_flight = self.in_flight.saturating_sub(1);
                    self.send_waiting();
                }
                Event::RequestTimerReset { duration_ms, .. } => {
                    self.deadline = Some(Instant::now() + Duration::from_millis(duration_ms));
                }
                Event::RequestTimerCancel(_) => self.deadline = None,
                Event::NotifyError(error) => {
                    self.close(format!("expected MQTT 3.1, 3.1.1 or 5: {error:?}"));
                }
                Event::RequestClose => self.closing = true,
            }
        }
    }

    fn packet(&mut self, packet: Packet) {
        match packet {
            Packet::V3_1_1Connect(connect) => {
                let good = self.is_known(connect.user_name(), connect.password());
                let return_code = if good {
                    code::ConnectReturnCode::Accepted
                } else {
                    code::ConnectReturnCode::BadUserNameOrPassword
                };
                let answer = packet::v3_1_1::Connack::builder().session_present(false).return_code(return_code).build();
                self.admit(good, connect.keep_alive(), connect.client_id(), answer.map(Packet::from));
            }
            Packet::V5_0Connect(connect) => {
                let good = self.is_known(connect.user_name(), connect.password());
                let reason = if good {
                    code::ConnectReasonCode::Success
                } else {
                    code::ConnectReasonCode::BadUserNameOrPassword
                };
                let answer = packet::v5_0::Connack::builder().session_present(false).reason_code(reason).build();
                self.admit(good, connect.keep_alive(), connect.client_id(), answer.map(Packet::from));
            }
            Packet::V3_1_1Publish(publish) => {
                self.publication(publish.topic_name(), publish.payload().as_slice(), publish.qos());
            }
            Packet::V5_0Publish(publish) => {
                self.publication(publish.topic_name(), publish.payload().as_slice(), publish.qos());
            }
            Packet::V3_1_1Subscribe(subscribe) => {
                let codes = subscribe.entries().iter().map(|entry| match self.subscribe(entry) {
                    Some(Qos::AtMostOnce) => code::SubackReturnCode::SuccessMaximumQos0,
                    Some(Qos::AtLeastOnce) => code::SubackReturnCode::SuccessMaximumQos1,
                    Some(Qos::ExactlyOnce) => code::SubackReturnCode::SuccessMaximumQos2,
                    None => code::SubackReturnCode::Failure,
                });
                let codes = codes.collect();
                let answer = packet::v3_1_1::Suback::builder().packet_id(subscribe.packet_id()).return_codes(codes);
                self.send(answer.build().map(Packet::from));
            }
            Packet::V5_0Subscribe(subscribe) => {
                let codes = subscribe.entries().iter().map(|entry| match self.subscribe(entry) {
                    Some(Qos::AtMostOnce) => code::SubackReasonCode::GrantedQos0,
                    Some(Qos::AtLeastOnce) => code::SubackReasonCode::GrantedQos1,
                    Some(Qos::ExactlyOnce) => code::SubackReasonCode::GrantedQos2,
                    None => code::SubackReasonCode::QuotaExceeded,
                });
                let codes = codes.collect();
                let answer = packet::v5_0::Suback::builder().packet_id(subscribe.packet_id()).reason_codes(codes);
                self.send(answer.build().map(Packet::from));
            }
            Packet::V3_1_1Unsubscribe(unsubscribe) => {
                unsubscribe.entries().iter().for_each(|filter| self.place.unsubscribe(filter.as_str()));
                let answer = packet::v3_1_1::Unsuback::builder().packet_id(unsubscribe.packet_id()).build();
                self.send(answer.map(Packet::from));
            }
            Packet::V5_0Unsubscribe(unsubscribe) => {
                unsubscribe.entries().iter().for_each(|filter| self.place.unsubscribe(filter.as_str()));
                let codes = vec![code::UnsubackReasonCode::Success; unsubscribe.entries().len()];
                let answer = packet::v5_0::Unsuback::builder().packet_id(unsubscribe.packet_id()).reason_codes(codes);
                self.send(answer.build().map(Packet::from));
            }
            Packet::V3_1_1Disconnect(_) | Packet::V5_0Disconnect(_) | Packet::V5_0Auth(_) => self.closing = true,
            // The protocol has answered the others.
            _ => {}
        }
    }

    fn is_known(&self, name: Option<&str>, password: Option<&[u8]>) -> bool {
        let same = |user: &User| Some(user.name.as_str()) == name && Some(user.password.as_bytes()) == password;
        self.users.is_empty() || self.users.iter().any(same)
    }

    fn admit<E>(&mut self, good: bool, keep_alive: u16, client_id: &str, answer: Result<Packet, E>) {
        if keep_alive == 0 {
            self.deadline = None;
        }
        if good {
            self.place.identify(client_id);
        }
        self.send(answer);
        if !good {
            self.close(format!("client {client_id:?}: the user name or the password is wrong"));
        }
    }

    fn subscribe(&self, entry: &SubEntry) -> Option<Qos> {
        let qos = entry.sub_opts().qos();
        self.place.subscribe(entry.topic_filter(), qos as u8).then_some(qos)
    }

    fn publication(&mut self, topic: &str, payload: &[u8], qos: Qos) {
        let source = Source::Mqtt(self.place.id, qos as u8);
        self.dropped = self.cloud.handle(Message { source, topic, payload }).close;
        self.closing |= self.dropped;
    }

    fn send<E>(&mut self, packet: Result<Packet, E>) {
        match packet {
            Ok(packet) => {
                let events = self.protocol.send(packet);
                self.take(events);
            }
            Err(_) => self.closing = true,
        }
    }

    fn deliver(&mut self, delivery: Delivery) {
        if self.waiting.len() >= MAX_WAITING {
            return self.close(format!("{MAX_WAITING} messages wait for it"));
        }
        self.waiting.push_back(delivery);
        self.send_waiting();
    }

    fn send_waiting(&mut self) {
        while let Some(next) = self.waiting.front() {
            let vacancy = self.protocol.get_receive_maximum_vacancy_for_send();
            if next.qos > 0 && (self.in_flight >= MAX_IN_FLIGHT || vacancy == Some(0)) {
                return;
            }
            if let Some(next) = self.waiting.pop_front() {
                self.publish(next);
            }
        }
    }

    fn publish(&mut self, delivery: Delivery) {
        let qos = Qos::try_from(delivery.qos).unwrap_or(Qos::AtMostOnce);
        let packet_id = match qos {
            Qos::AtMostOnce => None,
            _ => match self.protocol.acquire_packet_id() {
                Ok(id) => Some(id),
                Err(_) => return,
            },
        };
        let packet = match self.protocol.get_protocol_version() {
            Version::V5_0 => v5_publication(&delivery, qos, packet_id),
            _ => v3_publication(&delivery, qos, packet_id),
        };
        let Some(packet) = packet else { return };
        let mut sent = false;
        for event in self.protocol.send(packet) {
            if let Event::RequestSendPacket { packet, .. } = event {
                self.output.extend(packet.to_continuous_buffer());
                sent = true;
            }
        }
        match packet_id {
            Some(_) if sent => self.in_flight += 1,
            // Too large for this client.
            Some(id) => drop(self.protocol.release_packet_id(id)),
            None => {}
        }
    }
}

fn v3_publication(delivery: &Delivery, qos: Qos, packet_id: Option<u16>) -> Option<Packet> {
    let builder = packet::v3_1_1::Publish::builder().topic_name(delivery.topic.as_str()).ok()?;
    builder.qos(qos).retain(false).packet_id(packet_id).payload(&*delivery.payload).build().ok().map(Packet::from)
}

fn v5_publication(delivery: &Delivery, qos: Qos, packet_id: Option<u16>) -> Option<Packet> {
    let builder = packet::v5_0::Publish::builder().topic_name(delivery.topic.as_str()).ok()?;
    builder.qos(qos).retain(false).packet_id(packet_id).payload(&*delivery.payload).build().ok().map(Packet::from)
}
