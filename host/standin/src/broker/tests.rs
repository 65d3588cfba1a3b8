//! Real clients on real sockets, good ones and hostile ones.

use bytes::BytesMut;
use rumqttc::mqttbytes::Error;
use rumqttc::{Connect, Packet, PubAck, PubRel, Subscribe, SubscribeFilter, SubscribeReasonCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::connection::WINDOW;
use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

/// A broker that runs, and what it tells.
struct Running {
    address: std::net::SocketAddr,
    broker: Broker,
    told: mpsc::UnboundedReceiver<String>,
    _tasks: JoinSet<()>,
}

async fn start() -> Running {
    let (tell, told) = mpsc::unbounded_channel();
    let broker = Broker::new(Box::new(move |happening| {
        let line = match happening {
            Happening::Connected { client, .. } => format!("connected {client}"),
            Happening::Published { topic, payload, .. } => format!("{topic} {}", String::from_utf8_lossy(payload)),
            Happening::Disconnected { reason, .. } => format!("disconnected: {reason}"),
            Happening::Refused { reason } => format!("refused: {reason}"),
        };
        tell.send(line).unwrap();
    }));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(broker.clone().run(listener));
    Running { address, broker, told, _tasks: tasks }
}

impl Running {
    /// The next thing that it tells.
    async fn tells(&mut self) -> String {
        timeout(PATIENCE, self.told.recv()).await.expect("something happens").unwrap()
    }

    /// A client that has connected.
    async fn client(&mut self, id: &str, keep_alive: u16) -> Client {
        let mut client = Client::to(self.address).await;
        let connect = Connect { keep_alive, ..Connect::new(id) };
        client.send(Packet::Connect(connect)).await;
        assert!(
            matches!(client.next().await, Some(Packet::ConnAck(ack)) if ack.code == rumqttc::ConnectReturnCode::Success)
        );
        assert_eq!(self.tells().await, format!("connected {id}"));
        client
    }
}

struct Client {
    stream: TcpStream,
    read: BytesMut,
}

impl Client {
    async fn to(address: std::net::SocketAddr) -> Client {
        Client { stream: TcpStream::connect(address).await.unwrap(), read: BytesMut::new() }
    }

    async fn send(&mut self, packet: Packet) {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, usize::MAX).unwrap();
        self.stream.write_all(&bytes).await.unwrap();
    }

    /// The next packet; none when the broker has closed the connection.
    async fn next(&mut self) -> Option<Packet> {
        timeout(PATIENCE, async {
            loop {
                match Packet::read(&mut self.read, usize::MAX) {
                    Ok(packet) => return Some(packet),
                    Err(Error::InsufficientBytes(_)) => {}
                    Err(error) => panic!("{error}"),
                }
                // A broker that closes with bytes unread resets the connection.
                if self.stream.read_buf(&mut self.read).await.unwrap_or_default() == 0 {
                    return None;
                }
            }
        })
        .await
        .expect("an answer")
    }

    async fn subscribe(&mut self, filters: &[&str]) -> Vec<SubscribeReasonCode> {
        let filters = filters.iter().map(|path| SubscribeFilter::new((*path).to_owned(), QoS::AtLeastOnce));
        let mut subscribe = Subscribe::new_many(filters);
        subscribe.pkid = 9;
        self.send(Packet::Subscribe(subscribe)).await;
        match self.next().await {
            Some(Packet::SubAck(ack)) => ack.return_codes,
            other => panic!("{other:?}"),
        }
    }
}

fn publish(topic: &str, qos: QoS, pkid: u16, payload: &str) -> Packet {
    Packet::Publish(Publish { pkid, ..Publish::new(topic, qos, payload) })
}

