//! Configurations and software that the cloud offers.

use sandgate_standin::kaa::software::Offer;
use serde_json::{Value as Json, json};

use super::site::{APP, Site, echo, wait_for_log};
use crate::harness::{fixture, fixture_with, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_is_applied_reported_and_kept_over_restarts() {
    let mut site = Site::with_echo("").await;
    for (number, unchanged) in
        ["unchanged=304", "unchanged=object", "unchanged=empty", "strict-bodies"].iter().enumerate()
    {
        site.cloud.cloud.set_fault(unchanged).unwrap();
        let label = format!("label {number}");
        let id = site.put_config("t1", json!({"main": {"label": label}}));
        site.wait_for_report("t1", "configurations", &id, true).await;
        site.until("the label", || {
            site.samples("t1").iter().find(|sample| sample["label"] == label.as_str()).map(|_| ())
        })
        .await;
        // Asked for again at each connect, and nothing new.
        site.cloud.disconnect_all();
        site.wait_for_all_counts("t1").await;
        site.cloud.cloud.clear_faults();
    }
    let before = site.samples("t1").len();
    site.gateway.kill();
    site.gateway.restart();
    site.until("samples after the restart", || {
        let samples = site.samples("t1");
        let last = samples.get(before..).and_then(<[Json]>::last).cloned()?;
        (last["count"].as_u64()? > 2).then_some(last)
    })
    .await;
    let last = site.samples("t1").pop().unwrap();
    assert_eq!(last["label"], "label 3");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_cannot_be_is_refused_with_the_reason() {
    let site = Site::with_echo("").await;
    for (config, expected) in [
        (json!({"main": {"label": "reject"}}), "the driver rejected it: this label is not allowed"),
        (json!({"main": {"interval_ms": 0}}), "interval_ms"),
        (json!({"nonsense": {"a": 1}}), "nonsense"),
        (json!([1, 2]), "expected an object"),
    ] {
        let id = site.put_config("t1", config.clone());
        let report = site.wait_for_report("t1", "configurations", &id, false).await;
        let reason = report["reasonPhrase"].as_str().unwrap();
        assert!(reason.contains(expected), "{config}: {reason}");
    }
    let id = site.put_config("t1", json!({"main": {"label": "good"}}));
    site.wait_for_report("t1", "configurations", &id, true).await;
    site.wait_for_all_counts("t1").await;
}

/// Puts a file into the stand-in's store and offers it.
pub async fn offer(site: &Site, version: &str, file: Vec<u8>, change: impl FnOnce(&mut Json)) {
    let url = format!("http://{}/standin/v1/files/driver.wasm", site.cloud.http);
    let _ = rustls::crypto::ring::default_provider().install_default();
    let stored = reqwest::Client::new().post(url).body(file).send().await.unwrap();
    let stored: Json = serde_json::from_slice(&stored.bytes().await.unwrap()).unwrap();
    let mut specification = json!({"link": stored["link"], "checksum": stored["sha256"]});
    change(&mut specification);
    let offer = json!({ "specification": specification });
    let offer: Offer = serde_json::from_value(offer).unwrap();
    let application = site.cloud.cloud.endpoint("t1").unwrap()["application"].as_str().unwrap().to_owned();
    assert!(APP.starts_with(&application));
    site.cloud.cloud.offer_software(Offer { application, version: version.to_owned(), ..offer }).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn software_whose_trial_the_gateway_did_not_survive_is_refused() {
    let mut site = Site::with_echo("").await;
    let new = fixture_with("echo", "version: 1.0.0", "version: 1.1.0");
    offer(&site, "1.1.0", new, |_| ()).await;
    site.wait_for_report("t1", "software", "1.1.0", true).await;
    site.gateway.kill();
    site.gateway.restart();
    let report = site.wait_for_report("t1", "software", "1.1.0", false).await;
    assert!(report.to_string().contains("the gateway ended while this driver was on trial"), "{report}");
    assert_eq!(site.gateway.device("d1")["version"], "1.0.0");
}

#[tokio::test(flavor = "multi_thread")]
async fn offered_software_replaces_the_driver_without_losing_a_sample() {
    let mut site = Site::prepare(&[("echo.wasm", fixture("echo"))]).await;
    site.start("", &format!("{}health_window = '1ms'\n", echo("d1", "t1", 20)));
    site.wait_for_samples("t1", 1).await;
    site.until("the version that runs", || {
        (site.cloud.cloud.endpoint("t1").ok()?["software"] == "1.0.0").then_some(())
    })
    .await;
    let new = fixture_with("echo", "version: 1.0.0", "version: 1.1.0");
    offer(&site, "1.1.0", new, |_| ()).await;
    site.wait_for_report("t1", "software", "1.1.0", true).await;
    assert_eq!(site.gateway.device("d1")["version"], "1.1.0");
    site.wait_for_all_counts("t1").await;
    // It is the one that runs after a restart, and nothing is downloaded again.
    until("the end of its trial to be written down", || {
        let text = std::fs::read_to_string(site.gateway.path("sandgate-state/devices.jsonl")).unwrap();
        let last: Json = serde_json::from_str(text.lines().last()?).ok()?;
        (last["trial"].is_null() && !last["before"].is_null()).then_some(())
    });
    site.gateway.kill();
    site.gateway.restart();
    site.gateway.wait_for_device("d1", "the new version", |device| (device["version"] == "1.1.0").then_some(()));
    let receipts = site.gateway.json(&["swaps"]);
    assert_eq!(receipts.as_array().unwrap().len(), 1, "{receipts:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn software_that_cannot_be_taken_is_refused_with_the_reason_and_the_old_goes_on() {
    let site = Site::with_echo("max_software_size = '2MiB'").await;
    let good = || fixture_with("echo", "version: 1.0.0", "version: 2.0.0");
    let wrong_sum = |specification: &mut Json| specification["checksum"] = Json::from("0".repeat(32));
    offer(&site, "2.0.0", good(), wrong_sum).await;
    expect_refusal(&site, "2.0.0", "the checksum is wrong: expected 000").await;
    offer(&site, "2.0.1", good(), |_| ()).await;
    expect_refusal(&site, "2.0.1", "expected version 2.0.1, found 2.0.0").await;
    offer(&site, "2.0.2", b"junk".to_vec(), |_| ()).await;
    expect_refusal(&site, "2.0.2", "expected a WebAssembly component").await;
    offer(&site, "2.0.3", vec![0; 3 << 20], |_| ()).await;
    expect_refusal(&site, "2.0.3", "expected at most 2097152 bytes").await;
    offer(&site, "2.0.4", good(), |specification| specification["link"] = Json::from("ftp://x/y")).await;
    expect_refusal(&site, "2.0.4", "expected http or https, found ftp").await;
    offer(&site, "2.0.5", good(), |specification| specification["link"] = Json::from("http://127.0.0.1:1/x")).await;
    expect_refusal(&site, "2.0.5", "cannot connect").await;
    let other = fixture_with("notes", "version: 1.0.0", "version: 2.0.6");
    offer(&site, "2.0.6", other, |_| ()).await;
    expect_refusal(&site, "2.0.6", "expected the driver echo, found notes").await;
    assert_eq!(site.gateway.device("d1")["version"], "1.0.0");
    site.wait_for_all_counts("t1").await;
}

async fn expect_refusal(site: &Site, version: &str, expected: &str) {
    let report = site.wait_for_report("t1", "software", version, false).await;
    let reason = report["reasonPhrase"].as_str().unwrap();
    assert!(reason.contains(expected), "{version}: {reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn software_that_is_rolled_back_is_reported_so_and_not_tried_again() {
    let old = fixture("hostile");
    let mut site = Site::prepare(&[("hostile.wasm", old.clone())]).await;
    site.start("", "[devices.d1]\ndriver = 'hostile.wasm'\nendpoints.kaa.token = 't1'\nhealth_window = '20s'\n");
    site.until("the version that runs", || {
        (site.cloud.cloud.endpoint("t1").ok()?["software"] == "1.0.0").then_some(())
    })
    .await;
    let manifest = sandgate::sandbox::inspect(&old).unwrap().manifest.unwrap();
    let manifest = manifest.replace("version: 1.0.0", "version: 1.1.0");
    let manifest = manifest.replace("default: \"\"", "default: trap in handle-command");
    let new = sandgate::sandbox::embed_manifest(&old, &manifest).unwrap();
    offer(&site, "1.1.0", new, |_| ()).await;
    site.wait_for_report("t1", "software", "1.1.0", true).await;
    // It traps at a command in its health window.
    let result = site.command("t1", "act", json!({})).await;
    assert_eq!(result.status_code, 500);
    let report = site.wait_for_report("t1", "software", "1.1.0", false).await;
    assert!(report["reasonPhrase"].as_str().unwrap().contains("rolled back: "), "{report}");
    site.gateway.wait_for_device("d1", "the old version", |device| (device["version"] == "1.0.0").then_some(()));
    // It is offered again at the next connect, and refused at once.
    site.cloud.disconnect_all();
    wait_for_log(&site.gateway, "connecting again");
    site.until("the gateway to come back", || site.cloud.cloud.is_connected("t1").then_some(())).await;
    assert_eq!(site.gateway.json(&["swaps", "d1"]).as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn software_goes_to_the_device_behind_a_driver_that_can_update_it() {
    let mut site = Site::prepare(&[("updater.wasm", fixture("updater"))]).await;
    site.start("poll_every = '1s'", "[devices.d1]\ndriver = 'updater.wasm'\nendpoints.kaa.token = 't1'\n");
    let runs =
        |site: &Site, version: &str| (site.cloud.cloud.endpoint("t1").ok()?["software"] == version).then_some(());
    site.until("the version of the device", || runs(&site, "fw-1")).await;
    let image: Vec<u8> = (0..300_000_u32).map(|number| (number % 251) as u8).collect();
    let sum: u64 = image.iter().map(|byte| u64::from(*byte)).sum();
    offer(&site, "fw-2", image.clone(), |_| ()).await;
    expect_refusal(&site, "fw-2", "this firmware is for another model").await;
    offer(&site, "fw-3", image, |specification| specification["model"] = Json::from("M1")).await;
    site.wait_for_report("t1", "software", "fw-3", true).await;
    site.until("the sum of what came", || site.samples("t1").iter().find(|sample| sample["sum"] == sum).map(|_| ()))
        .await;
    // It is told again at the next start, and the driver itself is the same.
    site.gateway.kill();
    site.gateway.restart();
    site.gateway.wait_for_device("d1", "the same driver", |device| (device["version"] == "1.0.0").then_some(()));
    let told = || site.cloud.cloud.events().iter().filter(|event| event.text.contains("fw-3 applied")).count();
    site.until("the version again", || (told() >= 2).then_some(())).await;
    assert!(runs(&site, "fw-3").is_some());
    assert!(site.gateway.json(&["swaps"]).as_array().unwrap().is_empty());
}
