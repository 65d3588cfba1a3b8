//! Drivers in other languages: the contract must not be shaped by Rust.

use std::path::{Path, PathBuf};
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
    must(Command::new(SANDGATE).args(arguments).current_dir(folder).env("XDG_CACHE_HOME", tools()))
}

fn tools() -> PathBuf {
    std::env::var_os("SANDGATE_TOOLS").map_or_else(|| root().join("target/tools"), PathBuf::from)
}

/// What `sandgate new` writes builds and passes as it is; what is wrong is told with
/// its place, and nothing is written.
fn a_new_driver(language: &str, file: &str, complaint: &str) {
    let folder = tempfile::tempdir().unwrap();
    sandgate(&["new", "my-sensor", "--lang", language], folder.path());
    let own = folder.path().join("my-sensor");
    let said = sandgate(&["test"], &own);
    assert!(said.contains("3 scenarios passed"), "{said}");
    std::fs::remove_file(own.join("my-sensor.wasm")).unwrap();
    let mut script = std::fs::read_to_string(own.join(file)).unwrap();
    script.push_str("\nnonsense(\n");
    std::fs::write(own.join(file), script).unwrap();
    let mut build = Command::new(SANDGATE);
    let output = build.arg("build").current_dir(&own).env("XDG_CACHE_HOME", tools()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains(file) && said.contains(complaint), "{said}");
    assert!(!own.join("my-sensor.wasm").exists());
}

/// The same scenarios for the same driver in each language: values, errors, state
/// and devices of every kind.
fn conforms(fixture: &str) {
    let folder = tempfile::tempdir().unwrap();
    let fixtures = root().join("tests/fixtures");
    must(Command::new("cp").arg("-r").arg(fixtures.join(fixture)).arg(folder.path()));
    let scenarios = fixtures.join("meter-python").join("tests");
    let said = sandgate(&["test", fixture, "--tests", scenarios.to_str().unwrap()], folder.path());
    assert!(said.contains("5 scenarios passed"), "{said}");
}

#[needs("python3")]
#[test]
fn a_new_driver_in_python_builds_and_passes_its_scenarios_as_it_is() {
    a_new_driver("python", "driver.py", "SyntaxError");
}

#[needs("npm")]
#[test]
fn a_new_driver_in_javascript_builds_and_passes_its_scenarios_as_it_is() {
    a_new_driver("javascript", "driver.js", "Unexpected end of file");
}

#[needs("npm")]
#[test]
fn a_new_driver_in_typescript_builds_and_passes_its_scenarios_as_it_is() {
    a_new_driver("typescript", "driver.ts", "Unexpected end of file");
}

#[needs("python3")]
#[test]
fn a_driver_in_python_has_values_errors_state_and_devices_of_every_kind() {
    conforms("meter-python");
}

#[needs("npm")]
#[test]
fn a_driver_in_typescript_has_values_errors_state_and_devices_of_every_kind() {
    conforms("meter-typescript");
}

#[needs("npm")]
#[test]
fn an_async_driver_is_told_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    sandgate(&["new", "my-sensor", "--lang", "javascript"], folder.path());
    let own = folder.path().join("my-sensor");
    let script = std::fs::read_to_string(own.join("driver.js")).unwrap();
    std::fs::write(own.join("driver.js"), script.replace("identify: (", "identify: async (")).unwrap();
    let scenario =
        "scenarios:\n  it is told:\n    - command: { name: identify, error: \"failed: *leave out async and await\" }\n";
    std::fs::write(own.join("tests/begin.test.yml"), scenario).unwrap();
    let said = sandgate(&["test"], &own);
    assert!(said.contains("1 scenario passed"), "{said}");
}
