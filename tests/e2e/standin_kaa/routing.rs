//! Connections: answers without SUBSCRIBE, the last speaker, outages, hostile input; and the HTTP side.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use rumqttc::QoS;
use sandgate_standin::kaa::endpoint::TokenState;
use sandgate_standin::kaa::metadata::Access;
use sandgate_standin::kaa::{self, Rules, Settings};
use serde_json::{Value as Json, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::device::Device;
use crate::harness::PATIENCE;

/// Asks again and again without blocking the runtime.
pub async fn until_async(what: &str, mut ask: impl FnMut() -> bool) {
    let wait = async {
        while !ask() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("waited in vain for {what}"));
}

/// An answer of the HTTP side.
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: Bytes,
}

impl Answer {
    fn json(&self) -> Json {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{:?}: {error}", self.body))
    }
}

/// Calls the HTTP side.
pub async fn call(address: SocketAddr, method: &str, path: &str, body: impl Into<Bytes>) -> Answer {
    call_with(address, method, path, body, &[]).await
}

async fn call_with(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: impl Into<Bytes>,
    headers: &[(&'static str, &str)],
) -> Answer {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut request = client.request(method, format!("http://{address}{path}")).body(reqwest::Body::from(body.into()));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Answer { status, headers, body: response.bytes().await.unwrap() }
}

#[tokio::test]
async fn one_connection_speaks_for_many_endpoints_and_subscribes_to_nothing() {
    let running = kaa::start(Settings::default()).await.unwrap();
    let mut gateway = Device::connect(running.mqtt).await;
    for (number, qos) in [(1, QoS::AtMostOnce), (2, QoS::AtLeastOnce), (3, QoS::ExactlyOnce)] {
        let request = format!("kp1/a-v1/dcx/T{number}/json/{number}");
        gateway.send_with(&request, b"1", qos).await;
        let status = gateway.wait(&format!("{request}/status")).await;
        // The answer has the request's QoS and is not retained.
        assert_eq!((status.payload.as_str(), status.qos, status.retain), ("", qos as u8, false));
    }
    // A request for data without an id is answered on the topic of pushes, a confirmation not at all.
    gateway.send("kp1/a-v1/epmx/T1/update", r#"{"a":1}"#).await;
    gateway.send("kp1/a-v1/bcx/T1/token", "").await;
    assert_eq!(gateway.wait("kp1/a-v1/bcx/T1/token/status").await.json()["token"].as_str().unwrap().len(), 64);
    assert!(gateway.rest("T1").await.is_empty());
    let command = running.cloud.send_command("T3", "go", Some(json!({"x": 1})), 60_000).unwrap();
    let push = gateway.wait("kp1/a-v1/cex/T3/command/go/status").await;
    assert_eq!(push.json(), json!([{"id": command.id, "payload": {"x": 1}}]));
    assert_eq!(push.qos, 2, "the endpoint's last QoS");
    let result = json!([{"id": command.id, "statusCode": 409, "reasonPhrase": "Busy"}]).to_string();
    gateway.ask("kp1/a-v1/cex/T3/result/go/9", &result).await;
    let executed = running.cloud.await_result("T3", &command, PATIENCE).await.unwrap();
    assert_eq!(executed.result.unwrap().status_code, 409);
}

#[tokio::test]
async fn the_last_speaker_gets_the_traffic_of_an_endpoint() {
    let running = kaa::start(Settings::default()).await.unwrap();
    let (mut old, mut new) = (Device::connect(running.mqtt).await, Device::connect(running.mqtt).await);
    old.ask("kp1/a-v1/cex/T/command/go/1", r#"{"observe":false}"#).await;
    running.cloud.send_command("T", "go", None, 60_000).unwrap();
    assert!(old.rest("T").await.is_empty(), "it does not observe");
    new.ask("kp1/a-v1/dcx/T/json/1", "1").await;
    running.cloud.send_command("T", "go", None, 60_000).unwrap();
    new.wait("kp1/a-v1/cex/T/command/go/status").await;
    assert!(old.rest("other").await.is_empty());
    // Both commands wait until they have a result.
    assert_eq!(new.ask("kp1/a-v1/cex/T/command/go/2", "{}").await.json().as_array().unwrap().len(), 2);
    // A one-time command is pushed and never listed.
    running.cloud.send_command("T", "once", None, 0).unwrap();
    new.wait("kp1/a-v1/cex/T/command/once/status").await;
    assert_eq!(new.ask("kp1/a-v1/cex/T/command/once/3", "{}").await.payload, "[]");
    drop(new);
    until_async("the endpoint to go", || !running.cloud.is_connected("T")).await;
    assert!(running.cloud.is_connected("other"));
}

#[tokio::test]
async fn an_endpoint_is_told_at_its_first_message_what_it_has_not_applied() {
    let running = kaa::start(Settings::default()).await.unwrap();
    running.cloud.set_token("T", TokenState::Active, Some("a-v1")).unwrap();
    let id = running.cloud.put_config("T", json!({"interval": 5})).unwrap();
    running.cloud.send_command("T", "go", None, 60_000).unwrap();
    let mut device = Device::connect(running.mqtt).await;
    device.ask("kp1/a-v1/dcx/T/json/1", "1").await;
    assert_eq!(device.wait("kp1/a-v1/cmx/T/config/json/status").await.json()["configId"], json!(id));
    assert!(device.rest("T").await.is_empty(), "commands are not pushed again");
    // Once applied it is not pushed again, but a new app version has no configuration.
    device.ask("kp1/a-v1/cmx/T/applied/json/2", &json!({"configId": id}).to_string()).await;
    let mut again = Device::connect(running.mqtt).await;
    again.ask("kp1/a-v1/dcx/T/json/3", "1").await;
    assert!(again.rest("T").await.is_empty());
    assert_eq!(again.ask("kp1/a-v2/cmx/T/config/json/4", "{}").await.json()["config"], Json::Null);
    let put = call(running.http, "PUT", "/ecr/api/v1/app-versions/a-v2", r#"{"v":2}"#).await;
    assert_eq!(put.status, 200);
    assert_eq!(again.wait("kp1/a-v2/cmx/T/config/json/status").await.json()["config"], json!({"v": 2}));
    // Named ones have topics of their own.
    let path = "/ecr/api/v1/endpoints/T/app-versions/a-v2?configName=rooms";
    assert_eq!(call(running.http, "PUT", path, "[1]").await.status, 200);
    assert_eq!(again.wait("kp1/a-v2/cmx/T/config/json/rooms/status").await.json()["config"], json!([1]));
}

#[tokio::test]
async fn software_is_pushed_when_it_is_offered_and_when_the_version_is_told() {
    let running = kaa::start(Settings::default()).await.unwrap();
    let offer = |version: &str, from: &str| {
        let body = json!({"specification": {"link": "http://x"}, "upgradableFrom": [from]}).to_string();
        let path = format!("/otao/api/v1/applications/a/software/{version}");
        async move { assert_eq!(call(running.http, "PUT", &path, body).await.status, 200) }
    };
    offer("1.0.1", "1.0.0").await;
    let mut device = Device::connect(running.mqtt).await;
    device.send("kp1/a-v1/cmx_ota/T/applied/json", r#"{"configId":"1.0.0"}"#).await;
    let push = device.wait("kp1/a-v1/cmx_ota/T/config/json/status").await;
    assert_eq!(push.json()["configId"], json!("1.0.1"));
    assert_eq!(device.ask("kp1/a-v1/cmx_ota/T/config/json/29", r#"{"observe":true}"#).await.json(), push.json());
    device.ask("kp1/a-v1/cmx_ota/T/applied/json/30", r#"{"configId":"1.0.1"}"#).await;
    assert!(device.rest("T").await.is_empty());
    offer("2.0.0", "1.0.1").await;
    assert_eq!(device.wait("kp1/a-v1/cmx_ota/T/config/json/status").await.json()["configId"], json!("2.0.0"));
    let bad = call(running.http, "PUT", "/otao/api/v1/applications/a/software/3", r#"{"upgradableFrom":[]}"#).await;
    assert_eq!(bad.status, 400);
    assert!(bad.json()["reasonPhrase"].as_str().unwrap().contains("specification"));
    assert_eq!(call(running.http, "DELETE", "/otao/api/v1/applications/a/software/2.0.0", "").await.status, 204);
}

#[tokio::test]
async fn an_outage_and_a_restart_lose_no_state() {
    let mut running = kaa::start(Settings::default()).await.unwrap();
    let (mqtt, http) = (running.mqtt, running.http);
    let mut device = Device::connect(mqtt).await;
    device.ask("kp1/a-v1/dcx/T/json/1", "1").await;
    running.disconnect_all();
    device.closed().await;
    for _ in 0..3 {
        let mut device = Device::connect(mqtt).await;
        device.ask("kp1/a-v1/dcx/T/json/1", "1").await;
        running.pause().await;
        device.closed().await;
        assert!(TcpStream::connect(mqtt).await.is_err(), "nothing listens");
        running.cloud.send_command("T", "go", None, 60_000).unwrap();
        running.resume().await;
    }
    for round in 0..3 {
        let cloud = running.stop().await;
        assert!(TcpStream::connect(mqtt).await.is_err(), "nothing listens");
        assert!(TcpStream::connect(http).await.is_err(), "nothing listens");
        running = kaa::start_with(cloud, Settings { mqtt, http, ..Settings::default() }).await.unwrap();
        let mut device = Device::connect(mqtt).await;
        assert_eq!(device.ask("kp1/a-v1/cex/T/command/go/1", "{}").await.json().as_array().unwrap().len(), 3);
        assert_eq!(running.cloud.samples("T", 0).len(), 4, "round {round}");
    }
}

#[tokio::test]
async fn hostile_input_closes_its_own_connection_at_most() {
    let running = kaa::start(Settings::default()).await.unwrap();
    let mut device = Device::connect(running.mqtt).await;
    // Large, deep, or no text at all: one error each, the connection lives.
    let large = vec![b'1'; 10 << 20];
    device.send_with("kp1/a-v1/dcx/T/json/1", &large, QoS::AtLeastOnce).await;
    assert_eq!(device.wait("kp1/a-v1/dcx/T/json/1/error").await.json()["statusCode"], json!(413));
    device.send_with("kp1/a-v1/dcx/T/json/2", &vec![b'['; 1 << 20], QoS::AtLeastOnce).await;
    assert_eq!(device.wait("kp1/a-v1/dcx/T/json/2/error").await.json()["statusCode"], json!(400));
    device.send_with("kp1/a-v1/dcx/T/json/3", b"\"\xff\xfe\"", QoS::AtLeastOnce).await;
    assert_eq!(device.wait("kp1/a-v1/dcx/T/json/3/error").await.json()["statusCode"], json!(400));
    device.send(&format!("kp1/a-v1/dcx/T/json/{}", "x".repeat(60_000)), "1").await;
    device.send(&format!("kp1/a-v1/cex/T/command/{}", "x/".repeat(200)), "{}").await;
    device.wait(&format!("kp1/a-v1/cex/T/command/{}/error", "x/".repeat(200))).await;
    assert!(device.rest("T").await.is_empty());

    let publish_before_connect = b"\x30\x03\x00\x01x".to_vec();
    let huge_packet = b"\x10\x10\x00\x04MQTT\x04\x02\x00\x00\x00\x04evil\x30\xff\xff\xff\x7f".to_vec();
    let connect = b"\x10\x10\x00\x04MQTT\x04\x02\x00\x00\x00\x04evil";
    let twice = [connect.as_slice(), connect].concat();
    let topic_not_utf8 = [connect.as_slice(), b"\x30\x05\x00\x02\xff\xfe1"].concat();
    let wildcard = [connect.as_slice(), b"\x30\x04\x00\x01#1"].concat();
    let old_protocol = b"\x10\x12\x00\x06MQIsdp\x03\x02\x00\x00\x00\x04evil".to_vec();
    for bytes in [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0xff; 4096],
        vec![0x10],
        publish_before_connect,
        huge_packet,
        twice,
        topic_not_utf8,
        wildcard,
        old_protocol,
    ] {
        let mut stream = TcpStream::connect(running.mqtt).await.unwrap();
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
        let mut rest = Vec::new();
        let read = timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        assert!(read.is_ok(), "{:?} is not closed", bytes.get(..20));
    }
    until_async("the hostile ones to go", || running.cloud.connections() == 1).await;
    device.ask("kp1/a-v1/dcx/T/json/9", "9").await;
    assert_eq!(running.cloud.samples("T", 0).len(), 1);
}

#[tokio::test]
async fn a_client_that_is_silent_for_too_long_is_closed() {
    let running = kaa::start(Settings::default()).await.unwrap();
    // A keep-alive of one second.
    let mut stream = TcpStream::connect(running.mqtt).await.unwrap();
    stream.write_all(b"\x10\x10\x00\x04MQTT\x04\x02\x00\x01\x00\x04test").await.unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"\x20\x02\x00\x00");
    // PINGREQ is answered and counts.
    stream.write_all(b"\xc0\x00").await.unwrap();
    let mut pong = [0; 2];
    stream.read_exact(&mut pong).await.unwrap();
    assert_eq!(&pong, b"\xd0\x00");
    // SUBSCRIBE to one filter with QoS 2 is granted so.
    stream.write_all(b"\x82\x06\x00\x01\x00\x01#\x02").await.unwrap();
    let mut granted = [0; 5];
    stream.read_exact(&mut granted).await.unwrap();
    assert_eq!(&granted, b"\x90\x03\x00\x01\x02");
    let mut rest = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("closed").unwrap();
    assert!(rest.is_empty());
}

#[tokio::test]
async fn devices_can_use_http_for_everything_but_pushes() {
    let access = Access { hidden: ["secret".to_owned()].into(), ..Access::default() };
    let rules = Rules { access, ..Rules::default() };
    let running = kaa::start(Settings { rules, ..Settings::default() }).await.unwrap();
    let post = |path: &str, body: &str| {
        let (path, body) = (format!("/kp1/a-v1/{path}"), body.to_owned());
        async move { call(running.http, "POST", &path, body).await }
    };
    assert_eq!(post("dcx/T/json", "[1,2]").await.status, 200);
    assert_eq!(post("dcx/T/json", "[").await.status, 400);
    assert_eq!(post("epmx/T/update/keys", r#"{"a":1}"#).await.status, 200);
    assert_eq!(post("epmx/T/update/keys", r#"{"secret":1}"#).await.json()["statusCode"], json!(403));
    assert_eq!(post("epmx/T/get", "").await.json(), json!({"a": 1}));
    running.cloud.send_command("T", "go", None, 60_000).unwrap();
    let listed = post("cex/T/command/go", "{}").await.json();
    assert_eq!(
        post("cex/T/result/go", &json!([{"id": listed[0]["id"], "statusCode": 200}]).to_string()).await.status,
        200
    );
    let id = running.cloud.put_config("T", json!(5)).unwrap();
    assert_eq!(post("cmx/T/config/json", "{}").await.json()["configId"], json!(id));
    let unchanged = post("cmx/T/config/json", &json!({"configId": id}).to_string()).await;
    assert_eq!((unchanged.status, unchanged.body.len()), (304, 0));
    assert_eq!(post("nothing/T/x", "{}").await.status, 404);
    assert!(!running.cloud.is_connected("T"));
    assert_eq!(running.cloud.samples("T", 0).len(), 2);
}

#[tokio::test]
async fn the_platform_answers_testers_over_http() {
    let running = kaa::start(Settings::default()).await.unwrap();
    let http = running.http;
    let mut device = Device::connect(running.mqtt).await;
    device.ask("kp1/a-v1/dcx/T/json/1", r#"[{"timestamp":10,"t":23},{"t":24.5}]"#).await;
    let commands = "/cex/api/v1/endpoints/T/commands";
    for (method, path, body, status) in [
        ("POST", format!("{commands}/go?awaitTimeout=61"), "", 400),
        ("POST", format!("{commands}/go?awaitTimeout=x"), "", 400),
        ("POST", format!("{commands}/go"), "{", 400),
        ("POST", "/cex/api/v1/endpoints/nobody/commands/go".to_owned(), "", 404),
        ("GET", format!("{commands}/go/99"), "", 404),
        ("DELETE", format!("{commands}/go/99"), "", 404),
        ("PUT", "/ecr/api/v1/endpoints/T/app-versions/a-v1".to_owned(), "{", 400),
        ("GET", "/ecr/api/v1/endpoints/T/app-versions/a-v1".to_owned(), "", 404),
        ("GET", "/epmx/api/v1/endpoints/nobody/metadata".to_owned(), "", 404),
        ("PATCH", "/epmx/api/v1/endpoints/T/metadata".to_owned(), r#"{"a-b":1}"#, 400),
        ("PUT", "/standin/v1/tokens/a.b".to_owned(), r#"{"state":"active"}"#, 400),
        ("PUT", "/standin/v1/tokens/new".to_owned(), r#"{"state":"active"}"#, 404),
        ("GET", "/nothing".to_owned(), "", 404),
    ] {
        assert_eq!(call(http, method, &path, body).await.status, status, "{method} {path}");
    }
    // A command that nobody answers, then one that is answered while the caller waits.
    let accepted = call(http, "POST", &format!("{commands}/go?commandTtl=60000"), r#"{"x":1}"#).await;
    assert_eq!(accepted.status, 202);
    let location = accepted.headers["location"].to_str().unwrap().to_owned();
    assert_eq!(call(http, "GET", &location, "").await.json()["state"], json!("PENDING"));
    assert_eq!(call(http, "DELETE", &location, "").await.status, 204);
    device.wait("kp1/a-v1/cex/T/command/go/status").await;
    let path = format!("{commands}/go?awaitTimeout=60");
    let caller =
        tokio::spawn(async move { call_with(http, "POST", &path, "a text", &[("content-type", "text/plain")]).await });
    let push = device.wait("kp1/a-v1/cex/T/command/go/status").await.json();
    assert_eq!(push[0]["payload"], json!("a text"));
    let result = json!([{"id": push[0]["id"], "statusCode": 200, "reasonPhrase": "OK", "payload": {"done": true}}]);
    device.ask("kp1/a-v1/cex/T/result/go/5", &result.to_string()).await;
    let answer = caller.await.unwrap();
    assert_eq!((answer.status, answer.json()["payload"].clone()), (200, json!({"done": true})));
    // Configurations with If-Match.
    let path = "/ecr/api/v1/endpoints/T/app-versions/a-v1";
    let put = call(http, "PUT", path, r#"{"a":1}"#).await;
    assert_eq!(put.json()["config"], json!("{\"a\":1}"));
    let etag = put.headers["etag"].to_str().unwrap().to_owned();
    assert_eq!(call_with(http, "PUT", path, "2", &[("if-match", "\"other\"")]).await.status, 412);
    assert_eq!(call_with(http, "PUT", path, "2", &[("if-match", &etag)]).await.status, 200);
    assert_eq!(call(http, "DELETE", path, "").await.status, 204);
    // Metadata and series.
    assert_eq!(call(http, "PUT", "/epmx/api/v1/endpoints/T/metadata", r#"{"a":1}"#).await.status, 204);
    assert_eq!(call(http, "PATCH", "/epmx/api/v1/endpoints/T/metadata", r#"{"b":2}"#).await.status, 204);
    assert_eq!(device.ask("kp1/a-v1/epmx/T/get/6", "").await.json(), json!({"a": 1, "b": 2}));
    let series = "/epts/api/v1/applications/a/time-series/data?timeSeriesName=auto~t&endpointId=T&toDate=10";
    let points = json!({"T": {"auto~t": [{"timestamp": 10, "values": {"value": 23}}]}});
    assert_eq!(call(http, "GET", series, "").await.json(), points);
    let events = call(http, "GET", "/standin/v1/events", "").await.json();
    assert!(events.as_array().unwrap().iter().any(|event| event["what"] == "result"));
}

#[tokio::test]
async fn a_device_uploads_with_a_token_that_expires() {
    let rules = Rules { upload_token_lifetime: Duration::from_millis(200), ..Rules::default() };
    let short = kaa::start(Settings { rules, ..Settings::default() }).await.unwrap();
    let long = kaa::start(Settings::default()).await.unwrap();
    let mut device = Device::connect(long.mqtt).await;
    let token = device.ask("kp1/kettle-v1/bcx/T/token/3", "").await.json()["token"].as_str().unwrap().to_owned();
    let upload = |path: &'static str, token: Option<String>, body: Bytes| async move {
        let headers: Vec<_> = token.iter().map(|token| ("x-auth-token", token.as_str())).collect();
        call_with(long.http, "POST", path, body, &headers).await
    };
    let stored = upload("/bcx/api/v1/binary-data?name=pic.png", Some(token.clone()), Bytes::from_static(b"png")).await;
    assert_eq!(stored.status, 201);
    let location = stored.headers["location"].to_str().unwrap();
    let prefix = format!("http://{}/applications/kettle/endpoints/T/binary-data/", long.http);
    let id = location.strip_prefix(&prefix).unwrap();
    let path = format!("/applications/kettle/endpoints/T/binary-data/{id}");
    assert_eq!(call(long.http, "GET", &path, "").await.body, "png");
    for body in ["one", "two"] {
        let stored = upload("/bcx/api/v1/files/notes.txt", Some(token.clone()), Bytes::from(body)).await;
        assert_eq!(stored.status, 204);
    }
    let blobs = call(long.http, "GET", "/standin/v1/endpoints/T/blobs", "").await.json();
    let names: Vec<_> = blobs.as_array().unwrap().iter().map(|blob| blob["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["pic.png", "notes.txt"]);
    let large = Bytes::from(vec![0; (16 << 20) + 1]);
    assert_eq!(upload("/bcx/api/v1/binary-data", Some(token.clone()), large).await.status, 413);
    for wrong in [None, Some("wrong".to_owned())] {
        assert_eq!(upload("/bcx/api/v1/binary-data", wrong, Bytes::new()).await.status, 403);
    }
    long.cloud.set_token("T", TokenState::Suspended, None).unwrap();
    assert_eq!(upload("/bcx/api/v1/binary-data", Some(token), Bytes::new()).await.status, 403);

    let mut device = Device::connect(short.mqtt).await;
    let token = device.ask("kp1/kettle-v1/bcx/T/token/3", "").await.json()["token"].as_str().unwrap().to_owned();
    let headers = [("x-auth-token", token.as_str())];
    let mut status = 201;
    while status == 201 {
        status = call_with(short.http, "POST", "/bcx/api/v1/binary-data", "x", &headers).await.status;
    }
    assert_eq!(status, 403);
}

#[tokio::test]
async fn samples_and_events_are_followed_until_the_stand_in_stops() {
    let running = kaa::start(Settings::default()).await.unwrap();
    let mut device = Device::connect(running.mqtt).await;
    device.ask("kp1/a-v1/dcx/T/json/1", "1").await;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut followers = Vec::new();
    for _ in 0..2 {
        let url = format!("http://{}/standin/v1/endpoints/T/samples?follow=true", running.http);
        followers.push(client.get(url).send().await.unwrap());
    }
    for value in 2..4 {
        device.ask(&format!("kp1/a-v1/dcx/T/json/{value}"), &value.to_string()).await;
    }
    for follower in &mut followers {
        let mut text = String::new();
        while text.lines().count() < 3 {
            let part = timeout(PATIENCE, follower.chunk()).await.expect("a sample").unwrap().unwrap();
            text.push_str(std::str::from_utf8(&part).unwrap());
        }
        let values: Vec<Json> =
            text.lines().map(|line| serde_json::from_str::<Json>(line).unwrap()["value"].clone()).collect();
        assert_eq!(values, [json!(1), json!(2), json!(3)]);
    }
    timeout(PATIENCE, running.stop()).await.expect("it stops though somebody follows");
    for mut follower in followers {
        let end = timeout(PATIENCE, follower.chunk()).await.expect("the end");
        assert!(!matches!(end, Ok(Some(_))));
    }
}
