//! Commands: progress, results, errors, duplicates, crashes, the gateway's own.

use serde_json::json;

use crate::harness::{Broker, Gateway, Observer, fixture};

const DEVICES: &str = "
[devices.echo1]
driver = 'echo.wasm'
configuration.main.interval_ms = 50
[devices.stuck]
driver = 'hostile.wasm'
configuration.main.act = 'sleep in handle-command'
limits.call = '1h'
";

#[tokio::test(flavor = "multi_thread")]
async fn commands_are_answered_once_with_progress_and_typed_errors() {
    let broker = Broker::start();
    let observer = Observer::connect(broker.port).await;
    let mut gateway = Gateway::prepare(&[("echo.wasm", fixture("echo")), ("hostile.wasm", fixture("hostile"))]);
    gateway.start(broker.port, DEVICES);
    observer.find("the first sample", |m| m.on("v1/from/S01/s--echo1/v1/telemetry")).await;

    let request = json!({"id": "c1", "name": "echo", "arguments": {"text": "hi", "number": 100}});
    let answer = observer.command("s--echo1", request.clone()).await;
    let expected = json!({"id": "c1", "state": "completed", "payload": {"number": 100, "text": "hi"}});
    assert_eq!(answer, expected);
    let responses = "v1/from/S01/s--echo1/v1/command/responses";
    let log = observer.find("the progress", |m| m.on(responses).filter(|r| r["state"] == "log")).await;
    assert_eq!(log, json!({"id": "c1", "state": "log", "payload": {"message": "echoing"}}));
    // The same id again: the same answer, and the driver is not called.
    let calls = gateway.device("echo1")["commands"].clone();
    assert_eq!(observer.command("s--echo1", request).await, expected);
    assert_eq!(gateway.device("echo1")["commands"], calls);

    for (name, arguments, code, message) in [
        ("echo", json!({}), "invalid-argument", "text: is required; expected string"),
        ("echo", json!({"text": 1}), "invalid-argument", "text: expected string, found 1"),
        ("echo", json!({"text": "", "number": 101}), "invalid-argument", "number: expected at most 100, found 101"),
        ("echo", json!({"text": "", "number": -1}), "invalid-argument", "number: expected at least 0, found -1"),
        ("echo", json!({"text": "", "number": 1.5}), "invalid-argument", "number: expected integer, found 1.5"),
        (
            "echo",
            json!({"text": "", "x": 1}),
            "invalid-argument",
            "x: is not declared; expected one of \"number\", \"text\"",
        ),
        (
            "fly",
            json!({}),
            "unsupported",
            "no command \"fly\"; expected one of \"alert\", \"count\", \"echo\", \"flush\", \"refuse\", \"store\"",
        ),
        ("refuse", json!({}), "busy", "not today"),
    ] {
        let id = format!("{name} {arguments}");
        let answer = observer.command("s--echo1", json!({"id": id, "name": name, "arguments": arguments})).await;
        let payload = json!({"code": code, "message": message});
        assert_eq!(answer, json!({"id": id, "state": "error", "payload": payload}), "{id}");
    }
    let failed = gateway.json(&["command", "echo1", "echo", "text=1", "number=3"]);
    assert_eq!(failed["error"], "text: expected string, found 1");
    let output = gateway.cli(&["command", "echo1", "echo", "text=yes"]);
    assert_eq!(
        (output.status.code(), String::from_utf8_lossy(&output.stdout).trim()),
        (Some(0), "number: 7\ntext: \"yes\"")
    );
    assert_eq!(gateway.cli(&["command", "nobody", "echo"]).status.code(), Some(1));
    assert_eq!(gateway.cli(&["command"]).status.code(), Some(2));
}

/// A person may press a button for each of a hundred relays.
#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_commands_at_once_are_all_carried_out() {
    let broker = Broker::start();
    let observer = Observer::connect(broker.port).await;
    let mut gateway = Gateway::prepare(&[("echo.wasm", fixture("echo")), ("hostile.wasm", fixture("hostile"))]);
    gateway.start(broker.port, DEVICES);
    observer.find("the first sample", |m| m.on("v1/from/S01/s--echo1/v1/telemetry")).await;
    for number in 0..200 {
        let request = json!({"id": format!("many{number}"), "name": "count"});
        observer.publish("v1/to/S01/s--echo1/v1/command/requests", &request.to_string()).await;
    }
    let mut states = std::collections::BTreeMap::new();
    observer
        .find("200 answers", |m| {
            let answer = m.on("v1/from/S01/s--echo1/v1/command/responses")?;
            if answer["state"] != "log" {
                states.insert(answer["id"].to_string(), answer["state"].to_string());
            }
            (states.len() == 200).then_some(())
        })
        .await;
    assert!(states.values().all(|state| state == "\"completed\""), "{states:#?}");
}

/// They wait for a device that does not answer; more are refused, and nobody else waits.
#[tokio::test(flavor = "multi_thread")]
async fn commands_for_the_gateway_are_bounded_and_a_stuck_device_holds_up_no_other() {
    let broker = Broker::start();
    let observer = Observer::connect(broker.port).await;
    let mut gateway = Gateway::prepare(&[("echo.wasm", fixture("echo")), ("hostile.wasm", fixture("hostile"))]);
    gateway.start(broker.port, DEVICES);
    observer.find("the first sample", |m| m.on("v1/from/S01/s--echo1/v1/telemetry")).await;
    crate::harness::until("stuck to run", || (gateway.device("stuck")["phase"] == "running").then_some(()));
    let sleep = json!({"id": "sleep", "name": "act"});
    observer.publish("v1/to/S01/s--stuck/v1/command/requests", &sleep.to_string()).await;
    for number in 0..200 {
        let request = json!({"id": format!("r{number}"), "name": "restart_device", "arguments": {"device": "stuck"}});
        observer.publish("v1/to/S01/s/v1/command/requests", &request.to_string()).await;
    }
    let mut refused = std::collections::BTreeSet::new();
    observer
        .find("136 refusals", |m| {
            let answer = m.on("v1/from/S01/s/v1/command/responses")?;
            if answer["payload"]["message"] == "the gateway has 64 commands under way" {
                refused.insert(answer["id"].to_string());
            }
            (refused.len() == 136).then_some(())
        })
        .await;
    let request = json!({"id": "c1", "name": "count"});
    assert_eq!(observer.command("s--echo1", request).await["state"], "completed");
}

