//! What a cloud offers while something else happens to the device: a fresh
//! start, a swap, a roll-back, a crash.

use serde_json::json;

use super::offers::offer;
use super::site::{Site, echo, wait_for_log};
use crate::harness::{Gateway, fixture, fixture_with};

/// The driver `hostile` in a version that does this by default.
fn hostile(version: &str, act: &str) -> Vec<u8> {
    let component = fixture("hostile");
    let manifest = sandgate::sandbox::inspect(&component).unwrap().manifest.unwrap();
    let manifest = manifest.replace("version: 1.0.0", &format!("version: {version}"));
    let manifest = manifest.replace("default: \"\"", &format!("default: \"{act}\""));
    sandgate::sandbox::embed_manifest(&component, &manifest).unwrap()
}

fn wait_for_version(gateway: &Gateway, version: &str) {
    gateway.wait_for_device("d1", version, |device| (device["version"] == version).then_some(()));
}

const HOSTILE: &str = "[devices.d1]\ndriver = 'hostile.wasm'\nendpoints.kaa.token = 't1'\nhealth_window = '1h'\nlimits.telemetry = '1000/s'\n";

/// A site whose device was just swapped to version 1.1.0, which traps at a command.
async fn swapped() -> Site {
    let mut site = Site::prepare(&[("hostile.wasm", hostile("1.0.0", ""))]).await;
    site.start("", HOSTILE);
    site.gateway.wait_for_device("d1", "it to run", |device| (device["phase"] == "running").then_some(()));
    site.gateway.write("new.wasm", &hostile("1.1.0", "trap in handle-command"));
    assert_eq!(site.gateway.json(&["swap", "d1", "new.wasm"])["outcome"], "accepted");
    site
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_comes_during_a_fresh_start_is_what_the_device_runs_with() {
    let site = Site::with_echo("").await;
    for round in 1..=4 {
        // A driver that is not compiled yet, and another limit: not a swap but a fresh start.
        let (name, version, label) = (format!("{round}.wasm"), format!("1.{round}.0"), format!("label {round}"));
        site.gateway.write(&name, &fixture_with("echo", "version: 1.0.0", &format!("version: {version}")));
        let device = echo("d1", "t1", 20).replace("echo.wasm", &name).replace("1000/s", &format!("{}/s", 900 + round));
        site.configure("", &device);
        let begun = || site.gateway.log().matches("configuration: start device d1").count();
        site.until("the fresh start to begin", || (begun() >= round).then_some(())).await;
        let id = site.put_config("t1", json!({"main": {"label": label}}));
        site.wait_for_report("t1", "configurations", &id, true).await;
        wait_for_version(&site.gateway, &version);
        let before = site.samples("t1").len();
        let samples = site.wait_for_samples("t1", before + 20).await;
        assert_eq!(samples.last().unwrap()["label"], label.as_str(), "{}", site.gateway.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn software_that_comes_during_a_fresh_start_is_taken_after_it() {
    let site = Site::with_echo("").await;
    for round in 1..=6 {
        let version = format!("1.{round}.0");
        let device = echo("d1", "t1", 20).replace("1000/s", &format!("{}/s", 900 + round));
        site.configure("", &device);
        offer(&site, &version, fixture_with("echo", "version: 1.0.0", &format!("version: {version}")), |_| ()).await;
        site.wait_for_report("t1", "software", &version, true).await;
        wait_for_version(&site.gateway, &version);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_does_not_fit_a_new_driver_is_left_out_and_refused() {
    let mut site = Site::prepare(&[("echo.wasm", fixture("echo")), ("updater.wasm", fixture("updater"))]).await;
    site.start("poll_every = '1s'", &echo("d1", "t1", 20));
    let id = site.put_config("t1", json!({"main": {"label": "a"}}));
    site.wait_for_report("t1", "configurations", &id, true).await;
    site.configure("poll_every = '1s'", "[devices.d1]\ndriver = 'updater.wasm'\nendpoints.kaa.token = 't1'\n");
    wait_for_log(&site.gateway, "does not fit the configuration of the cloud, which is forgotten: main");
    let report = site.wait_for_report("t1", "configurations", &id, false).await;
    assert!(report["reasonPhrase"].as_str().unwrap().contains("main"), "{report}");
    assert_eq!(site.gateway.device("d1")["phase"], "running");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_is_applied_when_the_driver_runs_with_it_and_cures_one_that_does_not() {
    let mut site = Site::prepare(&[("hostile.wasm", hostile("1.0.0", "trap in start"))]).await;
    site.start("", HOSTILE);
    site.gateway.wait_for_device("d1", "a wait", |device| (device["phase"] == "restarting").then_some(()));
    let id = site.put_config("t1", json!({"main": {"act": "trap in start", "peer": "a"}}));
    let report = site.wait_for_report("t1", "configurations", &id, false).await;
    let reason = report["reasonPhrase"].as_str().unwrap();
    assert!(reason.contains("the driver is not running: trapped in start"), "{reason}");
    let id = site.put_config("t1", json!({"main": {"act": ""}}));
    site.wait_for_report("t1", "configurations", &id, true).await;
    site.gateway.wait_for_device("d1", "it to run", |device| (device["phase"] == "running").then_some(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_is_rolled_back_gets_what_was_configured_meanwhile() {
    let site = swapped().await;
    let id = site.put_config("t1", json!({"main": {"peer": "a"}}));
    site.wait_for_report("t1", "configurations", &id, true).await;
    assert_eq!(site.command("t1", "act", json!({})).await.status_code, 500);
    wait_for_version(&site.gateway, "1.0.0");
    let by_old = |line: &str| line.contains("configuration applied") && line.contains("hostile 1.0.0");
    site.until("the old driver to get it as well", || site.gateway.log().lines().any(by_old).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_swap_does_not_end_the_watch_over_the_driver_before() {
    let site = swapped().await;
    site.gateway.write("bad.wasm", &hostile("1.2.0", "trap in start"));
    assert_eq!(site.gateway.json(&["swap", "d1", "bad.wasm"])["outcome"], "rejected");
    assert_eq!(site.gateway.device("d1")["watching"], true);
    assert_eq!(site.command("t1", "act", json!({})).await.status_code, 500);
    wait_for_version(&site.gateway, "1.0.0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_is_rolled_back_updates_its_device_as_before() {
    let mut site = Site::prepare(&[("updater.wasm", fixture("updater"))]).await;
    let device = "[devices.d1]\ndriver = 'updater.wasm'\nendpoints.kaa.token = 't1'\nhealth_window = '1h'\n";
    site.start("poll_every = '1s'", device);
    let runs = |version: &str| (site.cloud.cloud.endpoint("t1").ok()?["software"] == version).then_some(());
    site.until("the version of the device", || runs("fw-1")).await;
    site.gateway.write("new.wasm", &hostile("9.0.0", "trap in on-timer"));
    assert_eq!(site.gateway.json(&["swap", "d1", "new.wasm"])["outcome"], "accepted");
    wait_for_version(&site.gateway, "1.0.0");
    site.until("the version of the device again", || runs("fw-1")).await;
    offer(&site, "fw-2", vec![7; 1000], |specification| specification["model"] = "M1".into()).await;
    site.wait_for_report("t1", "software", "fw-2", true).await;
}
