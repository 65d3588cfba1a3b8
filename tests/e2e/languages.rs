//! Drivers in other languages: the contract must not be shaped by Rust.

use std::path::Path;
use std::process::Command;

use serde_json::json;

use sandgate_test_needs::needs;

use crate::harness::{Broker, Gateway, Observer, SANDGATE, must, root};
use crate::tapes::record_and_replay;

/// Builds a fixture with its own toolchain and embeds its manifest.
fn build(name: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let (raw, driver) = (folder.path().join("raw.wasm"), folder.path().join("driver.wasm"));
    let source = root().join("tests/fixtures").join(name);
    must(Command::new("sh").arg(source.join("build.sh")).arg(&raw));
    must(Command::new(SANDGATE).arg("build").arg(&source).arg("--component").arg(&raw).arg("--output").arg(&driver));
    std::fs::read(driver).unwrap()
}

/// Interpreters hash in random order and collect garbage: all that is on the tape, or follows from it.
fn an_hour_is_the_same_when_it_is_replayed(component: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let (driver, tests) = (folder.path().join("driver.wasm"), folder.path().join("tests"));
    std::fs::write(&driver, component).unwrap();
    std::fs::create_dir(&tests).unwrap();
    std::fs::write(tests.join("a.test.yml"), "scenarios:\n  an hour:\n    - advance: 1h\n").unwrap();
    let lives = record_and_replay(&driver, &tests);
    assert!(lives.len() == 1 && lives[0].1 > 3500.0, "{lives:?}");
}

async fn check(name: &str, language: &str) {
    let component = build(name);
    an_hour_is_the_same_when_it_is_replayed(&component);
    let broker = Broker::start();
    let observer = Observer::connect(broker.port).await;
    let mut gateway = Gateway::prepare(&[("driver.wasm", component)]);
    gateway.start(broker.port, "[devices.hello]\ndriver = 'driver.wasm'\n");
    gateway.wait_for_log(&format!("hello from {language}"));
    let properties = observer.find("properties", |m| m.on("v1/from/S01/s--hello/v1/properties")).await;
    assert!(properties["language"].as_str().unwrap().to_lowercase().contains(language));
    let sample =
        observer.find("a sample", |m| m.on("v1/from/S01/s--hello/v1/telemetry").filter(|t| t["count"] == 3)).await;
    assert_eq!((&sample["ratio"], sample["label"].is_string()), (&json!(0.5), true));
    let request = json!({"id": "1", "name": "echo", "arguments": {"text": "grüße"}});
    let answer = observer.command("s--hello", request).await;
    assert_eq!(answer, json!({"id": "1", "state": "completed", "payload": {"text": "grüße"}}));
    let log = observer
        .find("the progress", |m| m.on("v1/from/S01/s--hello/v1/command/responses").filter(|r| r["state"] == "log"))
        .await;
    assert_eq!(log["payload"]["message"], "echoing");
    assert_eq!(gateway.device("hello")["crashes"], 0);
}

#[needs("python3")]
#[tokio::test(flavor = "multi_thread")]
async fn a_driver_in_python_sends_telemetry_and_answers_a_command() {
    check("hello-python", "python").await;
}

#[needs("npm")]
#[tokio::test(flavor = "multi_thread")]
async fn a_driver_in_javascript_sends_telemetry_and_answers_a_command() {
    check("hello-js", "javascript").await;
}

/// Runs the program with tools that stay from one run to the next.
fn sandgate(arguments: &[&str], folder: &Path) -> String {
    let tools = std::env::var_os("SANDGATE_TOOLS").map_or_else(|| root().join("target/tools"), Into::into);
    must(Command::new(SANDGATE).args(arguments).current_dir(folder).env("XDG_CACHE_HOME", tools))
}

#[needs("python3")]
#[test]
fn a_new_driver_in_python_builds_and_passes_its_scenarios_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    sandgate(&["new", "my-sensor", "--lang", "python"], folder.path());
    let own = folder.path().join("my-sensor");
    let said = sandgate(&["test"], &own);
    assert!(said.contains("3 scenarios passed"), "{said}");
    // What is wrong is told with its place, and nothing is written.
    std::fs::remove_file(own.join("my-sensor.wasm")).unwrap();
    let mut script = std::fs::read_to_string(own.join("driver.py")).unwrap();
    script.push_str("\nnonsense(\n");
    std::fs::write(own.join("driver.py"), script).unwrap();
    let output = Command::new(SANDGATE).arg("build").current_dir(&own).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("driver.py") && said.contains("SyntaxError"), "{said}");
    assert!(!own.join("my-sensor.wasm").exists());
}

#[needs("python3")]
#[test]
fn a_driver_in_python_has_values_errors_state_and_devices_of_every_kind() {
    let folder = tempfile::tempdir().unwrap();
    must(Command::new("cp").arg("-r").arg(root().join("tests/fixtures").join("meter-python")).arg(folder.path()));
    let said = sandgate(&["test", "meter-python"], folder.path());
    assert!(said.contains("4 scenarios passed"), "{said}");
}
