//! Each knob does what it says, and nothing else.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use sandgate_standin::kaa::{self, Running, Settings};
use serde_json::json;

use super::device::Device;

async fn start(fault: &str) -> (Running, Device) {
    let fault = fault.parse().unwrap();
    let running = kaa::start(Settings { faults: vec![fault], ..Settings::default() }).await.unwrap();
    let device = Device::connect(running.mqtt).await;
    (running, device)
}

#[tokio::test]
async fn a_late_status_comes_after_later_answers() {
    let (running, mut device) = start("status-late=300ms,ext=dcx,times=1").await;
    let begin = Instant::now();
    device.send("kp1/a-v1/dcx/T/json/1", "1").await;
    device.send("kp1/a-v1/dcx/T/json/2", "2").await;
    device.wait("kp1/a-v1/dcx/T/json/2/status").await;
    device.wait("kp1/a-v1/dcx/T/json/1/status").await;
    // No bound from above: only that it was held back.
    assert!(begin.elapsed() >= Duration::from_millis(300));
    assert_eq!(running.cloud.samples("T", 0).len(), 2);
}

#[tokio::test]
async fn a_late_status_goes_to_whoever_speaks_by_then() {
    let (running, mut old) = start("status-late=500ms,times=1").await;
    old.send("kp1/a-v1/dcx/T/json/1", "1").await;
    super::routing::until_async("the sample", || running.cloud.samples("T", 0).len() == 1).await;
    let mut new = Device::connect(running.mqtt).await;
    new.ask("kp1/a-v1/dcx/T/json/2", "2").await;
    new.wait("kp1/a-v1/dcx/T/json/1/status").await;
    assert!(old.rest("other").await.is_empty());
}