/// Somebody waits for the answer, whatever else is wrong with the request.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_has_a_readable_id_gets_an_error() {
    let broker = Broker::start();
    let observer = Observer::connect(broker.port).await;
    let mut gateway = Gateway::prepare(&[("echo.wasm", fixture("echo")), ("hostile.wasm", fixture("hostile"))]);
    gateway.start(broker.port, DEVICES);
    observer.find("the first sample", |m| m.on("v1/from/S01/s--echo1/v1/telemetry")).await;
    let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
    let long = "i".repeat(200);
    for (id, request, problem) in [
        ("n1", r#"{"id":"n1"}"#.to_owned(), "name: expected a text, found nothing"),
        ("n2", format!(r#"{{"id":"n2","name":"echo","arguments":{deep}}}"#), "expected a JSON object: recursion limit"),
        (
            "n3",
            format!(r#"{{"a":"{}","id":"n3","name":"echo"}}"#, "x".repeat(300_000)),
            "expected at most 262144 bytes",
        ),
        (&long, format!(r#"{{"id":"{long}","name":"count"}}"#), "id: expected 1 to 128 bytes, found 200"),
        ("n4", r#"{"id":"n4","name":"echo","#.to_owned(), "expected a JSON object: EOF"),
    ] {
        let mark = observer.mark();
        observer.publish("v1/to/S01/s--echo1/v1/command/requests", &request).await;
        let responses = "v1/from/S01/s--echo1/v1/command/responses";
        let is_it = |m: &crate::harness::Message| m.on(responses).filter(|answer| answer["id"] == id);
        let answer = observer.find_after(mark, problem, is_it).await;
        assert_eq!((&answer["state"], &answer["payload"]["code"]), (&"error".into(), &"invalid-argument".into()));
        let message = answer["payload"]["message"].as_str().unwrap();
        assert!(message.starts_with(problem), "expected {problem:?}, found {message:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_a_kill_interrupts_is_answered_and_never_run_twice() {
    let broker = Broker::start();
    let observer = Observer::connect(broker.port).await;
    let mut gateway = Gateway::prepare(&[("echo.wasm", fixture("echo")), ("hostile.wasm", fixture("hostile"))]);
    gateway.start(broker.port, DEVICES);
    observer.find("the first sample", |m| m.on("v1/from/S01/s--echo1/v1/telemetry")).await;

    let request = json!({"id": "k1", "name": "act"});
    observer.publish("v1/to/S01/s--stuck/v1/command/requests", &request.to_string()).await;
    gateway.wait_for_device("stuck", "the command to run", |device| (device["commands"] == 1).then_some(()));
    gateway.kill();
    let mark = observer.mark();
    gateway.restart();
    let answer = observer
        .find_after(mark, "the answer after the kill", |m| m.on("v1/from/S01/s--stuck/v1/command/responses"))
        .await;
    assert_eq!((&answer["id"], &answer["state"]), (&json!("k1"), &json!("error")));
    let text = "interrupted by a restart of the gateway; the state of the device is unknown";
    assert_eq!(answer["payload"]["message"], text);
    gateway.wait_for_device("stuck", "the device to run", |device| (device["phase"] == "running").then_some(()));
    assert_eq!(observer.command("s--stuck", request).await["payload"]["message"], text);
    assert_eq!(gateway.device("stuck")["commands"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_lists_restarts_and_swaps_on_command() {
    let broker = Broker::start();
    let observer = Observer::connect(broker.port).await;
    let mut gateway = Gateway::prepare(&[("echo.wasm", fixture("echo")), ("hostile.wasm", fixture("hostile"))]);
    gateway.start(broker.port, DEVICES);
    observer.find("the first sample", |m| m.on("v1/from/S01/s--echo1/v1/telemetry")).await;

    let list = observer.command("s", json!({"id": "g1", "name": "list_devices"})).await;
    let devices = list["payload"]["devices"].as_array().unwrap();
    assert_eq!(
        (&devices[0]["id"], &devices[0]["phase"], &devices[0]["driver"]),
        (&json!("echo1"), &json!("running"), &json!("echo"))
    );
    let mark = observer.mark();
    let restarted =
        observer.command("s", json!({"id": "g2", "name": "restart_device", "arguments": {"device": "echo1"}})).await;
    assert_eq!(restarted["state"], "completed");
    observer
        .find_after(mark, "a count from one", |m| m.on("v1/from/S01/s--echo1/v1/telemetry").filter(|t| t["count"] == 1))
        .await;
    let swapped =
        observer.command("s", json!({"id": "g3", "name": "swap_driver", "arguments": {"device": "echo1"}})).await;
    assert!(swapped["payload"]["receipt"].as_str().unwrap().starts_with("swapped echo 1.0.0"), "{swapped}");
    let unknown =
        observer.command("s", json!({"id": "g4", "name": "restart_device", "arguments": {"device": "x"}})).await;
    assert_eq!(unknown["payload"]["message"], "no device \"x\"; expected one of \"echo1\", \"stuck\"");
}
