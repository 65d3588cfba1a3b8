//! What was accepted survives: kills while the broker is away, a stop, a disk
//! that fails and comes back.

use std::collections::BTreeMap;

use serde_json::json;

use crate::harness::{Broker, Gateway, Message, Observer, Proxy, fixture, until};

const DEVICES: &str =
    "[devices.echo1]\ndriver = 'echo.wasm'\nconfiguration.main.interval_ms = 20\nlimits.telemetry = '1000/s'\n";
const CHANNEL: &str = "v1/from/S01/s--echo1/v1/telemetry";

/// The counts that came; alerts go without one when they change.
fn counts(messages: &[Message]) -> impl Iterator<Item = i64> {
    messages.iter().filter_map(|message| message.on(CHANNEL)?["count"].as_i64())
}

/// The counts of the driver's lives: each begins with 1.
fn lives(messages: &[Message]) -> Vec<Vec<i64>> {
    let mut lives: Vec<Vec<i64>> = Vec::new();
    for count in counts(messages) {
        if count == 1 {
            lives.push(Vec::new());
        }
        lives.last_mut().expect("a life begins with 1").push(count);
    }
    lives
}

fn samples(gateway: &Gateway) -> i64 {
    gateway.device("echo1")["samples"].as_i64().unwrap()
}

/// How many samples of a life must have come: without a gap, each once.
fn assert_whole(life: &[i64], accepted: i64) {
    let expected: Vec<i64> = (1..=life.len() as i64).collect();
    assert_eq!(life, expected, "in order, each once");
    assert!(life.len() as i64 >= accepted, "{} of {accepted} samples came", life.len());
}

/// A broker behind a cable, and a gateway that nobody has started.
async fn plugged() -> (Broker, Observer, Proxy, Gateway) {
    let broker = Broker::start();
    let observer = Observer::connect(broker.port).await;
    let proxy = Proxy::to(broker.port).await;
    (broker, observer, proxy, Gateway::prepare(&[("echo.wasm", fixture("echo"))]))
}

/// A broker behind a cable that is out, and a gateway that nobody has started.
async fn unplugged() -> (Broker, Observer, Proxy, Gateway) {
    let all = plugged().await;
    all.2.unplug();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_accepted_before_a_kill_in_an_outage_is_sent_by_the_next_life() {
    let (_broker, observer, proxy, mut gateway) = unplugged().await;
    gateway.start(proxy.port, DEVICES);
    let mut accepted = Vec::new();
    for _ in 0..3 {
        gateway.wait_for_samples("echo1", 50);
        accepted.push(samples(&gateway));
        gateway.kill();
        gateway.restart();
    }
    gateway.wait_for_samples("echo1", 10);
    assert_eq!(observer.mark(), 0);
    proxy.plug();
    // The last life is in the cloud as well: nothing of the ones before comes later.
    until("samples of the fourth life", || {
        let lives = lives(&observer.all());
        (lives.len() == 4 && lives[3].len() > 10).then_some(())
    });
    for (life, accepted) in lives(&observer.all()).iter().zip(&accepted) {
        assert_whole(life, *accepted);
    }
    let waiting = gateway.json(&["outbox"]);
    assert_eq!(waiting["main"]["outbox"]["disk"]["kept"], json!(true));
    let shown = String::from_utf8(gateway.cli(&["outbox"]).stdout).unwrap();
    assert!(shown.contains("on the disk") && shown.contains("/s out"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_while_connected_loses_nothing_and_repeats_little() {
    let (_broker, observer, proxy, mut gateway) = plugged().await;
    gateway.start(proxy.port, &DEVICES.replace("= 20", "= 2"));
    let mut accepted = Vec::new();
    for _ in 0..5 {
        gateway.wait_for_samples("echo1", 200);
        // Something has no proof when it is killed.
        proxy.unplug();
        gateway.wait_for_samples("echo1", samples(&gateway) as u64 + 50);
        accepted.push(samples(&gateway));
        gateway.kill();
        proxy.plug();
        gateway.restart();
    }
    gateway.wait_for_samples("echo1", 10);
    let all = until("samples of the sixth life", || {
        // What is sent a second time belongs to the life before.
        let mut lives: Vec<BTreeMap<i64, usize>> = vec![BTreeMap::new()];
        let mut highest = 0;
        for count in counts(&observer.all()) {
            if count == 1 && highest > 1 {
                lives.push(BTreeMap::new());
                highest = 0;
            }
            highest = highest.max(count);
            *lives.last_mut().unwrap().entry(count).or_default() += 1;
        }
        (lives.len() == 6 && lives[5].len() > 5).then_some(lives)
    });
    for (life, accepted) in all.iter().zip(&accepted) {
        let last = *life.keys().last().unwrap();
        assert!(last >= *accepted && life.len() as i64 == last, "{} of {accepted}, the last is {last}", life.len());
        let repeated: usize = life.values().map(|times| times - 1).sum();
        assert!(repeated <= 2048 + 128, "{repeated}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_without_a_broker_keeps_what_waits_and_says_so() {
    let (_broker, observer, proxy, mut gateway) = unplugged().await;
    gateway.start(proxy.port, DEVICES);
    gateway.wait_for_samples("echo1", 20);
    let accepted = samples(&gateway);
    gateway.terminate();
    gateway.wait_for_log("wait in the outbox; the next start sends them");
    proxy.plug();
    gateway.restart();
    gateway.wait_for_log("of before the start wait to be sent");
    until("the second life", || (lives(&observer.all()).len() == 2).then_some(()));
    assert_whole(&lives(&observer.all())[0], accepted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_while_connected_repeats_nothing_in_the_next_life() {
    let (_broker, observer, proxy, mut gateway) = plugged().await;
    gateway.start(proxy.port, DEVICES);
    for _ in 0..2 {
        gateway.wait_for_samples("echo1", 30);
        gateway.terminate();
        gateway.restart();
    }
    gateway.wait_for_samples("echo1", 10);
    until("the third life", || (lives(&observer.all()).len() == 3).then_some(()));
    lives(&observer.all()).iter().for_each(|life| assert_whole(life, 0));
    assert_eq!(gateway.json(&["outbox"])["main"]["outbox"]["disk"]["kept"], json!(true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_can_wait_until_what_it_sent_survives_a_power_cut() {
    let (_broker, observer, proxy, mut gateway) = plugged().await;
    gateway.start(proxy.port, DEVICES);
    observer.find("the first sample", |m| m.on(CHANNEL)).await;
    let answer = observer.command("s--echo1", json!({"id": "f1", "name": "flush"})).await;
    assert_eq!(answer["state"], json!("completed"), "{answer}");
    let places = std::fs::read_dir(gateway.path("sandgate-state/outbox")).unwrap();
    let folder = places.map(|place| place.unwrap().path()).find(|path| path.is_dir()).unwrap();
    // The folder is gone, and no file can be made in it again.
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::write(&folder, "in the way").unwrap();
    gateway.wait_for_log("the outbox cannot be written to the disk");
    let answer = observer.command("s--echo1", json!({"id": "f2", "name": "flush"})).await;
    assert_eq!(answer["state"], json!("error"), "{answer}");
    // It goes on in memory, and is on the disk again as soon as that can be.
    gateway.wait_for_samples("echo1", samples(&gateway) as u64 + 10);
    std::fs::remove_file(&folder).unwrap();
    gateway.wait_for_log("the outbox is on the disk again");
    let answer = observer.command("s--echo1", json!({"id": "f3", "name": "flush"})).await;
    assert_eq!(answer["state"], json!("completed"), "{answer}");
}
