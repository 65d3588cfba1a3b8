//! Drivers that misbehave: each is stopped, named and explained, and its
//! neighbour keeps its pace.

use std::fmt::Write as _;

use serde_json::json;

use crate::harness::{Broker, Gateway, Observer, fixture};

/// What each driver does, and what the gateway says about it.
const CASES: &[(&str, &str)] = &[
    ("loop in start", "used up its CPU budget of 50 ms in start"),
    ("loop in on-timer", "used up its CPU budget of 50 ms in on-timer"),
    ("host calls in on-timer", "used up its CPU budget of 50 ms in on-timer"),
    ("memory in start", "ran out of memory in start: limit 8388608 bytes"),
    ("memory in on-timer", "ran out of memory in on-timer: limit 8388608 bytes"),
    ("recursion in on-timer", "trapped in on-timer: wasm trap: call stack exhausted"),
    ("trap in start", "trapped in start: wasm trap: wasm `unreachable` instruction executed"),
    ("trap in on-timer", "trapped in on-timer: wasm trap: wasm `unreachable` instruction executed"),
    ("panic in on-timer", "trapped in on-timer: wasm trap: wasm `unreachable` instruction executed"),
    ("silent peer in on-timer", "exceeded its limit of 700 ms in on-timer"),
    ("wasi silence in on-timer", "exceeded its limit of 700 ms in on-timer"),
    ("sleep in on-timer", "exceeded its limit of 700 ms in on-timer"),
];

/// Drivers that misbehave on a call from outside.
const ON_DEMAND: &[(&str, &str)] = &[
    (
        "loop in handle-command",
        "the driver used up its CPU budget of 50 ms in handle-command; the state of the device is unknown",
    ),
    (
        "trap in handle-command",
        "the driver trapped in handle-command: wasm trap: wasm `unreachable` instruction executed",
    ),
    (
        "memory in handle-command",
        "the driver ran out of memory in handle-command: limit 8388608 bytes; the state of the device is unknown",
    ),
    ("huge result in handle-command", "the driver returned 2097156 bytes; expected at most 65536"),
    (
        "sleep in handle-command",
        "the driver exceeded its limit of 700 ms in handle-command; the state of the device is unknown",
    ),
];

/// Drivers that are wrong but may live.
const HARMLESS: &[&str] = &[
    "naps in on-timer",
    "not granted in on-timer",
    "undeclared in on-timer",
    "huge strings in on-timer",
    "timers in start",
];

