//! What goes over the wire on the Enapter API, field by field.

use serde_json::{Value as Json, json};

use crate::harness::{Broker, Gateway, Observer, Proxy, fixture};

const TELEMETRY: &str = "v1/from/S01/s--echo1/v1/telemetry";
const ECHO: &str = "
[devices.echo1]
driver = 'echo.wasm'
type = 'echo_child'
configuration.main.interval_ms = 50
[devices.echo2]
driver = 'echo.wasm'
configuration.main.label = 'two'
";

/// The keys of an object.
fn keys(json: &Json) -> Vec<&str> {
    json.as_object().unwrap().keys().map(String::as_str).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn telemetry_properties_children_and_logs_have_the_fields_of_the_contract() {
    let broker = Broker::start();
    let observer = Observer::connect(broker.port).await;
    let mut gateway = Gateway::prepare(&[("echo.wasm", fixture("echo"))]);
    gateway.start(broker.port, ECHO);

    let greeting = observer.find("the announcement", |m| m.on("v1/from/S01/s/v1/properties")).await;
    assert_eq!(greeting["children"], json!({"echo1": {"type": "echo_child"}, "echo2": {"type": "echo"}}));
    assert!(greeting["timestamp"].is_u64() && greeting["version"].is_string() && greeting["host"].is_string());
    assert_eq!(greeting.as_object().unwrap().len(), 4);

    let sample = observer.find("telemetry", |m| m.on(TELEMETRY).filter(|sample| sample["count"] == 3)).await;
    assert_eq!(keys(&sample), ["timestamp", "count", "half", "on", "label", "alerts"]);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(now.abs_diff(sample["timestamp"].as_u64().unwrap()) < 120);
    assert_eq!(
        (&sample["half"], &sample["on"], &sample["label"], &sample["alerts"]),
        (&json!(1.5), &json!(true), &Json::Null, &json!([]))
    );
    let other = observer
        .find("telemetry of the other child", |m| m.on("v1/from/S01/s--echo2/v1/telemetry").filter(|t| t["count"] == 1))
        .await;
    assert_eq!(other["label"], "two");

    let properties = observer.find("properties", |m| m.on("v1/from/S01/s--echo1/v1/properties")).await;
    assert_eq!(keys(&properties), ["timestamp", "model"]);
    assert_eq!(properties["model"], "echo");

    let line = observer
        .find("a log line", |m| m.on("v1/from/S01/s--echo1/v3/logs").filter(|line| line["message"] != "started"))
        .await;
    assert_eq!(keys(&line), ["timestamp", "message", "severity", "persist"]);
    assert_eq!(line["message"], "starting for echo1 from 0 because of StartReason::FirstStart");
    assert_eq!((&line["severity"], &line["persist"]), (&json!("info"), &json!(false)));

    // The driver raises an alert without a sample: the host sends it by itself.
    let mark = observer.mark();
    observer.command("s--echo1", json!({"id": "alert", "name": "alert"})).await;
    let alerts = observer.find_after(mark, "the alert", |m| m.on(TELEMETRY).filter(|t| t["alerts"] != json!([]))).await;
    assert_eq!(alerts["alerts"], json!(["hot"]));

    let own = observer.find("telemetry of the gateway", |m| m.on("v1/from/S01/s/v1/telemetry")).await;
    for name in ["uptime", "devices_running", "devices_failed", "messages", "memory"] {
        assert!(own[name].is_u64(), "{name}: {own}");
    }
    gateway.terminate();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_loses_nothing_and_the_children_are_announced_again() {
    let broker = Broker::start();
    let observer = Observer::connect(broker.port).await;
    let proxy = Proxy::to(broker.port).await;
    let mut gateway = Gateway::prepare(&[("echo.wasm", fixture("echo"))]);
    gateway.start(proxy.port, ECHO);
    observer.find("the first sample", |m| m.on(TELEMETRY)).await;

    proxy.unplug();
    gateway.wait_for_log("connecting again");
    let mark = observer.mark();
    let during = gateway.device("echo1")["samples"].as_u64().unwrap();
    gateway.wait_for_samples("echo1", during + 20);
    proxy.plug();

    let greeting = observer.find_after(mark, "the announcement", |m| m.on("v1/from/S01/s/v1/properties")).await;
    assert_eq!(keys(&greeting["children"]), ["echo1", "echo2"]);
    let last = during + 30;
    observer
        .find_after(mark, "samples after the outage", |m| m.on(TELEMETRY)?["count"].as_u64().filter(|n| *n >= last))
        .await;

    // At least once and in order: every count is there, and first seen in its turn.
    let mut expected = 1;
    for message in observer.all() {
        let Some(count) = message.on(TELEMETRY).and_then(|sample| sample["count"].as_u64()) else { continue };
        assert!(count <= expected, "{expected} is missing before {count}");
        expected = expected.max(count + 1);
    }
    assert!(expected > last);
}

#[tokio::test(flavor = "multi_thread")]
async fn rubbish_from_the_cloud_is_refused_and_the_rest_goes_on() {
    let broker = Broker::start();
    let observer = Observer::connect(broker.port).await;
    let mut gateway = Gateway::prepare(&[("echo.wasm", fixture("echo"))]);
    gateway.start(broker.port, ECHO);
    observer.find("the first sample", |m| m.on(TELEMETRY)).await;

    let topic = "v1/to/S01/s--echo1/v1/command/requests";
    for payload in ["", "{", "[]", "null", "{\"id\":1}", "\u{0}\u{1}", &"[".repeat(1000), &"x".repeat(300_000)] {
        observer.publish(topic, payload).await;
    }
    let answer = observer.command("s--echo1", json!({"id": "1", "name": "echo", "arguments": [1]})).await;
    assert_eq!(answer["payload"]["message"], "arguments: expected an object, found an array");
    gateway.wait_for_log(
        "refused a message on v1/to/S01/s--echo1/v1/command/requests: expected a JSON object, found an array",
    );
    gateway.wait_for_log("expected at most 262144 bytes, found 300000");

    let good =
        observer.command("s--echo1", json!({"id": "2", "name": "echo", "arguments": {"text": "still here"}})).await;
    assert_eq!(good["payload"], json!({"number": 7, "text": "still here"}));
    let status = gateway.json(&["devices"]);
    assert_eq!(status["sessions"]["main"]["refused"], 9);
}
