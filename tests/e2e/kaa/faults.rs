//! Every resource with every fault of the stand-in: late, in vain or twice,
//! in the end it works, and nothing happens twice.

use sandgate_standin::kaa::endpoint::TokenState;
use serde_json::json;

use super::offers::offer;
use super::site::{Site, wait_for_log};
use crate::harness::{fixture, fixture_with};

/// What goes wrong, for one extension at a time.
const FAULTS: &[&str] = &[
    "status-late=1300ms,times=2",
    "status-missing,times=2",
    "status-doubled",
    "error=503,times=1",
    "drop-after-puback,times=1",
    "drop-after-puback=kept,times=1",
    "push-before-reply",
    "push-doubled",
];

/// A fault of one extension of one endpoint.
fn of(fault: &str, extension: &str) -> String {
    match fault.split_once(',') {
        Some((what, times)) => format!("{what},ext={extension},token=t1,{times}"),
        None => format!("{fault},ext={extension},token=t1"),
    }
}

/// A gateway whose requests to the clock and for named configurations are on.
async fn site() -> Site {
    let mut site = Site::prepare(&[("echo.wasm", fixture("echo")), ("notes.wasm", fixture("notes"))]).await;
    let echo = super::site::echo("d1", "t1", 20);
    let notes = "[devices.d2]\ndriver = 'notes.wasm'\nendpoints.kaa.token = 't2'\n";
    site.start("check_time = true\nconfigurations = ['main']\npoll_every = '2s'", &format!("{echo}{notes}"));
    site.wait_for_samples("t1", 1).await;
    site
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_are_carried_out_once_whatever_goes_wrong() {
    let site = site().await;
    for (number, fault) in FAULTS.iter().enumerate() {
        site.cloud.cloud.set_fault(&of(fault, "cex")).unwrap();
        let done = site.command("t1", "echo", json!({"text": fault})).await;
        assert_eq!((done.status_code, &done.payload.unwrap()["text"]), (200, &json!(fault)), "{}", site.story());
        site.cloud.cloud.clear_faults();
        assert_eq!(site.gateway.device("d1")["commands"], number + 1, "{fault}: {}", site.story());
    }
    site.wait_for_all_counts("t1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn configurations_are_applied_and_reported_whatever_goes_wrong() {
    let site = site().await;
    for fault in FAULTS {
        site.cloud.cloud.set_fault(&of(fault, "cmx")).unwrap();
        let id = site.put_config("t1", json!({"main": {"label": fault}}));
        site.wait_for_report("t1", "configurations", &id, true).await;
        site.until(fault, || site.samples("t1").iter().find(|sample| sample["label"] == *fault).map(|_| ())).await;
        site.cloud.cloud.clear_faults();
    }
    site.wait_for_all_counts("t1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn software_is_taken_and_reported_whatever_goes_wrong() {
    let site = site().await;
    for (number, fault) in FAULTS.iter().enumerate() {
        site.cloud.cloud.set_fault(&of(fault, "cmx_ota")).unwrap();
        let version = format!("1.0.{}", number + 1);
        let new = fixture_with("echo", "version: 1.0.0", &format!("version: {version}"));
        offer(&site, &version, new, |_| ()).await;
        site.wait_for_report("t1", "software", &version, true).await;
        site.cloud.cloud.clear_faults();
        assert_eq!(site.gateway.device("d1")["version"], version, "{fault}");
    }
    let receipts = site.gateway.json(&["swaps", "d1"]);
    // On a busy machine a late answer may bring an older version back for a moment.
    assert!(receipts.as_array().unwrap().len() >= FAULTS.len(), "{receipts:#}");
    site.wait_for_all_counts("t1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_and_files_get_an_answer_whatever_goes_wrong() {
    let site = site().await;
    for fault in FAULTS {
        for (extension, name, arguments) in [
            ("epmx", "merge", json!({"entries": json!({"floor": fault}).to_string()})),
            ("bcx", "upload", json!({"size": 100})),
        ] {
            site.cloud.cloud.set_fault(&of(fault, extension).replace("t1", "t2")).unwrap();
            // A driver is told what went wrong, and may ask again.
            let mut tries = 0;
            while site.command("t2", name, arguments.clone()).await.status_code != 200 {
                tries += 1;
                assert!(tries < 5, "{extension} with {fault}: {}", site.story());
            }
            site.cloud.cloud.clear_faults();
        }
        assert_eq!(site.cloud.cloud.metadata("t2").unwrap()["floor"], json!(fault));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_suspended_token_holds_up_is_done_when_it_is_good_again() {
    let site = site().await;
    for round in 1..=2 {
        let (text, version) = (format!("round {round}"), format!("1.0.{round}"));
        site.cloud.cloud.set_token("t1", TokenState::Suspended, None).unwrap();
        let refusals = || site.gateway.log().matches("kept, the cloud refused it").count();
        site.until("samples to be refused", || (refusals() >= round).then_some(())).await;
        let payload = Some(json!({ "text": text }));
        let command = site.cloud.cloud.send_command("t1", "echo", payload, 600_000).unwrap();
        let id = site.put_config("t1", json!({"main": {"label": text}}));
        let new = fixture_with("echo", "version: 1.0.0", &format!("version: {version}"));
        offer(&site, &version, new, |_| ()).await;
        site.cloud.cloud.set_token("t1", TokenState::Active, None).unwrap();
        assert_eq!(site.result("t1", &command).await.payload.unwrap()["text"], text.as_str());
        site.wait_for_report("t1", "configurations", &id, true).await;
        site.wait_for_report("t1", "software", &version, true).await;
        site.wait_for_all_counts("t1").await;
        assert_eq!(site.gateway.device("d1")["commands"], round, "{}", site.story());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn properties_arrive_whatever_goes_wrong() {
    for fault in FAULTS {
        let mut site = Site::prepare(&[("echo.wasm", fixture("echo"))]).await;
        site.cloud.cloud.set_fault(&of(fault, "epmx")).unwrap();
        site.start("", &super::site::echo("d1", "t1", 20));
        let model = || site.cloud.cloud.metadata("t1").unwrap_or_default()["model"].clone();
        site.until(fault, || (model() == "echo").then_some(())).await;
        site.wait_for_all_counts("t1").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_cannot_be_asked_costs_a_line_in_the_log() {
    let mut site = Site::prepare(&[("echo.wasm", fixture("echo"))]).await;
    site.cloud.cloud.set_fault("error=404,ext=tsx,times=1").unwrap();
    site.start("check_time = true", &super::site::echo("d1", "t1", 20));
    wait_for_log(&site.gateway, "asking the time: 404");
    site.wait_for_all_counts("t1").await;
    assert!(!site.gateway.log().contains("the clock of this machine is"), "{}", site.gateway.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_default_and_a_named_configuration_together_both_count() {
    let mut site = Site::prepare(&[("echo.wasm", fixture("echo"))]).await;
    let cloud = site.cloud.cloud.clone();
    let default = cloud.put_config("t1", json!({"main": {"label": "both"}})).unwrap();
    let url =
        format!("http://{}/ecr/api/v1/endpoints/t1/app-versions/{}?configName=main", site.cloud.http, super::site::APP);
    let client = reqwest_client();
    let named = client.put(url).body(json!({"interval_ms": 35}).to_string()).send().await.unwrap();
    assert!(named.status().is_success(), "{}", named.status());
    let named: serde_json::Value = serde_json::from_slice(&named.bytes().await.unwrap()).unwrap();
    site.start("configurations = ['main']", &super::site::echo("d1", "t1", 20));
    site.wait_for_report("t1", "configurations", &default, true).await;
    site.wait_for_report("t1", "configurations", named["configId"].as_str().unwrap(), true).await;
    site.until("the label", || site.samples("t1").iter().find(|sample| sample["label"] == "both").map(|_| ())).await;
    // Both are asked for again after a restart, and the driver starts with both.
    site.gateway.kill();
    site.gateway.restart();
    site.wait_for_all_counts("t1").await;
    assert_eq!(site.samples("t1").pop().unwrap()["label"], "both");
}

fn reqwest_client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}
