//! Swapping drivers under load: nothing lost, bad ones refused, worse ones
//! taken back.

use serde_json::{Value as Json, json};

use crate::harness::{Broker, Gateway, Observer, fixture, fixture_with, until};

const TELEMETRY: &str = "v1/from/S01/s--echo1/v1/telemetry";
const ECHO: &str = "
[devices.echo1]
driver = 'driver.wasm'
configuration.main.interval_ms = 5
limits.telemetry = '1000/s'
health_window = '1h'
";

fn version(number: &str) -> Vec<u8> {
    fixture_with("echo", "version: 1.0.0", &format!("version: {number}"))
}

/// The receipts of the device, newest last.
fn receipts(gateway: &Gateway) -> Vec<Json> {
    gateway.json(&["swaps", "echo1"]).as_array().cloned().unwrap_or_default()
}

fn wait_for_version(gateway: &Gateway, version: &str) {
    gateway.wait_for_device("echo1", version, |device| (device["version"] == version).then_some(()));
}

/// Every count from 1 on was seen, in order, once.
fn assert_nothing_lost(observer: &Observer) {
    let counts: Vec<u64> = observer.all().iter().filter_map(|m| m.on(TELEMETRY)?["count"].as_u64()).collect();
    let expected: Vec<u64> = (1..=counts.len() as u64).collect();
    assert_eq!(counts, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_is_swapped_in_and_no_sample_is_lost_or_doubled() {
    let broker = Broker::start();
    let observer = Observer::connect(broker.port).await;
    let mut gateway = Gateway::prepare(&[("driver.wasm", version("1.0.0"))]);
    gateway.start(broker.port, ECHO);
    observer.find("the first sample", |m| m.on(TELEMETRY)).await;

    // By an atomic rename, by a plain overwrite, by the command line.
    gateway.write("driver.wasm", &version("1.1.0"));
    wait_for_version(&gateway, "1.1.0");
    gateway.overwrite("driver.wasm", &version("1.2.0"));
    wait_for_version(&gateway, "1.2.0");
    gateway.write("other.wasm", &version("1.3.0"));
    let receipt = gateway.json(&["swap", "echo1", "other.wasm"]);
    assert_eq!((&receipt["outcome"], &receipt["new"]["version"]), (&json!("accepted"), &json!("1.3.0")));
    assert_eq!((&receipt["migrated"], &receipt["dropped"]), (&json!(true), &json!(0)));
    let samples = gateway.device("echo1")["samples"].as_u64().unwrap();
    gateway.wait_for_samples("echo1", samples + 20);

    let asked: Vec<_> = receipts(&gateway).iter().map(|receipt| receipt["asked_by"].clone()).collect();
    assert_eq!(asked, ["file change", "file change", "admin API"]);
    observer
        .find("the receipt in the cloud", |m| {
            let line = m.on("v1/from/S01/s--echo1/v3/logs")?;
            line["message"].as_str()?.starts_with("swapped echo 1.0.0").then_some(line["persist"] == true)
        })
        .await;

    // A swap by hand holds over a restart, until the configured file changes.
    gateway.terminate();
    assert_nothing_lost(&observer);
    gateway.restart();
    wait_for_version(&gateway, "1.3.0");
    gateway.write("driver.wasm", &version("1.4.0"));
    wait_for_version(&gateway, "1.4.0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_driver_is_refused_with_the_reason_and_the_old_one_goes_on() {
    let broker = Broker::start();
    let observer = Observer::connect(broker.port).await;
    let mut gateway = Gateway::prepare(&[("driver.wasm", version("1.0.0"))]);
    gateway.start(broker.port, ECHO);
    observer.find("the first sample", |m| m.on(TELEMETRY)).await;

    let whole = version("2.0.0");
    let hostile = |act: &str| {
        let manifest = format!("version: 1.0.0\n  # {act}");
        let bytes = fixture_with("hostile", "version: 1.0.0", &manifest);
        let manifest = String::from_utf8_lossy(&bytes);
        assert!(manifest.contains(act));
        bytes
    };
    let wants_more = fixture_with("echo", "version: 1.0.0", "version: 2.0.0\n  requests:\n    modbus: [line]");
    let other_configuration = fixture_with("echo", "interval_ms:", "interval_s:");
    for (bytes, reason) in [
        (b"hello".to_vec(), "expected a WebAssembly component, found something else"),
        (Vec::new(), "expected a WebAssembly component, found an empty file"),
        (whole[..whole.len() / 2].to_vec(), "expected a whole WebAssembly component; it is damaged or cut off"),
        (b"\0asm\x01\0\0\0".to_vec(), "expected a WebAssembly component, found a core module; build for wasm32-wasip2"),
        (
            fixture("other-world"),
            "not a Sandgate driver: expected the export sandgate:driver/device-driver@0.1.3, found greet",
        ),
        (wants_more, "the driver requests the Modbus line \"line\"; expected `grants.modbus.line`"),
        (
            other_configuration,
            "devices.echo1.configuration.main.interval_ms: is not declared; did you mean \"interval_s\"?",
        ),
        (
            hostile("wrong configuration"),
            "devices.echo1.configuration.main.interval_ms: is not declared; expected one of \"act\", \"other\", \"peer\"",
        ),
        (
            fixture_with("echo", "blueprint_spec: device/3.0", "blueprint_spec: device/9.0"),
            "expected \"device/3.0\", found \"device/9.0\"",
        ),
    ] {
        gateway.write("bad.wasm", &bytes);
        let output = gateway.cli(&["swap", "echo1", "bad.wasm"]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(reason), "expected {reason:?} in {text:?}");
        assert!(text.contains("echo 1.0.0") && text.contains("goes on"), "{text}");
    }
    // 200 MB of nothing.
    let huge = std::fs::File::create(gateway.path("bad.wasm")).unwrap();
    huge.set_len(200 << 20).unwrap();
    let output = gateway.cli(&["swap", "echo1", "bad.wasm"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("expected at most 64 MiB, found 200 MiB"), "{text}");
    assert_eq!(gateway.device("echo1")["version"], "1.0.0");
    gateway.terminate();
    assert_nothing_lost(&observer);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_fails_while_it_takes_over_or_soon_after_gives_way_to_the_old_one() {
    let broker = Broker::start();
    let observer = Observer::connect(broker.port).await;
    // A hostile driver with the configuration of a harmless one, so that it can
    // take its place; what it does stands in its manifest's default.
    let harmless = fixture_with("hostile", "version: 1.0.0", "version: 1.0.1");
    let acting = |act: &str| fixture_with("hostile", "default: \"\"", &format!("default: \"{act}\""));
    let mut gateway = Gateway::prepare(&[("driver.wasm", harmless.clone())]);
    let devices = "
        [devices.echo1]
        driver = 'driver.wasm'
        limits.cpu = '100ms'
        limits.call = '1s'
        health_window = '1h'
    ";
    gateway.start(broker.port, devices);
    let running =
        || gateway.wait_for_device("echo1", "the first driver", |device| (device["version"] == "1.0.1").then_some(()));
    running();

    for (act, reason) in [
        ("trap in start", "trapped in start"),
        ("loop in start", "used up its CPU budget of 100 ms in start"),
        ("sleep in swap", "exceeded its limit of 1000 ms in start"),
        ("memory in swap", "ran out of memory in start: limit 33554432 bytes"),
    ] {
        gateway.write("bad.wasm", &acting(act));
        let output = gateway.cli(&["swap", "echo1", "bad.wasm"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(reason) && text.contains("rejected"), "expected {reason:?} in {text:?}");
        assert_eq!(gateway.device("echo1")["version"], "1.0.1");
    }
    for (act, reason) in [
        ("trap in on-timer", "trapped in on-timer"),
        ("loop in on-timer", "used up its CPU budget of 100 ms in on-timer"),
        ("error in on-timer", "% of its timer calls failed, against 0 % before"),
    ] {
        gateway.write("bad.wasm", &acting(act));
        let before = receipts(&gateway).len();
        assert_eq!(gateway.json(&["swap", "echo1", "bad.wasm"])["outcome"], "accepted", "{act}");
        let back = crate::harness::until("the way back", || receipts(&gateway).get(before + 1).cloned());
        assert_eq!(back["outcome"], "rolled_back", "{back}");
        assert!(back["reason"].as_str().unwrap().contains(reason), "expected {reason:?} in {back}");
        running();
    }
    let _ = observer;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_can_go_back_within_the_watch_and_long_after_it() {
    let broker = Broker::start();
    let observer = Observer::connect(broker.port).await;
    for window in ["1h", "1ms"] {
        let mut gateway = Gateway::prepare(&[("driver.wasm", version("1.0.0"))]);
        gateway.start(broker.port, &ECHO.replace("1h", window));
        wait_for_version(&gateway, "1.0.0");
        assert_eq!(gateway.cli(&["rollback", "echo1"]).status.code(), Some(1));
        gateway.write("driver.wasm", &version("2.0.0"));
        wait_for_version(&gateway, "2.0.0");
        if window == "1ms" {
            gateway
                .wait_for_device("echo1", "the end of the watch", |device| (device["watching"] == false).then_some(()));
        }
        let output = gateway.cli(&["rollback", "echo1"]);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        wait_for_version(&gateway, "1.0.0");
        // The bad file is still there; a restart does not bring it back.
        gateway.terminate();
        gateway.restart();
        wait_for_version(&gateway, "1.0.0");
    }
    let _ = observer;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_can_go_back_to_any_kept_version() {
    let broker = Broker::start();
    let mut gateway = Gateway::prepare(&[("driver.wasm", version("1.0.0"))]);
    gateway.start(broker.port, ECHO);
    for number in ["1.0.0", "1.1.0", "1.2.0"] {
        gateway.write("driver.wasm", &version(number));
        wait_for_version(&gateway, number);
    }
    let receipt = gateway.json(&["rollback", "echo1", "1.0.0"]);
    assert_eq!((&receipt["outcome"], &receipt["new"]["version"]), (&json!("accepted"), &json!("1.0.0")));
    wait_for_version(&gateway, "1.0.0");
    let digest = sandgate::sandbox::Digest::of(&version("1.2.0")).to_string();
    // The state folder has all of them after a restart as well.
    gateway.terminate();
    gateway.restart();
    wait_for_version(&gateway, "1.0.0");
    gateway.json(&["rollback", "echo1", &digest[..8]]);
    wait_for_version(&gateway, "1.2.0");
    let output = gateway.cli(&["rollback", "echo1", "9.9.9"]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    let begin = "no version \"9.9.9\" of echo is kept; kept are ";
    assert!(text.contains(begin) && ["1.0.0 (", "1.1.0 (", "1.2.0 ("].iter().all(|kept| text.contains(kept)), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_dies_while_a_driver_is_on_trial_comes_up_with_the_one_before() {
    let broker = Broker::start();
    let mut gateway = Gateway::prepare(&[("driver.wasm", version("1.0.0"))]);
    gateway.start(broker.port, ECHO);
    gateway.wait_for_samples("echo1", 10);
    gateway.write("driver.wasm", &version("2.0.0"));
    wait_for_version(&gateway, "2.0.0");
    gateway.kill();
    for _ in 0..2 {
        gateway.restart();
        wait_for_version(&gateway, "1.0.0");
        gateway.wait_for_samples("echo1", 10);
        gateway.kill();
    }
    gateway.restart();
    wait_for_version(&gateway, "1.0.0");
    let receipts = receipts(&gateway);
    let is_told = |receipt: &&Json| receipt.to_string().contains("the gateway ended before the new driver");
    assert_eq!(receipts.iter().filter(is_told).count(), 1, "{receipts:?}");
    // Asked for once more it takes over, and stays when it has proved itself.
    gateway.terminate();
    gateway.configure(broker.port, &ECHO.replace("1h", "1ms"));
    gateway.restart();
    wait_for_version(&gateway, "1.0.0");
    gateway.json(&["swap", "echo1"]);
    gateway.wait_for_device("echo1", "the end of the watch", |device| {
        (device["version"] == "2.0.0" && device["watching"] == false).then_some(())
    });
    // What was seen by others is on the disk a moment later.
    until("it to be written down", || {
        let text = std::fs::read_to_string(gateway.path("sandgate-state/devices.jsonl")).unwrap();
        let last: Json = serde_json::from_str(text.lines().last()?).ok()?;
        (last["trial"].is_null() && last["running"] == last["base"]).then_some(())
    });
    gateway.kill();
    gateway.restart();
    wait_for_version(&gateway, "2.0.0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_that_is_rejected_during_a_trial_does_not_end_the_trial() {
    let broker = Broker::start();
    let harmless = |number: &str| fixture_with("hostile", "version: 1.0.0", &format!("version: {number}"));
    let bad = fixture_with("hostile", "default: \"\"", "default: \"trap in start\"");
    let files = [("driver.wasm", harmless("1.0.1")), ("new.wasm", harmless("1.0.2")), ("bad.wasm", bad)];
    let mut gateway = Gateway::prepare(&files);
    gateway.start(broker.port, "[devices.echo1]\ndriver = 'driver.wasm'\nhealth_window = '1h'\n");
    wait_for_version(&gateway, "1.0.1");
    assert_eq!(gateway.json(&["swap", "echo1", "new.wasm"])["outcome"], "accepted");
    assert_eq!(gateway.cli(&["swap", "echo1", "bad.wasm"]).status.code(), Some(1));
    assert_eq!(receipts(&gateway).last().unwrap()["outcome"], "rejected");
    until("the trial that goes on to be written down", || {
        let text = std::fs::read_to_string(gateway.path("sandgate-state/devices.jsonl")).unwrap();
        let last: Json = serde_json::from_str(text.lines().last()?).ok()?;
        (last["trial"]["version"] == "1.0.2").then_some(())
    });
    gateway.kill();
    gateway.restart();
    wait_for_version(&gateway, "1.0.1");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_devices_of_a_driver_are_swapped_in_steps_and_go_back_together() {
    let broker = Broker::start();
    let label = |number: usize| if number == 3 { "odd" } else { "even" };
    let device = |number| {
        let table = ECHO.replace("echo1", &format!("d{number}"));
        format!("{table}configuration.main.label = '{}'\n", label(number))
    };
    let mut gateway = Gateway::prepare(&[("driver.wasm", version("1.0.0")), ("new.wasm", version("2.0.0"))]);
    gateway.start(broker.port, &(0..5).map(device).collect::<String>());
    let versions =
        |gateway: &Gateway| (0..5).map(|n| gateway.device(&format!("d{n}"))["version"].clone()).collect::<Vec<_>>();
    (0..5).for_each(|number| gateway.wait_for_samples(&format!("d{number}"), 1));
    let roll_out = |gateway: &Gateway, file: &str| {
        let output = gateway.cli(&["swap", "--driver", "echo", "--steps", "1,50%,100%", "--watch", "100ms", file]);
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, text) = roll_out(&gateway, "new.wasm");
    assert_eq!(code, Some(0), "{text}");
    assert!(text.ends_with("done: 5 of 5 devices run the new echo\n"), "{text}");
    assert_eq!(versions(&gateway), ["2.0.0"; 5]);
    let all = gateway.json(&["swaps", "(5 devices)"]);
    assert_eq!((all.as_array().unwrap().len(), &all[0]["outcome"]), (1, &json!("accepted")));

    // The fourth device does not take the next one: those before it go back.
    let allowed = "label:\n        type: string\n        enum: [even]\n        ";
    let picky = fixture_with("echo", "label:\n        type: string\n        ", allowed);
    gateway.write("picky.wasm", &picky);
    let (code, text) = roll_out(&gateway, "picky.wasm");
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("failed, and went back: d3: "), "{text}");
    assert_eq!(versions(&gateway), ["2.0.0"; 5]);
    let all = gateway.json(&["swaps", "(3 devices)"]);
    assert_eq!(all[0]["outcome"], "rolled_back");
    assert!(all[0]["reason"].as_str().unwrap().starts_with("d3: "), "{all}");
    // What is no driver changes nothing, and that is said.
    gateway.write("rubbish.wasm", b"rubbish");
    let (code, text) = roll_out(&gateway, "rubbish.wasm");
    assert!(code == Some(1) && text.contains("failed, and nothing was swapped: d0: "), "{text}");
    for (arguments, problem) in [
        (["--driver", "ecko", "--steps", "1"], "no device runs a driver \"ecko\"; did you mean"),
        (["--driver", "echo", "--steps", "0"], "--steps: expected a number of devices such as 5"),
    ] {
        let output = gateway.cli(&[&["swap"], &arguments[..]].concat());
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && text.contains(problem), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_points_elsewhere_is_a_changed_file_and_a_touched_file_is_none() {
    let broker = Broker::start();
    let observer = Observer::connect(broker.port).await;
    let mut gateway = Gateway::prepare(&[]);
    // As a mounted volume does it: the file is a link into a folder that is a link.
    for (folder, number) in [("v1", "1.0.0"), ("v2", "2.0.0")] {
        std::fs::create_dir(gateway.path(folder)).unwrap();
        std::fs::write(gateway.path(folder).join("driver.wasm"), version(number)).unwrap();
    }
    let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, gateway.path(name)).unwrap();
    link("v1", "data");
    link("data/driver.wasm", "driver.wasm");
    link("v2", "data.new");
    gateway.start(broker.port, ECHO);
    wait_for_version(&gateway, "1.0.0");
    std::fs::rename(gateway.path("data.new"), gateway.path("data")).unwrap();
    wait_for_version(&gateway, "2.0.0");

    // A choice by hand stands when the configured file is only touched.
    gateway.write("chosen.wasm", &version("3.0.0"));
    assert_eq!(gateway.json(&["swap", "echo1", "chosen.wasm"])["outcome"], "accepted");
    gateway.overwrite("v2/driver.wasm", &version("2.0.0"));
    gateway.overwrite("v2/driver.wasm", b"nonsense");
    gateway.wait_for_log("asked by file change, rejected: loading driver");
    assert_eq!(gateway.device("echo1")["version"], "3.0.0");
    let _ = observer;
}
