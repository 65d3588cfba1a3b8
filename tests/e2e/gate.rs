//! The gate: a new version of a driver on what the device has done, before it takes over.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use sandgate::gate::{self, Grounds};
use sandgate::receipt::Comparison;
use sandgate::sandbox::{Compiler, Driver, Sandbox};
use sandgate::tape::Tape;
use serde_json::{Value as Json, json};

use crate::harness::{Broker, Gateway, SANDGATE, fixture, fixture_with, must, root};

/// A driver of plugins/, the tapes of its scenarios and of some more.
fn plugin(name: &str, more: &str) -> (tempfile::TempDir, Vec<Tape>) {
    let folder = tempfile::tempdir().unwrap();
    let source = root().join("plugins").join(name);
    let driver = folder.path().join("driver.wasm");
    must(Command::new(SANDGATE).arg("build").arg(&source).arg("--output").arg(&driver));
    let (tests, tapes) = (folder.path().join("tests"), folder.path().join("tapes"));
    std::fs::create_dir(&tests).unwrap();
    let of_driver = std::fs::read_dir(source.join("tests")).unwrap().next().unwrap().unwrap().path();
    let scenarios = format!("{}\n{more}", std::fs::read_to_string(of_driver).unwrap().trim_end());
    std::fs::write(tests.join("a.test.yml"), scenarios).unwrap();
    let mut test = Command::new(SANDGATE);
    test.arg("test").arg(&driver).arg("--tests").arg(&tests).arg("--tapes").arg(&tapes);
    must(test.env("XDG_CACHE_HOME", folder.path().join("cache")));
    let files = std::fs::read_dir(tapes).unwrap().map(|entry| entry.unwrap().path());
    let tapes = files.map(|file| Tape::read(&std::fs::read(file).unwrap()).unwrap()).collect();
    (folder, tapes)
}

async fn load(folder: &Path, file: &str) -> Arc<Driver> {
    let sandbox = Sandbox::new(Compiler::InProcess, Some(&folder.join("cache/sandgate"))).unwrap();
    Arc::new(sandbox.load(&folder.join(file)).await.unwrap())
}

