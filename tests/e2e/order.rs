//! In which order a gateway speaks after a connect: seen by a broker that
//! writes down every packet.

use bytes::BytesMut;
use rumqttc::mqttbytes::Error;
use rumqttc::{ConnAck, ConnectReturnCode, Packet, PubAck, SubAck, SubscribeReasonCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::harness::{Gateway, PATIENCE, fixture};

/// What the next client says, in order, until it has sent this many samples.
async fn listen(listener: &TcpListener, samples: usize) -> Vec<String> {
    let (mut stream, _) = listener.accept().await.unwrap();
    let (mut input, mut said) = (BytesMut::new(), Vec::new());
    while said.iter().filter(|line: &&String| line.ends_with("telemetry")).count() < samples {
        let answer = match Packet::read(&mut input, usize::MAX) {
            Ok(Packet::Connect(_)) => Some(Packet::ConnAck(ConnAck::new(ConnectReturnCode::Success, false))),
            Ok(Packet::Subscribe(subscribe)) => {
                said.extend(subscribe.filters.iter().map(|filter| format!("subscribe {}", filter.path)));
                let codes = subscribe.filters.iter().map(|filter| SubscribeReasonCode::Success(filter.qos));
                Some(Packet::SubAck(SubAck::new(subscribe.pkid, codes.collect())))
            }
            Ok(Packet::Publish(publish)) => {
                said.push(format!("publish {}", publish.topic));
                Some(Packet::PubAck(PubAck::new(publish.pkid)))
            }
            Ok(_) => None,
            Err(Error::InsufficientBytes(_)) => {
                assert!(stream.read_buf(&mut input).await.unwrap() > 0, "the gateway hung up after {said:?}");
                None
            }
            Err(error) => panic!("{error}"),
        };
        if let Some(answer) = answer {
            let mut output = BytesMut::new();
            answer.write(&mut output, usize::MAX).unwrap();
            stream.write_all(&output).await.unwrap();
        }
    }
    said
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
