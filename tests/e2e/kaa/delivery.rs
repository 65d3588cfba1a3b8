//! Samples: batched, delivered on Kaa's answer, never lost.

use sandgate_standin::kaa::endpoint::TokenState;
use serde_json::json;

use super::site::{Site, echo, wait_for_log};
use crate::harness::{Broker, Message, Observer, fixture};

#[tokio::test(flavor = "multi_thread")]
async fn samples_go_in_batches_with_their_time_and_alerts() {
    let site = Site::with_echo("").await;
    site.wait_for_all_counts("t1").await;
    let sample = site.samples("t1").into_iter().find(|sample| sample["count"] == 3).unwrap();
    assert_eq!((&sample["half"], &sample["on"], &sample["label"]), (&json!(1.5), &json!(true), &json!(null)));
    assert_eq!(sample["alerts"], json!([]));
    let now = sandgate::message::now();
    let time = sample["timestamp"].as_u64().unwrap();
    assert!(now - time < 60_000, "{time} at {now}");
    assert_eq!(site.counts("t1"), (1..=site.counts("t1").len() as u64).collect::<Vec<_>>());
    // The gateway has an endpoint of its own.
    site.until("the gateway's telemetry", || {
        site.samples("gw").iter().find(|sample| sample["devices_running"] == 1).map(|_| ())
    })
    .await;
    let metadata = |token: &str| site.cloud.cloud.metadata(token).unwrap_or_default();
    site.until("the gateway's metadata", || (metadata("gw")["version"] == env!("CARGO_PKG_VERSION")).then_some(()))
        .await;
    site.until("the device's metadata", || (metadata("t1")["model"] == "echo").then_some(())).await;
    let batches = site.cloud.cloud.events().iter().filter(|event| event.text.contains("samples")).count();
    assert!(batches > 0, "{}", site.story());
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_measurements_and_another_form_of_time_are_settings() {
    let mut site = Site::prepare(&[("echo.wasm", fixture("echo"))]).await;
    let device = format!("{}endpoints.kaa.plain = {{ half = '%', count = '' }}\n", echo("d1", "t1", 20));
    site.start("timestamp = { field = 'ts', format = 'iso8601' }", &device);
    let samples = site.wait_for_samples("t1", 6).await;
    assert!(samples.contains(&json!({"half-value": 0.5, "half-unit": "%"})), "{samples:?}");
    assert!(samples.contains(&json!({"count-value": 1, "count-unit": "number"})), "{samples:?}");
    let time = samples.iter().find_map(|sample| sample["ts"].as_str()).unwrap();
    assert!(time.starts_with("20") && time.ends_with('Z'), "{time}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_answers_are_late_missing_doubled_or_errors() {
    let site = Site::with_echo("").await;
    for fault in [
        "status-late=1500ms,ext=dcx,times=4",
        "status-missing,ext=dcx,times=3",
        "status-doubled,ext=dcx,times=5",
        "error=503,ext=dcx,token=t1,times=2",
        "reliable-timeout=200ms,times=1",
        "drop-after-puback,ext=dcx,times=2",
        "drop-after-puback=kept,ext=dcx,times=1",
        "drop-at-publish,times=1",
        "broker-mode",
    ] {
        site.cloud.cloud.set_fault(fault).unwrap();
        site.wait_for_all_counts("t1").await;
        site.cloud.cloud.clear_faults();
    }
    site.wait_for_all_counts("t1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_in_an_outage_and_what_arrived_can_be_asked_for() {
    let mut site = Site::with_echo("request_status = true\ncheck_time = true").await;
    site.cloud.pause().await;
    site.gateway
        .wait_for_device("d1", "samples in the outage", |device| (device["samples"].as_u64()? >= 30).then_some(()));
    site.cloud.resume().await;
    site.wait_for_all_counts("t1").await;
    // These were carried out, and the gateway learns it by asking: nothing arrives twice.
    let before = duplicates(&site);
    site.cloud.cloud.set_fault("drop-after-puback=kept,ext=dcx,token=t1,times=1").unwrap();
    site.until("the drop", || site.cloud.cloud.events().iter().find(|event| event.text.contains("puback")).map(|_| ()))
        .await;
    site.wait_for_all_counts("t1").await;
    assert_eq!(duplicates(&site), before, "{}", site.story());
}

fn duplicates(site: &Site) -> usize {
    let mut counts = site.counts("t1");
    let all = counts.len();
    counts.sort_unstable();
    counts.dedup();
    all - counts.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_endpoint_keeps_its_samples_and_harms_no_other() {
    let mut site = Site::prepare(&[("echo.wasm", fixture("echo"))]).await;
    site.start("", &format!("{}{}", echo("d1", "t1", 20), echo("d2", "t2", 20)));
    site.wait_for_samples("t1", 3).await;
    site.wait_for_samples("t2", 3).await;
    site.cloud.cloud.set_token("t1", TokenState::Suspended, None).unwrap();
    wait_for_log(&site.gateway, "kept, the cloud refused it");
    site.wait_for_all_counts("t2").await;
    site.cloud.cloud.set_token("t1", TokenState::Active, None).unwrap();
    site.wait_for_all_counts("t1").await;
    site.cloud.cloud.set_token("t1", TokenState::Revoked, None).unwrap();
    site.wait_for_all_counts("t2").await;
    let status = site.gateway.device("d2");
    assert_eq!(status["phase"], "running");
    assert!(!site.gateway.log().contains("t1/") && !site.gateway.log().contains("/t1"), "a token is in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sample_that_is_refused_for_good_is_dropped_alone_and_counted() {
    let site = Site::with_echo("").await;
    site.cloud.cloud.set_fault("error=400,ext=dcx,token=t1,times=2").unwrap();
    wait_for_log(&site.gateway, "dropped, the cloud refused it: 400");
    let mark = site.counts("t1").into_iter().max().unwrap();
    site.until("later samples", || (site.counts("t1").into_iter().max() > Some(mark + 10)).then_some(())).await;
    let status = site.gateway.json(&["devices"]);
    assert_eq!(status["sessions"]["kaa"]["rejected"], 1, "{status:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_device_in_both_clouds_sends_to_both_and_answers_whoever_asked() {
    let broker = Broker::start();
    let mut site = Site::prepare(&[("echo.wasm", fixture("echo"))]).await;
    let observer = Observer::connect(broker.port).await;
    let enapter =
        format!("[sessions.enapter.enapter]\nhost = '127.0.0.1'\nport = {}\nhardware_id = 'S01'\n", broker.port);
    site.start("", &format!("{enapter}{}session = 'enapter'\n", echo("d1", "t1", 20)));
    site.wait_for_all_counts("t1").await;
    let telemetry = |message: &Message| message.on("v1/from/S01/s--d1/v1/telemetry");
    observer.find("telemetry", |message| telemetry(message).filter(|sample| sample["count"] == 5)).await;
    let answer = observer.command("s--d1", json!({"id": "a", "name": "echo", "arguments": {"text": "one"}})).await;
    assert_eq!(answer["payload"]["text"], "one");
    let result = site.command("t1", "echo", json!({"text": "two"})).await;
    assert_eq!(result.payload.unwrap()["text"], "two");
    let responses = observer.all().iter().filter(|message| message.topic.ends_with("command/responses")).count();
    // Its own result and one line of progress.
    assert_eq!(responses, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_from_the_cloud_is_refused_with_its_place_and_harms_nothing() {
    // A broker between gateway and cloud lets a test speak as the cloud.
    let broker = Broker::start();
    let mut site = Site::prepare(&[("echo.wasm", fixture("echo"))]).await;
    let observer = Observer::connect(broker.port).await;
    let text = format!(
        "[sessions.kaa.kaa]\nhost = '127.0.0.1'\nport = {}\napp_version = 'demo-v1'\n{}",
        broker.port,
        echo("d1", "t1", 20)
    );
    site.gateway.write("gateway.toml", text.as_bytes());
    site.gateway.restart();
    wait_for_log(&site.gateway, "connected to 127.0.0.1");
    for (topic, payload, expected) in [
        ("kp1/demo-v1/cex/t1/command/echo/status", "{", "cex/command/echo of d1: expected a JSON array: EOF"),
        (
            "kp1/demo-v1/cex/t1/command/echo/status",
            "{}",
            "cex/command/echo of d1: expected a JSON array, found an object",
        ),
        ("kp1/demo-v1/cex/t1/command/echo/status", "[{\"id\":\"x\"}]", "id: expected an integer, found a text"),
        ("kp1/demo-v1/cex/t1/command/echo/7/status", "[7]", "expected an object, found a number"),
        (
            "kp1/demo-v1/cmx/t1/config/json/status",
            "[]",
            "cmx/config/json of d1: 0 expected a JSON object, found an array",
        ),
        (
            "kp1/demo-v1/cmx/t1/config/json/status",
            "{\"configId\":5,\"config\":{}}",
            "configId: expected a text, found a number",
        ),
        ("kp1/demo-v1/cmx_ota/t1/config/json/status", "{\"configId\":\"2\"}", "expected `config` beside `configId`"),
        ("kp1/demo-v1/dcx/t1/json/error", "junk", "dcx/json of d1: 500 no reason given"),
        ("kp1/demo-v1/strange/t1/a/b/c/status", "\u{0}\u{1}", ""),
        ("kp1/demo-v1/dcx/t1/json/99/status", "junk", ""),
        ("kp1/demo-v1/cex/t1/command/echo/99/error", "[[[[", ""),
    ] {
        observer.publish(topic, payload).await;
        if !expected.is_empty() {
            wait_for_log(&site.gateway, expected);
        }
    }
    let large = "x".repeat(300 << 10);
    observer.publish("kp1/demo-v1/cex/t1/command/echo/status", &large).await;
    wait_for_log(&site.gateway, "expected at most 262144 bytes, found 307200");
    site.gateway.wait_for_device("d1", "it to run", |device| (device["phase"] == "running").then_some(()));
    let refused = site.gateway.json(&["devices"])["sessions"]["kaa"]["refused"].as_u64().unwrap();
    assert!(refused >= 9, "{refused}");
}