#[tokio::test]
async fn messages_are_told_before_they_are_acknowledged_and_delivered_to_who_asked() {
    let mut running = start().await;
    let mut reader = running.client("reader", 60).await;
    let granted = SubscribeReasonCode::Success(QoS::AtLeastOnce);
    assert_eq!(reader.subscribe(&["a/+", "a+"]).await, [granted, SubscribeReasonCode::Failure]);
    let mut writer = running.client("writer", 60).await;
    for (qos, payload) in [(QoS::AtMostOnce, "0"), (QoS::AtLeastOnce, "1"), (QoS::ExactlyOnce, "2")] {
        let packet = publish("a/b", qos, 7, payload);
        writer.send(packet.clone()).await;
        match qos {
            QoS::AtMostOnce => {}
            QoS::AtLeastOnce => assert!(matches!(writer.next().await, Some(Packet::PubAck(ack)) if ack.pkid == 7)),
            QoS::ExactlyOnce => {
                // Sent again before its release it is the same message.
                writer.send(packet).await;
                for _ in 0..2 {
                    assert!(matches!(writer.next().await, Some(Packet::PubRec(ack)) if ack.pkid == 7));
                }
                writer.send(Packet::PubRel(PubRel::new(7))).await;
                assert!(matches!(writer.next().await, Some(Packet::PubComp(ack)) if ack.pkid == 7));
            }
        }
        assert_eq!(running.tells().await, format!("a/b {payload}"));
        let Some(Packet::Publish(got)) = reader.next().await else { panic!("no message") };
        // As it was sent, and no better than it was subscribed to.
        let expected = if qos == QoS::AtMostOnce { QoS::AtMostOnce } else { QoS::AtLeastOnce };
        assert_eq!((got.topic.as_str(), &*got.payload, got.qos), ("a/b", payload.as_bytes(), expected));
        assert_eq!(got.pkid == 0, expected == QoS::AtMostOnce);
    }
    assert_eq!(
        (running.broker.publish("a/x", b"y", QoS::AtMostOnce), running.broker.publish("b", b"y", QoS::AtMostOnce)),
        (1, 0)
    );
    assert!(matches!(reader.next().await, Some(Packet::Publish(got)) if got.topic == "a/x"));
    writer.send(Packet::PingReq).await;
    assert_eq!(writer.next().await, Some(Packet::PingResp));
    writer.send(Packet::Disconnect).await;
    assert_eq!(writer.next().await, None);
    assert_eq!(running.tells().await, "disconnected: the client said good-bye");
    drop(reader);
    assert_eq!(running.tells().await, "disconnected: the connection was closed");
}

#[tokio::test]
async fn whoever_breaks_the_protocol_is_ended_alone_and_with_the_reason() {
    let mut running = start().await;
    let mut good = running.client("good", 60).await;
    good.subscribe(&["a"]).await;
    let mut mqtt5 = BytesMut::new();
    Connect { protocol: rumqttc::mqttbytes::Protocol::V5, ..Connect::new("v5") }.write(&mut mqtt5).unwrap();
    for (bytes, expected) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], "refused: expected CONNECT as the first packet"),
        (b"\x10\xff\xff\xff\xff\xff", "refused: expected MQTT 3.1.1: Malformed remaining length"),
        (b"\x10\xff\xff\xff\x7f", "refused: expected packets of at most 4194304 bytes, found 268435455"),
        (b"\x10\x02\xff\xff", "refused: expected MQTT 3.1.1: "),
        (b"\xc0\x00", "refused: expected CONNECT as the first packet"),
        (&mqtt5, "refused: expected MQTT 3.1.1, found MQTT 5"),
    ] {
        let mut client = Client::to(running.address).await;
        client.stream.write_all(bytes).await.unwrap();
        let told = running.tells().await;
        assert!(told.starts_with(expected), "{told}");
    }
    drop(Client::to(running.address).await);
    assert_eq!(running.tells().await, "refused: a client left without a CONNECT");
    for (bytes, expected) in [
        (&b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00"[..], "disconnected: a second CONNECT"),
        (b"\x20\x02\x00\x00", "disconnected: a packet that only a broker sends"),
        (b"\x32\x05\x00\x01a\x00\x00", "disconnected: expected MQTT 3.1.1: Packet id Zero"),
        (b"\x36\x05\x00\x01a\x00\x01", "disconnected: expected MQTT 3.1.1: Invalid QoS level: 3"),
        (b"\x30\x04\x00\x02\xff\xff", "disconnected: expected MQTT 3.1.1: Topic is not UTF-8"),
        (b"\x82\x02\x00\x01", "disconnected: expected MQTT 3.1.1: "),
        (b"\x30\xff\xff\xff\x7f", "disconnected: expected packets of at most 4194304 bytes, found 268435455"),
    ] {
        let mut client = running.client("bad", 60).await;
        client.stream.write_all(bytes).await.unwrap();
        assert_eq!(client.next().await, None);
        let told = running.tells().await;
        assert!(told.starts_with(expected), "{told}");
    }
    assert_eq!(running.broker.publish("a", b"still here", QoS::AtMostOnce), 1);
    assert!(matches!(good.next().await, Some(Packet::Publish(got)) if &*got.payload == b"still here"));
}

