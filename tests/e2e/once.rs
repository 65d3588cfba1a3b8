//! Commands run once: whenever the gateway is killed, however late they come.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sandgate_test_needs::needs;
use serde_json::{Value as Json, json};

use crate::field::Field;
use crate::harness::{Broker, Gateway, Observer, PATIENCE, fixture, until};

/// The answers to each command so far, by id.
pub fn answers(observer: &Observer) -> BTreeMap<String, Vec<Json>> {
    let mut answers: BTreeMap<String, Vec<Json>> = BTreeMap::new();
    for message in observer.all().iter().filter(|message| message.topic.ends_with("/command/responses")) {
        let answer = message.json();
        if let (Some(id), true) = (answer["id"].as_str(), answer["state"] != "log") {
            answers.entry(id.to_owned()).or_default().push(answer);
        }
    }
    answers
}

#[needs("mosquitto")]
#[tokio::test(flavor = "multi_thread")]
async fn commands_run_once_and_are_answered_whenever_the_gateway_is_killed() {
    const LIVES: u64 = 12;
    let broker = Broker::mosquitto("allow_anonymous true", &[]);
    let observer = Observer::connect(broker.port).await;
    let field = Field::start(Duration::from_millis(3)).await;
    let mut gateway = Gateway::prepare(&[("actuator.wasm", fixture("actuator"))]);
    gateway.start(broker.port, &["a1", "a2", "a3"].map(|name| field.device(name, 0)).concat());
    gateway.wait_for_log("connected to");
    let mut number = 0;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for life in 0..LIVES {
        // Some come before the kill, some while nobody is there, some while the next life starts.
        let kill_at = random.u64(0..60);
        for place in 0..60 {
            if place == kill_at {
                gateway.kill();
            }
            number += 1;
            let name = if random.bool() { "act" } else { "act_again" };
            let request = json!({"id": format!("{name}-{number}"), "name": name});
            let device = ["a1", "a2", "a3"][random.usize(..3)];
            observer.publish(&format!("v1/to/S01/s--{device}/v1/command/requests"), &request.to_string()).await;
            tokio::time::sleep(Duration::from_micros(random.u64(..2000))).await;
        }
        gateway.restart();
        if life % 2 == 0 {
            until("answers", || (answers(&observer).len() as u64 > number - 30).then_some(()));
        }
    }
    until("all answers", || (answers(&observer).len() as u64 == number).then_some(()));
    let (runs, answers) = (field.noted().runs.clone(), answers(&observer));
    for (id, answers) in &answers {
        let times = runs.get(id).copied().unwrap_or_default();
        assert!(times <= 1 || id.starts_with("act_again"), "{id} ran {times} times");
        // It may be sent again, and never differently.
        assert!(answers.iter().all(|answer| answer["state"] == answers[0]["state"]), "{id}: {answers:?}");
        assert!(times > 0 || answers[0]["state"] == "error", "{id} did not run: {answers:?}");
        let is_interrupted = answers[0]["payload"]["message"].as_str().is_some_and(|text| text.contains("interrupted"));
        assert!(!is_interrupted || !id.starts_with("act_again"), "{id} may run again: {answers:?}");
        assert!(answers[0]["state"] == "completed" || is_interrupted, "{id}: {answers:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_waited_too_long_is_refused_and_not_run_late() {
    let broker = Broker::start();
    let observer = Observer::connect(broker.port).await;
    let field = Field::start(Duration::from_millis(1500)).await;
    let mut gateway = Gateway::prepare(&[("actuator.wasm", fixture("actuator"))]);
    gateway.start(broker.port, &field.device("a1", 0));
    gateway.wait_for_log("connected to");
    for name in ["act", "act_soon"] {
        let request = json!({"id": name, "name": name});
        observer.publish("v1/to/S01/s--a1/v1/command/requests", &request.to_string()).await;
    }
    let answers = until("both answers", || Some(answers(&observer)).filter(|answers| answers.len() == 2));
    assert_eq!(answers["act"][0]["state"], "completed");
    let refused = &answers["act_soon"][0]["payload"];
    assert_eq!(refused["code"], "timed-out");
    assert!(refused["message"].as_str().unwrap().starts_with("not carried out: it has waited for"), "{refused}");
    assert_eq!(field.noted().runs.len(), 1);
}

/// Without a long absence the broker keeps commands for the gateway; after one
/// it is told to forget them.
#[needs("mosquitto")]
#[tokio::test(flavor = "multi_thread")]
async fn commands_that_come_while_the_gateway_is_away_run_after_a_short_absence_only() {
    let broker = Broker::mosquitto("allow_anonymous true", &[]);
    let observer = Observer::connect(broker.port).await;
    let field = Field::start(Duration::ZERO).await;
    let mut gateway = Gateway::prepare(&[("actuator.wasm", fixture("actuator"))]);
    let send = async |id: &str| {
        let request = json!({"id": id, "name": "act"});
        observer.publish("v1/to/S01/s--a1/v1/command/requests", &request.to_string()).await;
    };
    gateway.start(broker.port, &field.device("a1", 0));
    gateway.wait_for_log("connected to");
    gateway.terminate();
    send("soon").await;
    gateway.restart();
    until("the command that came meanwhile", || field.noted().runs.contains_key("soon").then_some(()));
    gateway.terminate();
    send("late").await;
    let folder = gateway.path("sandgate-state/outbox");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let contact = files.into_iter().find(|path| path.extension().is_some_and(|end| end == "contact")).unwrap();
    let text = std::fs::read_to_string(&contact).unwrap();
    let (heard, boot) = text.split_once(' ').unwrap();
    std::fs::write(&contact, format!("{} {boot}", heard.parse::<u64>().unwrap() - 61_000)).unwrap();
    gateway.restart();
    // Those that come before it has connected are gone with the late one.
    let (begin, mut number) = (Instant::now(), 0);
    while !field.noted().runs.keys().any(|id| id.starts_with("new")) {
        assert!(begin.elapsed() < PATIENCE, "no new command runs");
        send(&format!("new-{number}")).await;
        number += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!field.noted().runs.contains_key("late"), "{:?}", field.noted().runs);
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_that_wait_when_the_gateway_is_killed_run_in_their_order() {
    let broker = Broker::start();
    let observer = Observer::connect(broker.port).await;
    let field = Field::start(Duration::from_secs(2)).await;
    let mut gateway = Gateway::prepare(&[("actuator.wasm", fixture("actuator"))]);
    gateway.start(broker.port, &field.device("a1", 0));
    gateway.wait_for_log("connected to");
    let ids = ["first", "d", "b", "c", "a"];
    for id in ids {
        let request = json!({"id": id, "name": "act"});
        observer.publish("v1/to/S01/s--a1/v1/command/requests", &request.to_string()).await;
    }
    until("all to be noted", || {
        let text = std::fs::read_to_string(gateway.path("sandgate-state/commands.jsonl")).unwrap_or_default();
        let is_noted = |id: &&str| text.contains(&format!("\"id\":\"{id}\""));
        (ids.iter().all(is_noted) && field.noted().order == ["first"]).then_some(())
    });
    gateway.kill();
    gateway.restart();
    until("all of them", || (field.noted().order.len() == ids.len()).then_some(()));
    assert_eq!(field.noted().order, ids);
}
