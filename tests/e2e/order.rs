//! In which order a gateway speaks after a connect, and what it does about a
//! message that a broker cannot take: seen by a broker that looks at every packet.

use bytes::BytesMut;
use rumqttc::mqttbytes::Error;
use rumqttc::{ConnAck, ConnectReturnCode, Packet, PubAck, SubAck, SubscribeReasonCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use std::sync::{Arc, Mutex};

use crate::harness::{Gateway, PATIENCE, fixture, until};

/// Serves one client, and shows each packet to `look` before it is answered;
/// hangs up when that says so. Ok when the client hung up first.
async fn serve(mut stream: TcpStream, mut look: impl FnMut(&Packet) -> bool) -> Result<(), ()> {
    let mut input = BytesMut::new();
    loop {
        let packet = match Packet::read(&mut input, usize::MAX) {
            Ok(packet) => packet,
            Err(Error::InsufficientBytes(_)) => match stream.read_buf(&mut input).await {
                Ok(1..) => continue,
                _ => return Ok(()),
            },
            Err(error) => panic!("{error}"),
        };
        if !look(&packet) {
            return Err(());
        }
        let answer = match packet {
            Packet::Connect(_) => Packet::ConnAck(ConnAck::new(ConnectReturnCode::Success, false)),
            Packet::Subscribe(subscribe) => {
                let codes = subscribe.filters.iter().map(|filter| SubscribeReasonCode::Success(filter.qos));
                Packet::SubAck(SubAck::new(subscribe.pkid, codes.collect()))
            }
            Packet::Publish(publish) => Packet::PubAck(PubAck::new(publish.pkid)),
            _ => continue,
        };
        let mut output = BytesMut::new();
        answer.write(&mut output, usize::MAX).unwrap();
        if stream.write_all(&output).await.is_err() {
            return Ok(());
        }
    }
}

/// What the next client says, in order, until it has sent this many samples.
async fn listen(listener: &TcpListener, samples: usize) -> Vec<String> {
    let (stream, _) = listener.accept().await.unwrap();
    let mut said = Vec::new();
    let ended = serve(stream, |packet| {
        match packet {
            Packet::Subscribe(subscribe) => {
                said.extend(subscribe.filters.iter().map(|filter| format!("subscribe {}", filter.path)));
            }
            Packet::Publish(publish) => said.push(format!("publish {}", publish.topic)),
            _ => {}
        }
        said.iter().filter(|line| line.ends_with("telemetry")).count() < samples
    });
    assert_eq!(ended.await, Err(()), "the gateway hung up after {said:?}");
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_at_which_the_broker_hangs_up_is_held_back_and_the_rest_goes_on() {
    const LIMIT: usize = 2000;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let counts: Arc<Mutex<Vec<u64>>> = Arc::default();
    let seen = Arc::clone(&counts);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let _ = serve(stream, |packet| {
                let Packet::Publish(publish) = packet else { return true };
                if publish.topic == "v1/from/S01/s--small/v1/telemetry" {
                    let sample: serde_json::Value = serde_json::from_slice(&publish.payload).unwrap();
                    seen.lock().unwrap().extend(sample["count"].as_u64());
                }
                publish.payload.len() <= LIMIT
            })
            .await;
        }
    });
    let mut gateway = Gateway::prepare(&[("echo.wasm", fixture("echo"))]);
    let label = "x".repeat(LIMIT);
    gateway.start(
        port,
        &format!(
            "[devices.small]\ndriver = 'echo.wasm'\nconfiguration.main.interval_ms = 20\n\
             limits.telemetry = '1000/s'\n\
             [devices.big]\ndriver = 'echo.wasm'\nconfiguration.main = {{ interval_ms = 100, label = '{label}' }}\n\
             limits.telemetry = '1000/s'\n"
        ),
    );
    gateway.wait_for_log("a message on v1/telemetry: the broker closes the connection at it again and again");
    gateway.wait_for_log("all messages on v1/telemetry: the broker closes the connection at each");
    let log = gateway.log();
    let blamed = log.lines().filter(|line| line.contains("the broker closes the connection at"));
    assert!(blamed.clone().count() > 0 && blamed.clone().all(|line| line.contains("device=\"big\"")), "{log}");
    let before = gateway.device("small")["samples"].as_u64().unwrap();
    until("the other device's samples", || {
        let seen = counts.lock().unwrap();
        (1..=before).all(|count| seen.contains(&count)).then_some(())
    });
    // Nothing is thrown away as long as the broker may change its mind.
    let session = gateway.json(&["devices"])["sessions"]["main"].clone();
    assert_eq!((&session["rejected"], &session["dropped"]), (&0.into(), &0.into()), "{session}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_listens_before_it_sends_what_somebody_may_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut gateway = Gateway::prepare(&[("echo.wasm", fixture("echo"))]);
    let port = listener.local_addr().unwrap().port();
    gateway.start(port, "[devices.echo1]\ndriver = 'echo.wasm'\nconfiguration.main.interval_ms = 20\n");
    // With samples that wait from before, at the first connect and at a later one.
    for _ in 0..2 {
        gateway.wait_for_samples("echo1", 5);
        let said = timeout(PATIENCE, listen(&listener, 5)).await.expect("samples");
        let place =
            |what: &str| said.iter().position(|line| line == what).unwrap_or_else(|| panic!("{what}: {said:?}"));
        let announcement = place("publish v1/from/S01/s/v1/properties");
        let own = place("subscribe v1/to/S01/s/v1/command/requests");
        let child = place("subscribe v1/to/S01/s--echo1/v1/command/requests");
        let sample = said.iter().position(|line| line.ends_with("telemetry")).unwrap();
        assert!(announcement < own.min(child) && own.max(child) < sample, "{said:#?}");
    }
}