#[tokio::test]
async fn a_name_is_used_once_and_the_silent_are_ended() {
    let mut running = start().await;
    let mut first = running.client("same", 60).await;
    first.subscribe(&["a"]).await;
    let _second = running.client("same", 60).await;
    assert_eq!(first.next().await, None);
    assert_eq!(running.tells().await, "disconnected: another connection uses the same client id");
    // The subscription has ended with its connection.
    assert_eq!(running.broker.publish("a", b"x", QoS::AtMostOnce), 0);
    let mut silent = running.client("silent", 1).await;
    assert_eq!(silent.next().await, None);
    assert_eq!(running.tells().await, "disconnected: nothing was heard for longer than the keep-alive allows");
}

#[tokio::test]
async fn a_client_that_acknowledges_nothing_gets_a_window_of_messages_and_then_the_others() {
    let mut running = start().await;
    let mut slow = running.client("slow", 60).await;
    slow.subscribe(&["a"]).await;
    for number in 0..=WINDOW {
        assert_eq!(running.broker.publish("a", number.to_string().as_bytes(), QoS::AtLeastOnce), 1);
    }
    let mut ids = Vec::new();
    for number in 0..WINDOW {
        let Some(Packet::Publish(got)) = slow.next().await else { panic!("no message") };
        assert_eq!(&*got.payload, number.to_string().as_bytes());
        ids.push(got.pkid);
    }
    // The answer to a ping comes, and no message before it.
    slow.send(Packet::PingReq).await;
    assert_eq!(slow.next().await, Some(Packet::PingResp));
    slow.send(Packet::PubAck(PubAck::new(ids[3]))).await;
    let last = WINDOW.to_string();
    assert!(matches!(slow.next().await, Some(Packet::Publish(got)) if &*got.payload == last.as_bytes()));
    // Its name is taken over all the same.
    let _second = running.client("slow", 60).await;
    assert_eq!(slow.next().await, None);
}

#[tokio::test]
async fn a_client_that_does_not_read_gets_no_more_than_its_queue() {
    let mut running = start().await;
    let mut lazy = running.client("lazy", 60).await;
    lazy.subscribe(&["a"]).await;
    let payload = vec![0; 64 << 10];
    // The socket takes some; the queue takes its bound; the rest is dropped.
    let mut delivered = 0;
    let mut refused = 0;
    while refused < 100 {
        match running.broker.publish("a", &payload, QoS::AtMostOnce) {
            0 => refused += 1,
            _ => delivered += 1,
        }
        tokio::task::yield_now().await;
        assert!(delivered < 10_000, "nothing is ever refused");
    }
    let waiting = running.broker.clients().values().map(|client| client.waiting.load(Ordering::Relaxed)).sum::<usize>();
    assert!(waiting <= QUEUE, "{waiting}");
    for _ in 0..delivered {
        assert!(matches!(lazy.next().await, Some(Packet::Publish(got)) if got.payload.len() == payload.len()));
    }
}

#[tokio::test]
async fn connections_and_subscriptions_are_bounded_and_end_with_the_broker() {
    let mut running = start().await;
    let mut clients = Vec::new();
    for number in 0..MAX_CONNECTIONS {
        clients.push(running.client(&number.to_string(), 60).await);
    }
    let mut more = Client::to(running.address).await;
    assert_eq!(running.tells().await, format!("refused: expected at most {MAX_CONNECTIONS} connections"));
    assert_eq!(more.next().await, None);
    let filters: Vec<String> = (0..MAX_FILTERS + 1).map(|number| format!("a/{number}")).collect();
    let filters: Vec<&str> = filters.iter().map(String::as_str).collect();
    let codes = clients[0].subscribe(&filters).await;
    assert_eq!(codes.iter().filter(|code| **code == SubscribeReasonCode::Failure).count(), 1);
    drop(running);
    for mut client in clients {
        assert_eq!(client.next().await, None);
    }
}
