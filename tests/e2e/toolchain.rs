//! A driver author's way: new, build, check, blueprint, run.

use std::process::{Command, Output, Stdio};

use serde_json::Value as Json;

use crate::harness::{Broker, Gateway, Observer, SANDGATE, fixture, must};

fn sandgate(folder: &std::path::Path, arguments: &[&str]) -> Output {
    Command::new(SANDGATE).args(arguments).current_dir(folder).stdin(Stdio::null()).output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_driver_builds_checks_and_runs_as_it_is() {
    let broker = Broker::start();
    let observer = Observer::connect(broker.port).await;
    let mut gateway = Gateway::prepare(&[]);
    let folder = gateway.folder.path().to_owned();
    assert!(sandgate(&folder, &["new", "my-sensor"]).status.success());
    assert_eq!(sandgate(&folder, &["new", "my-sensor"]).status.code(), Some(1));
    assert_eq!(sandgate(&folder, &["new", "My Sensor"]).status.code(), Some(1));
    // Its own test runs it against a host that is none.
    let tested = must(Command::new("cargo").arg("test").current_dir(folder.join("my-sensor")));
    assert!(tested.contains("it_measures_and_greets ... ok"), "{tested}");
    // The scenarios that come with it pass, and what they ran is built.
    let mut test = Command::new(SANDGATE);
    test.args(["test", "my-sensor", "--explore", "50"])
        .current_dir(&folder)
        .env("XDG_CACHE_HOME", folder.join("cache"));
    let tested = must(&mut test);
    assert!(tested.contains("\n3 scenarios passed in "), "{tested}");
    assert!(tested.contains("  telemetry     1 of 1\n"), "{tested}");
    let check: Json =
        serde_json::from_slice(&sandgate(&folder, &["check", "my-sensor/my-sensor.wasm", "--json"]).stdout).unwrap();
    assert_eq!((&check["name"], &check["wit_version"]), (&Json::from("my-sensor"), &Json::from("0.1.3")));
    gateway.start(broker.port, "[devices.mine]\ndriver = 'my-sensor/my-sensor.wasm'\n");
    observer.find("its telemetry", |m| m.on("v1/from/S01/s--mine/v1/telemetry")?["temperature"].as_f64()).await;
    let answer = gateway.cli(&["command", "mine", "identify", "name=you"]);
    assert_eq!(String::from_utf8_lossy(&answer.stdout).trim(), "greeting: \"hello you\"");
    let lines = std::fs::read_to_string(folder.join("my-sensor/src/lib.rs")).unwrap();
    assert!(lines.contains("impl Driver for Thermometer"));
}

/// Whoever is told "built" has something that the gateway takes.
#[test]
fn what_the_gateway_would_refuse_is_not_built() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = crate::harness::root().join("tests/fixtures/echo/manifest.yml");
    std::fs::copy(manifest, folder.path().join("manifest.yml")).unwrap();
    std::fs::write(folder.path().join("other.wasm"), fixture("other-world")).unwrap();
    let output = sandgate(folder.path(), &["build", "--component", "other.wasm"]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("other.wasm: ") && !folder.path().join("echo.wasm").exists(), "{error}");
    std::fs::write(folder.path().join("good.wasm"), fixture("echo")).unwrap();
    assert!(sandgate(folder.path(), &["build", "--component", "good.wasm"]).status.success());
}

#[test]
fn a_working_driver_fits_into_twenty_lines() {
    let readme = std::fs::read_to_string(crate::harness::root().join("sdk/rust/README.md")).unwrap();
    let example = readme.split("```rust").nth(1).unwrap().split("```").next().unwrap();
    assert!(example.trim().lines().count() <= 20 && example.contains("export!("), "{example}");
}