/// Compares two drivers where all that is on the tape is granted.
async fn compare(old: &Arc<Driver>, new: &Arc<Driver>, tape: Tape) -> Comparison {
    let grounds = Grounds::of(&tape, &[&old.manifest.driver.requests]);
    let (old, new) = (Arc::clone(old), Arc::clone(new));
    tokio::task::spawn_blocking(move || gate::compare((&old, &new), &tape, &grounds)).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_is_the_same_as_itself_on_all_that_its_device_does() {
    for (name, least) in [("power-meter-pm2100", 60), ("relay-tasmota", 25), ("inverter-deye", 60)] {
        let (folder, tapes) = plugin(name, "  an hour:\n    - advance: 1h\n");
        let driver = load(folder.path(), "driver.wasm").await;
        let mut samples = 0;
        for tape in tapes {
            let calls = tape.extent().0;
            let comparison = compare(&driver, &driver, tape).await;
            assert!(comparison.is_same(0.0) && comparison.unknown.is_empty(), "{name}, {calls} calls: {comparison}");
            samples += comparison.samples;
        }
        assert!(samples >= least, "{name}: {samples}");
    }
}

/// The end of a tape only, as the ring of a running device has it: the handles
/// of units and the timers were made before.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_tape_is_enough_and_a_new_value_is_named() {
    let (folder, tapes) = plugin("power-meter-pm2100", "  an hour:\n    - advance: 1h\n");
    let driver = load(folder.path(), "driver.wasm").await;
    let mut tape = tapes.into_iter().max_by_key(|tape| tape.extent().0).unwrap();
    assert!(tape.chunks.len() > 20);
    tape.chunks.drain(..tape.chunks.len() - 10);
    tape.header.is_whole = false;
    // What the recorder of a ring notes beside each chunk.
    tape.header.handles = [(0, "line/1".to_owned()), (1, "line/1".to_owned())].into();
    let comparison = compare(&driver, &driver, tape.clone()).await;
    assert!(comparison.is_same(0.0) && comparison.samples > 100, "{comparison}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_is_tried_on_the_tape_first_and_refused_where_the_operator_says_so() {
    let broker = Broker::start();
    let same = fixture_with("echo", "version: 1.0.0", "version: 1.1.0");
    // One that no longer declares a value cannot send it.
    let other = fixture_with("echo", "  half:\n    type: float\n    display_name: Half of the count\n", "");
    let files = [("echo.wasm", fixture("echo")), ("same.wasm", same), ("other.wasm", other)];
    let mut gateway = Gateway::prepare(&files);
    let device = |id: &str| format!("[devices.{id}]\ndriver = 'echo.wasm'\nconfiguration.main.interval_ms = 100\n");
    let strict = format!("{}gate.mode = 'refuse'\n", device("strict"));
    let off = format!("{}gate.mode = 'off'\n", device("off"));
    gateway.start(broker.port, &format!("{}{strict}{off}", device("free")));
    for id in ["free", "strict", "off"] {
        gateway.wait_for_samples(id, 20);
    }
    let receipt = gateway.json(&["swap", "free", "same.wasm"]);
    let compared = &receipt["gate"]["compared"];
    let samples = compared["samples"].as_u64().unwrap();
    assert!(samples >= 15 && compared["equal"] == samples && compared["attributes"] == json!({}), "{receipt:#}");
    assert_eq!((&receipt["outcome"], &receipt["dropped"]), (&json!("accepted"), &json!(0)));
    let said = String::from_utf8(gateway.cli(&["swaps", "free"]).stdout).unwrap();
    assert!(said.contains(&format!("; gate: {samples} of {samples} samples equal; requests equal; CPU ")), "{said}");
    // Another one is taken and told, or refused, or taken because somebody says so.
    let receipt = gateway.json(&["swap", "off", "other.wasm"]);
    assert!(receipt["gate"].is_null() && receipt["outcome"] == "accepted", "{receipt:#}");
    let refused = gateway.cli(&["swap", "strict", "other.wasm"]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "{told}");
    for words in ["it does something else on what the device has done lately: 0 of ", "\"half\"", "--accept-diff"] {
        assert!(told.contains(words), "{told}");
    }
    assert_eq!(gateway.json(&["swaps", "strict"])[0]["outcome"], "rejected");
    let receipt = gateway.json(&["swap", "strict", "other.wasm", "--accept-diff"]);
    let attributes = &receipt["gate"]["compared"]["attributes"];
    assert_eq!(receipt["outcome"], "accepted");
    assert!(attributes["half"]["example"].as_str().unwrap().starts_with("nothing instead of "), "{receipt:#}");
    // Going back is never refused.
    let receipt = gateway.json(&["rollback", "strict"]);
    assert_eq!((&receipt["outcome"], receipt["gate"].is_null()), (&json!("rolled_back"), true), "{receipt:#}");
}

/// Beside the one that runs, on what the device does from then on.
#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_says_what_a_new_version_would_do_and_changes_nothing() {
    let broker = Broker::start();
    let same = fixture_with("echo", "version: 1.0.0", "version: 1.1.0");
    let other = fixture_with("echo", "  half:\n    type: float\n    display_name: Half of the count\n", "");
    let files = [("echo.wasm", fixture("echo")), ("same.wasm", same), ("other.wasm", other)];
    let mut gateway = Gateway::prepare(&files);
    gateway.start(broker.port, "[devices.a]\ndriver = 'echo.wasm'\nconfiguration.main.interval_ms = 50\n");
    gateway.wait_for_samples("a", 5);
    let comparison = gateway.json(&["shadow", "a", "same.wasm", "--for", "2s"]);
    let samples = comparison["samples"].as_u64().unwrap();
    assert!(samples >= 10 && comparison["equal"] == samples, "{comparison:#}");
    let output = gateway.cli(&["shadow", "a", "other.wasm", "--for", "1s", "--json"]);
    let comparison: Json = serde_json::from_slice(&output.stdout).unwrap();
    assert!(!output.status.success() && comparison["attributes"]["half"].is_object(), "{comparison:#}");
    let report = gateway.device("a");
    assert_eq!((&report["version"], &report["crashes"]), (&json!("1.0.0"), &json!(0)), "{report:#}");
    assert_eq!(gateway.json(&["swaps", "a"]), json!([]));
    // What is no driver is told at once.
    let output = gateway.cli(&["shadow", "a", "gateway.toml"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("expected a WebAssembly component"), "{output:?}");
}
