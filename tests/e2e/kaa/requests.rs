//! Commands, metadata and files.

use sandgate_standin::kaa::endpoint::TokenState;
use serde_json::json;

use super::site::{APP, Site, echo, get};
use crate::harness::fixture;

#[tokio::test(flavor = "multi_thread")]
async fn commands_are_answered_with_codes_as_of_http() {
    let site = Site::with_echo("").await;
    let done = site.command("t1", "echo", json!({"text": "hello", "number": 5})).await;
    assert_eq!((done.status_code, done.reason_phrase.as_str()), (200, "OK"));
    assert_eq!(done.payload.unwrap(), json!({"text": "hello", "number": 5}));
    let wrong = site.command("t1", "echo", json!({"text": "hello", "number": 500})).await;
    assert_eq!(wrong.status_code, 400);
    assert!(wrong.reason_phrase.contains("number"), "{}", wrong.reason_phrase);
    let busy = site.command("t1", "refuse", json!({})).await;
    assert_eq!((busy.status_code, busy.reason_phrase.as_str()), (503, "not today"));
    assert_eq!(busy.payload.unwrap(), json!({"code": "busy", "message": "not today"}));
    let unknown = site.command("t1", "fly", json!({})).await;
    assert_eq!(unknown.status_code, 501);
    let own = site.command("gw", "list_devices", json!({})).await;
    assert_eq!(own.payload.unwrap()["devices"][0]["id"], "d1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_waited_is_found_at_the_attach_and_none_runs_twice() {
    let mut site = Site::prepare(&[("echo.wasm", fixture("echo"))]).await;
    let cloud = site.cloud.cloud.clone();
    cloud.set_token("t1", TokenState::Active, Some(APP)).unwrap();
    let waiting = cloud.send_command("t1", "echo", Some(json!({"text": "early"})), 600_000).unwrap();
    for fault in ["push-doubled", "push-before-reply", "status-doubled,ext=cex"] {
        cloud.set_fault(fault).unwrap();
    }
    site.start("", &echo("d1", "t1", 20));
    assert_eq!(site.result("t1", &waiting).await.payload.unwrap()["text"], "early");
    for number in 0..5 {
        let done = site.command("t1", "echo", json!({"text": number.to_string()})).await;
        assert_eq!(done.payload.unwrap()["text"], number.to_string());
    }
    let commands = site.gateway.device("d1")["commands"].as_u64();
    assert_eq!(commands, Some(6), "{}", site.story());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_was_lost_is_sent_again_also_after_a_kill() {
    let mut site = Site::with_echo("").await;
    let cloud = site.cloud.cloud.clone();
    for fault in [
        "drop-after-puback,ext=cex,token=t1,times=1",
        "status-missing,ext=cex,times=2",
        "error=503,ext=cex,token=t1,times=1",
    ] {
        cloud.set_fault(fault).unwrap();
        let done = site.command("t1", "count", json!({})).await;
        assert_eq!(done.status_code, 200, "{fault}");
        cloud.clear_faults();
    }
    // No result gets through; then the gateway is killed with it in its memory.
    cloud.set_fault("error=503,ext=cex,token=t1").unwrap();
    let before = site.gateway.device("d1")["commands"].as_u64().unwrap();
    let command = cloud.send_command("t1", "store", Some(json!({})), 600_000).unwrap();
    site.gateway.wait_for_device("d1", "the command", |device| (device["commands"].as_u64()? > before).then_some(()));
    site.gateway.kill();
    cloud.clear_faults();
    site.gateway.restart();
    assert_eq!(site.result("t1", &command).await.status_code, 200);
    assert_eq!(site.gateway.device("d1")["commands"], 0, "it ran again: {}", site.gateway.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_can_be_listed_read_replaced_merged_and_deleted() {
    let mut site = Site::prepare(&[("notes.wasm", fixture("notes"))]).await;
    site.start("", "[devices.d1]\ndriver = 'notes.wasm'\nendpoints.kaa.token = 't1'\n");
    let call = async |name: &str, arguments| site.command("t1", name, arguments).await;
    let entries = json!({"name": "Sensor 1", "floor": 3, "tags": ["a", "b"]}).to_string();
    assert_eq!(call("replace", json!({ "entries": entries })).await.status_code, 200);
    assert_eq!(site.cloud.cloud.metadata("t1").unwrap(), json!({"name": "Sensor 1", "floor": 3, "tags": ["a", "b"]}));
    assert_eq!(call("merge", json!({"entries": json!({"floor": 4}).to_string()})).await.status_code, 200);
    let all = call("get", json!({})).await.payload.unwrap();
    assert_eq!(all, json!({"name": "Sensor 1", "floor": 4, "tags": ["a", "b"]}));
    assert_eq!(call("get", json!({"keys": "floor,nothing"})).await.payload.unwrap(), json!({"floor": 4}));
    assert_eq!(call("delete", json!({"keys": "tags"})).await.status_code, 200);
    let keys = call("keys", json!({})).await.payload.unwrap();
    let mut keys: Vec<_> = keys["keys"].as_str().unwrap().split(',').map(str::to_owned).collect();
    keys.sort();
    assert_eq!(keys, ["floor", "name"]);
    for (name, arguments, expected) in [
        (
            "get",
            json!({"keys": "a b"}),
            "InvalidArgument(\"key \\\"a b\\\": expected 1 to 256 letters, digits and _\")",
        ),
        ("delete", json!({}), "InvalidArgument(\"expected at least one key\")"),
        ("merge", json!({"entries": "{}"}), "InvalidArgument(\"expected at least one entry\")"),
    ] {
        let refused = call(name, arguments).await;
        assert!(refused.reason_phrase.contains(expected), "{name}: {}", refused.reason_phrase);
    }
    site.cloud.cloud.set_fault("error=403,ext=epmx,times=1").unwrap();
    let refused = call("keys", json!({})).await;
    assert!(refused.reason_phrase.contains("Refused(\"403"), "{}", refused.reason_phrase);
    site.cloud.cloud.set_fault("status-missing,ext=epmx,times=1").unwrap();
    let late = call("keys", json!({})).await;
    assert!(late.reason_phrase.contains("TimedOut"), "{}", late.reason_phrase);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_uploaded_with_a_token_that_is_replaced_when_it_is_refused() {
    let mut site = Site::prepare(&[("notes.wasm", fixture("notes"))]).await;
    let devices = "[devices.d1]\ndriver = 'notes.wasm'\nendpoints.kaa.token = 't1'\n";
    site.start("poll_every = '1s'", devices);
    let first = site.command("t1", "upload", json!({"size": 1000})).await;
    assert_eq!(first.status_code, 200, "{}", first.reason_phrase);
    let place = first.payload.unwrap()["place"].as_str().unwrap().to_owned();
    assert_eq!(get(&place).await, vec![b'x'; 1000]);
    // Whatever the driver calls it: the API takes bytes.
    assert!(site.story().contains("of 1000 bytes, application/octet-stream"), "{}", site.story());
    // A suspension ends the cached token: the store refuses it, and a fresh one is asked for.
    let cloud = site.cloud.cloud.clone();
    cloud.set_token("t1", TokenState::Suspended, None).unwrap();
    cloud.set_token("t1", TokenState::Active, None).unwrap();
    site.until("the gateway to come back", || cloud.is_connected("t1").then_some(())).await;
    let second = site.command("t1", "upload", json!({"size": 10})).await;
    assert_eq!(second.status_code, 200, "{}: {}", second.reason_phrase, site.story());
    let again = second.payload.unwrap()["place"].as_str().unwrap().to_owned();
    assert_ne!(again, place);
    assert_eq!(get(&again).await, vec![b'x'; 10]);
    let large = site.command("t1", "upload", json!({"size": 5 << 20})).await;
    assert!(large.reason_phrase.contains("TooLarge(4194304)"), "{}", large.reason_phrase);
}