#[test]
fn blueprints_leave_out_what_only_the_gateway_needs() {
    let gateway = Gateway::prepare(&[("echo.wasm", fixture("echo"))]);
    gateway.configure(1, "[devices.a]\ndriver = 'echo.wasm'\n[devices.b]\ndriver = 'echo.wasm'\ntype = 'other'\n");
    let clean = String::from_utf8(gateway.cli(&["blueprint", "echo.wasm"]).stdout).unwrap();
    assert!(clean.contains("blueprint_spec: device/3.0") && !clean.contains("driver:"), "{clean}");
    let parent = String::from_utf8(gateway.cli(&["blueprint", "--parent", "gateway.toml"]).stdout).unwrap();
    assert!(parent.contains("\nchildren:\n  echo:\n") && parent.contains("\n  other:\n"), "{parent}");
    let check = String::from_utf8(gateway.cli(&["run", "--check", "gateway.toml"]).stdout).unwrap();
    assert_eq!(
        check,
        "state: is fine\nsessions.main: is fine\ndevices.a: echo 1.0.0 is fine\ndevices.b: echo 1.0.0 is fine\n"
    );
    let completions = gateway.cli(&["completions", "bash"]);
    assert!(String::from_utf8_lossy(&completions.stdout).contains("sandgate"));
    for arguments in [&["check", "nothing.wasm"][..], &["run", "nothing.toml"], &["devices"]] {
        let output = gateway.cli(arguments);
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).starts_with("error: "));
    }
}

/// Drivers that were built when the contract had that version; never rebuilt.
#[tokio::test(flavor = "multi_thread")]
async fn drivers_built_for_older_contracts_of_this_line_keep_running() {
    let kept = crate::harness::root().join("tests/fixtures").join("kept");
    let mut tried = 0;
    for entry in std::fs::read_dir(&kept).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|end| end != "wasm") {
            continue;
        }
        let mut test = Command::new(SANDGATE);
        let tested = must(test.arg("test").arg(&path).arg("--tests").arg(&kept).arg("--explore").arg("50"));
        assert!(tested.contains("4 scenarios passed") && tested.contains("without a finding"), "{tested}");
        let broker = Broker::start();
        let observer = Observer::connect(broker.port).await;
        let mut gateway = Gateway::prepare(&[("old.wasm", std::fs::read(&path).unwrap())]);
        gateway.start(broker.port, "[devices.old]\ndriver = 'old.wasm'\nconfiguration.main.interval_ms = 50\n");
        let count = |m: &crate::harness::Message| m.on("v1/from/S01/s--old/v1/telemetry")?["count"].as_u64();
        observer.find("its telemetry", count).await;
        let request = serde_json::json!({"id": "1", "name": "echo", "arguments": {"text": "old"}});
        assert_eq!(observer.command("s--old", request).await["payload"]["text"], "old", "{}", path.display());
        assert!(gateway.cli(&["swap", "old"]).status.success());
        tried += 1;
    }
    assert!(tried > 1);
}

/// A contract of later needs a gateway of later, and only where it uses what is new.
#[test]
fn a_driver_built_for_a_newer_contract_is_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let check = |replaced: &[(&str, &str)]| {
        let mut bytes = fixture("echo");
        for (from, to) in replaced {
            assert_eq!(from.len(), to.len());
            let places: Vec<usize> =
                (0..bytes.len() - from.len()).filter(|at| bytes[*at..].starts_with(from.as_bytes())).collect();
            assert!(!places.is_empty(), "{from}");
            places.iter().for_each(|at| bytes[*at..at + to.len()].copy_from_slice(to.as_bytes()));
        }
        std::fs::write(folder.path().join("newer.wasm"), bytes).unwrap();
        let output = sandgate(folder.path(), &["check", "newer.wasm"]);
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).unwrap())
    };
    let (runs, said) = check(&[("@0.1.3", "@0.1.9")]);
    assert!(runs && said.contains("contract   sandgate:driver 0.1.9"), "{said}");
    let (runs, said) = check(&[("@0.1.3", "@0.1.9"), ("driver/storage@", "driver/futures@")]);
    let expected = "it is built for sandgate:driver 0.1.9, this gateway has 0.1.3: take a newer gateway";
    assert!(!runs && said.contains("imports sandgate:driver/futures@0.1.9") && said.contains(expected), "{said}");
    let (runs, said) = check(&[("@0.1.3", "@0.2.0")]);
    assert!(!runs && said.contains("built for sandgate:driver 0.2.0; this gateway runs 0.1.x"), "{said}");
}