fn device(id: &str, act: &str, peer: u16) -> String {
    format!(
        "[devices.{id}]\ndriver = 'hostile.wasm'\nconfiguration.main.act = '{act}'\n\
         configuration.main.peer = '127.0.0.1:{peer}'\ngrants.tcp = ['127.0.0.1:{peer}']\n\
         limits.cpu = '50ms'\nlimits.call = '700ms'\nlimits.memory = '8MiB'\ncloud_log = 'off'\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn each_misbehaviour_is_stopped_and_explained_and_the_neighbour_keeps_its_pace() {
    let broker = Broker::start();
    let observer = Observer::connect(broker.port).await;
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = silent.local_addr().unwrap().port();
    let mut devices = "[devices.good]\ndriver = 'echo.wasm'\nconfiguration.main.interval_ms = 20\n\
                       limits.telemetry = '1000/s'\n"
        .to_owned();
    for (number, (act, _)) in CASES.iter().chain(ON_DEMAND).enumerate() {
        let _ = write!(devices, "{}", device(&format!("case{number}"), act, peer));
    }
    for (number, act) in HARMLESS.iter().enumerate() {
        // The time is for a slow test machine: these compute a lot, legally.
        let text =
            device(&format!("harmless{number}"), act, peer).replace("'50ms'", "'20s'").replace("'700ms'", "'60s'");
        let text = if act.starts_with("naps") { text.replace("'20s'", "'500ms'") } else { text };
        devices.push_str(&text.replace("'8MiB'", "'64MiB'"));
    }
    for (id, act) in [("flood", "telemetry flood in on-timer"), ("chatter", "log flood in on-timer")] {
        devices.push_str(&device(id, act, peer).replace("'50ms'", "'20s'").replace("'700ms'", "'60s'"));
    }
    let mut gateway = Gateway::prepare(&[("echo.wasm", fixture("echo")), ("hostile.wasm", fixture("hostile"))]);
    gateway.start(broker.port, &devices);
    observer.find("the good device", |m| m.on("v1/from/S01/s--good/v1/telemetry")).await;

    for (number, (act, expected)) in CASES.iter().enumerate() {
        let id = format!("case{number}");
        let problem = gateway.wait_for_device(&id, act, |device| device["problem"].as_str().map(str::to_owned));
        assert!(problem.starts_with(expected), "{act}: expected {expected:?}, found {problem:?}");
        gateway.wait_for_log(&format!("device=\"{id}\""));
    }
    for (offset, (act, expected)) in ON_DEMAND.iter().enumerate() {
        let id = format!("case{}", CASES.len() + offset);
        gateway.wait_for_device(&id, act, |device| (device["phase"] == "running").then_some(()));
        let answer = observer.command(&format!("s--{id}"), json!({"id": act, "name": "act"})).await;
        assert_eq!(answer["state"], "error", "{act}");
        let message = answer["payload"]["message"].as_str().unwrap();
        assert!(message.starts_with(expected), "{act}: expected {expected:?}, found {message:?}");
        // The first crash is answered with a fresh start at once.
        gateway.wait_for_device(&id, act, |device| (device["phase"] == "running").then_some(()));
    }
    for (number, act) in HARMLESS.iter().enumerate() {
        let id = format!("harmless{number}");
        gateway.wait_for_device(&id, act, |device| {
            assert_eq!(device["crashes"].as_u64().unwrap_or_default(), 0, "{act}: {device:#}");
            let complained = device["rejected"].as_u64()? > 0 || *act != "undeclared in on-timer";
            (device["phase"] == "running" && complained).then_some(())
        });
    }
    gateway.wait_for_log("127.0.0.1:1 is not granted to this device");
    gateway.wait_for_log("nonsense: is not declared in the manifest");
    let complaints = gateway.log().matches("nonsense: is not declared in the manifest").count();
    assert_eq!(complaints, 1, "one line for each attribute");

    // The floods are cut at their rate, and counted.
    gateway.wait_for_device("flood", "limited samples", |device| (device["limited"].as_u64()? > 1000).then_some(()));
    gateway.wait_for_device("chatter", "dropped lines", |device| {
        (device["log_lines_dropped"].as_u64()? > 1000).then_some(())
    });
    let dropped = gateway.device("chatter")["log_lines_dropped"].as_u64().unwrap();
    assert!((gateway.log().matches("flood ").count() as u64) < dropped);

    // Through all of this the neighbour has gone on, without a gap.
    let before = gateway.device("good")["samples"].as_u64().unwrap();
    gateway.wait_for_samples("good", before + 20);
    let counts: Vec<u64> = observer
        .all()
        .iter()
        .filter_map(|message| message.on("v1/from/S01/s--good/v1/telemetry")?["count"].as_u64())
        .collect();
    assert_eq!(counts, (1..=counts.len() as u64).collect::<Vec<_>>());
    assert_eq!(gateway.device("good")["crashes"], 0);
    assert!(gateway.is_alive());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_misbehaves_in_configure_stop_or_a_swap_harms_only_its_device() {
    let broker = Broker::start();
    let observer = Observer::connect(broker.port).await;
    let acts =
        [("a", "loop in configure"), ("b", "loop in stop"), ("c", "loop in snapshot"), ("d", "large in snapshot")];
    let devices: String = acts.iter().map(|(id, act)| device(id, act, 1)).collect();
    let mut gateway = Gateway::prepare(&[("hostile.wasm", fixture("hostile"))]);
    gateway.start(broker.port, &devices);
    for (id, _) in acts {
        gateway.wait_for_device(id, "it to run", |device| (device["phase"] == "running").then_some(()));
    }
    // A new configuration for a, none of b any more.
    let changed: String = acts
        .iter()
        .filter(|(id, _)| *id != "b")
        .map(|(id, act)| {
            let text = device(id, act, 1);
            if *id == "a" {
                text.replace("configuration.main.peer", "configuration.main.other = 1\nconfiguration.main.peer")
            } else {
                text
            }
        })
        .collect();
    gateway.configure(broker.port, &changed);
    gateway.wait_for_log("used up its CPU budget of 50 ms in configure");
    gateway.wait_for_log("used up its CPU budget of 50 ms in stop");
    for id in ["c", "d"] {
        let receipt = gateway.json(&["swap", id]);
        assert_eq!((&receipt["outcome"], &receipt["migrated"]), (&json!("accepted"), &json!(false)), "{receipt}");
    }
    for id in ["a", "c", "d"] {
        gateway.wait_for_device(id, "it to run again", |device| (device["phase"] == "running").then_some(()));
    }
    let rejected = [
        ("loop in restore", "used up its CPU budget of 50 ms in restore"),
        ("trap in restore", "trapped in restore: wasm trap: wasm `unreachable` instruction executed"),
        ("memory in restore", "ran out of memory in restore: limit 8388608 bytes"),
        ("error in restore", "restore: an error on purpose"),
        ("trap in swap", "trapped in start: wasm trap: wasm `unreachable` instruction executed"),
    ];
    for (number, (act, expected)) in rejected.iter().enumerate() {
        gateway.configure(broker.port, &device(&format!("r{number}"), act, 1));
        let id = format!("r{number}");
        gateway.wait_for_device(&id, act, |device| (device["phase"] == "running").then_some(()));
        let receipt = gateway.json(&["swap", &id]);
        let reason = receipt["reason"].as_str().unwrap_or_default();
        assert!(receipt["outcome"] == "rejected" && reason.contains(expected), "{act}: {receipt}");
        // The one before goes on and answers.
        let answer = observer.command(&format!("s--{id}"), json!({"id": act, "name": "act"})).await;
        assert_eq!(answer["state"], "completed", "{act}: {answer}");
        assert_eq!(gateway.device(&id)["crashes"], 0, "{act}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_crashes_again_waits_and_a_hand_starts_it_at_once() {
    let broker = Broker::start();
    let observer = Observer::connect(broker.port).await;
    let mut gateway = Gateway::prepare(&[("hostile.wasm", fixture("hostile"))]);
    gateway.start(broker.port, &device("a", "trap in start", 1));
    gateway.wait_for_device("a", "a wait", |device| {
        (device["phase"] == "restarting" && device["crashes"].as_u64()? >= 3).then_some(())
    });
    gateway.wait_for_log("connected to");
    let answer = observer.command("s--a", json!({"id": "x", "name": "act"})).await;
    let message = answer["payload"]["message"].as_str().unwrap();
    assert!(message.starts_with("the driver is not running: trapped in start"), "{message}");
    // A good configuration cures it.
    gateway.configure(broker.port, &device("a", "trap in handle-command", 1));
    gateway.wait_for_device("a", "the new configuration", |device| (device["phase"] == "running").then_some(()));
    observer.command("s--a", json!({"id": "y1", "name": "act"})).await;
    gateway.wait_for_device("a", "the first restart", |device| (device["phase"] == "running").then_some(()));
    observer.command("s--a", json!({"id": "y2", "name": "act"})).await;
    assert_eq!(gateway.cli(&["restart", "a"]).status.code(), Some(0));
    gateway.wait_for_device("a", "the restart by hand", |device| (device["phase"] == "running").then_some(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_no_drivers_are_explained_at_the_start_and_the_neighbour_runs() {
    let broker = Broker::start();
    let echo = fixture("echo");
    let cases = [
        ("nothing", Vec::new(), "expected a WebAssembly component, found an empty file"),
        ("text", b"hello".to_vec(), "expected a WebAssembly component, found something else"),
        ("half", echo[..echo.len() / 2].to_vec(), "expected a whole WebAssembly component; it is damaged or cut off"),
        ("module", b"\0asm\x01\0\0\0".to_vec(), "expected a WebAssembly component, found a core module"),
        ("world", fixture("other-world"), "not a Sandgate driver: expected the export sandgate:driver/device-driver"),
        ("huge", Vec::new(), "expected at most 64 MiB, found 200 MiB"),
        ("missing", Vec::new(), "there is no such file"),
    ];
    let mut gateway = Gateway::prepare(&[("echo.wasm", echo)]);
    let mut devices = "[devices.good]\ndriver = 'echo.wasm'\nconfiguration.main.interval_ms = 20\n".to_owned();
    for (name, bytes, _) in &cases {
        let _ = write!(devices, "[devices.{name}]\ndriver = '{name}.wasm'\ntype = 'echo'\n");
        match *name {
            "missing" => {}
            "huge" => std::fs::File::create(gateway.path("huge.wasm")).unwrap().set_len(200 << 20).unwrap(),
            _ => gateway.write(&format!("{name}.wasm"), bytes),
        }
    }
    let observer = Observer::connect(broker.port).await;
    gateway.start(broker.port, &devices);
    observer.find("the good device", |m| m.on("v1/from/S01/s--good/v1/telemetry").filter(|t| t["count"] == 20)).await;
    for (name, _, expected) in &cases {
        let problem = gateway.wait_for_device(name, expected, |device| device["problem"].as_str().map(str::to_owned));
        assert!(problem.contains(expected) && problem.contains(&format!("{name}.wasm")), "{name}: {problem}");
    }
    // Each is a child all the same, and says why it does nothing.
    let answer = observer.command("s--half", json!({"id": "x", "name": "echo"})).await;
    assert_eq!(answer["payload"]["message"], "the driver of this device is not running");
}