#[tokio::test]
async fn a_missing_and_a_doubled_status_are_of_requests_that_were_carried_out() {
    let (running, mut device) = start("status-missing,ext=dcx,token=T,times=1").await;
    device.send("kp1/a-v1/dcx/T/json/1", "1").await;
    assert!(device.rest("T").await.is_empty());
    assert_eq!(running.cloud.samples("T", 0).len(), 1);
    device.ask("kp1/a-v1/dcx/T/json/1", "1").await;
    running.cloud.set_fault("status-doubled,times=1").unwrap();
    device.ask("kp1/a-v1/epmx/T/update/2", r#"{"a":1}"#).await;
    let rest = device.rest("T").await;
    assert_eq!(
        rest.iter().map(|message| message.topic.as_str()).collect::<Vec<_>>(),
        ["kp1/a-v1/epmx/T/update/2/status"]
    );
}

#[tokio::test]
async fn a_push_comes_before_the_reply_or_twice_or_never() {
    let (running, mut device) = start("push-before-reply,ext=cex").await;
    device.ask("kp1/a-v1/cex/T/command/a/1", "{}").await;
    let command = running.cloud.send_command("T", "a", None, 60_000).unwrap();
    let first = device.wait("kp1/a-v1/cex/T/command/a/status").await;
    assert_eq!(first.json(), json!([]), "the push before the first reply");
    let pushed = device.wait("kp1/a-v1/cex/T/command/a/status").await;
    assert_eq!(pushed.json(), json!([{"id": command.id}]));
    device.ask("kp1/a-v1/cex/T/command/a/2", "{}").await;
    assert_eq!(device.rest("T").await, [pushed]);

    running.cloud.clear_faults();
    running.cloud.set_fault("push-doubled,times=1").unwrap();
    running.cloud.send_command("T", "b", None, 60_000).unwrap();
    let rest = device.rest("T").await;
    assert_eq!((rest.len(), &rest[0]), (2, &rest[1]));
    running.cloud.set_fault("push-missing,ext=cmx").unwrap();
    running.cloud.put_config("T", json!(1)).unwrap();
    assert!(device.rest("T").await.is_empty());
    assert_eq!(device.ask("kp1/a-v1/cmx/T/config/json/3", "{}").await.json()["config"], json!(1));
}

#[tokio::test]
async fn an_error_keeps_a_request_from_being_carried_out() {
    let (running, mut device) = start("error=503,ext=dcx,times=2").await;
    for _ in 0..2 {
        device.send("kp1/a-v1/dcx/T/json/1", "1").await;
        let error = device.wait("kp1/a-v1/dcx/T/json/1/error").await;
        assert_eq!(error.json(), json!({"statusCode": 503, "reasonPhrase": "Service Unavailable"}));
    }
    assert!(running.cloud.samples("T", 0).is_empty());
    device.ask("kp1/a-v1/dcx/T/json/1", "1").await;
    assert_eq!(running.cloud.samples("T", 0).len(), 1);
}

#[tokio::test]
async fn a_reliable_receiver_that_does_not_answer_fails_the_batch() {
    let (running, mut device) = start("reliable-timeout=50ms,times=1").await;
    device.send("kp1/a-v1/dcx/T/json/1", "[1,2]").await;
    assert_eq!(device.wait("kp1/a-v1/dcx/T/json/1/error").await.json()["statusCode"], json!(504));
    assert!(running.cloud.samples("T", 0).is_empty());
    device.ask("kp1/a-v1/dcx/T/json/1", "[1,2]").await;
}

#[tokio::test]
async fn a_connection_is_dropped_after_the_puback_with_the_message_lost_or_kept() {
    for (fault, kept) in [("drop-after-puback,times=1", 0), ("drop-after-puback=kept,times=1", 1)] {
        let (running, mut device) = start(fault).await;
        device.send("kp1/a-v1/dcx/T/json/1", "1").await;
        assert!(device.closed().await.is_empty(), "{fault}");
        assert_eq!(device.acknowledged, 1, "{fault}");
        assert_eq!(running.cloud.samples("T", 0).len(), kept, "{fault}");
        let mut again = Device::connect(running.mqtt).await;
        again.ask("kp1/a-v1/dcx/T/json/1", "1").await;
    }
    let (running, mut device) = start("drop-at-publish,times=1").await;
    device.send("kp1/a-v1/dcx/T/json/1", "1").await;
    device.closed().await;
    assert_eq!(device.acknowledged, 0);
    Device::connect(running.mqtt).await.ask("kp1/a-v1/dcx/T/json/1", "1").await;
    assert_eq!(running.cloud.samples("T", 0).len(), 1);
}

#[tokio::test]
async fn not_changed_and_bodies_have_the_chosen_form() {
    for (fault, unchanged, config) in [
        (
            "unchanged=304",
            r#"{"statusCode":304,"reasonPhrase":"Not Modified"}"#,
            r#","statusCode":200,"reasonPhrase":"OK""#,
        ),
        ("unchanged=object", "{}", r#","statusCode":200,"reasonPhrase":"OK""#),
        ("unchanged=empty", "", r#","statusCode":200,"reasonPhrase":"OK""#),
        ("strict-bodies", "{}", ""),
    ] {
        let (running, mut device) = start(fault).await;
        device.ask("kp1/a-v1/dcx/T/json/1", "1").await;
        let id = running.cloud.put_config("T", json!({"a": 1})).unwrap();
        let body = device.ask("kp1/a-v1/cmx/T/config/json/2", "{}").await.payload;
        assert_eq!(body, format!(r#"{{"configId":"{id}"{config},"config":{{"a":1}}}}"#), "{fault}");
        let body = device.ask("kp1/a-v1/cmx/T/config/json/3", &json!({"configId": id}).to_string()).await.payload;
        assert_eq!(body, unchanged, "{fault}");
    }
}

#[tokio::test]
async fn in_broker_mode_only_subscribers_get_something() {
    let (_running, mut device) = start("broker-mode").await;
    device.send("kp1/a-v1/dcx/T/json/1", "1").await;
    device.subscribe("kp1/a-v1/tsx/+/#").await;
    assert!(device.rest("T").await.is_empty());
    device.subscribe("kp1/a-v1/dcx/T/json/+/status").await;
    device.ask("kp1/a-v1/dcx/T/json/2", "1").await;
}

#[tokio::test]
async fn a_bad_topic_closes_the_connection_if_told_so() {
    let (_running, mut device) = start("close-on-bad-topic").await;
    device.ask("kp1/a-v1/dcx/T/json/1", "1").await;
    device.send("v1/other", "1").await;
    device.closed().await;
}

#[tokio::test]
async fn suspended_and_revoked_tokens_are_refused_and_lose_their_connection() {
    let running = kaa::start(Settings::default()).await.unwrap();
    let mut device = Device::connect(running.mqtt).await;
    device.ask("kp1/a-v1/dcx/T/json/1", "1").await;
    device.ask("kp1/a-v1/dcx/U/json/1", "1").await;
    for (state, status) in [("suspended", 403), ("revoked", 401)] {
        let state = serde_json::from_value(json!(state)).unwrap();
        running.cloud.set_token("T", state, None).unwrap();
        assert!(!running.cloud.is_connected("T"));
        running.cloud.send_command("T", "a", None, 60_000).unwrap();
        device.send("kp1/a-v1/dcx/T/json/2", "2").await;
        assert_eq!(device.wait("kp1/a-v1/dcx/T/json/2/error").await.json()["statusCode"], json!(status));
        // The others on the same connection live on; the push went nowhere.
        assert!(device.rest("U").await.is_empty());
        assert!(!running.cloud.is_connected("T"));
    }
    let again = running.cloud.set_token("T", serde_json::from_value(json!("active")).unwrap(), None);
    assert_eq!(again.unwrap_err().status, 409);
    assert_eq!(running.cloud.samples("T", 0).len(), 1);
}

#[tokio::test]
async fn faults_are_set_and_cleared_over_http() {
    let (running, mut device) = start("error=500").await;
    let http: SocketAddr = running.http;
    let call =
        |method: &'static str, path: &'static str, body: &'static str| super::routing::call(http, method, path, body);
    assert_eq!(call("DELETE", "/standin/v1/faults?name=error", "").await.status, 200);
    assert_eq!(call("POST", "/standin/v1/faults", r#"{"fault":"status-doubled,times=1"}"#).await.status, 200);
    assert_eq!(call("POST", "/standin/v1/faults", r#"{"fault":"x"}"#).await.status, 400);
    assert_eq!(call("DELETE", "/standin/v1/faults?name=x", "").await.status, 400);
    device.ask("kp1/a-v1/dcx/T/json/1", "1").await;
    assert_eq!(device.rest("T").await.len(), 1);
}
