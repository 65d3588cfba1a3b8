//! Other people's brokers: what matters most holds on each of them.

use std::time::Duration;

use sandgate_test_needs::needs;
use serde_json::json;

use crate::field::Field;
use crate::harness::{Broker, Gateway, Observer, Proxy, fixture, until};

/// What a broker cannot do.
#[derive(Default)]
struct Lacks {
    /// It forgets what it kept for a client that was killed.
    sessions: bool,
    /// It takes nobody without a name and a password.
    strangers: bool,
}

/// Samples go up and commands down; an outage, a kill and a stop lose nothing.
async fn all_is_well_on(broker: Broker, lacks: Lacks) {
    let credentials = ("gateway@localhost", "any");
    let observer = Observer::connect_as(broker.port, lacks.strangers.then_some(credentials)).await;
    let proxy = Proxy::to(broker.port).await;
    let field = Field::start(Duration::ZERO).await;
    let mut gateway = Gateway::prepare(&[("actuator.wasm", fixture("actuator"))]);
    let (name, password) = credentials;
    let keys = match lacks.strangers {
        true => format!("username = '{name}'\npassword = {{ value = '{password}' }}\n"),
        false => String::new(),
    };
    gateway.start(proxy.port, &format!("keep_alive = '2s'\n{keys}{}", field.device("d0", 10)));
    observer.find("the first sample", |message| message.on("v1/from/S01/s--d0/v1/telemetry")).await;
    let answer = observer.command("s--d0", json!({"id": "c1", "name": "act"})).await;
    assert_eq!(answer["state"], "completed", "{answer}");
    let accepted = |more: usize| {
        let before = field.noted().accepted.len();
        until("accepted samples", || (field.noted().accepted.len() > before + more).then_some(()));
    };

    // The way is cut, and while it is the gateway is killed.
    proxy.unplug();
    accepted(50);
    gateway.kill();
    gateway.restart();
    accepted(50);
    proxy.plug();
    if lacks.sessions {
        // What is sent before it listens is gone.
        until("the gateway to be connected", || {
            (gateway.json(&["devices"])["sessions"]["main"]["connected"] == true).then_some(())
        });
    }
    let answer = observer.command("s--d0", json!({"id": "c2", "name": "act"})).await;
    assert_eq!(answer["state"], "completed", "{answer}");
    // Killed while all goes well, with a command on its way.
    gateway.kill();
    if !lacks.sessions {
        observer.publish("v1/to/S01/s--d0/v1/command/requests", &json!({"id": "c3", "name": "act"}).to_string()).await;
    }
    gateway.restart();
    if !lacks.sessions {
        until("the command that came meanwhile", || field.noted().runs.contains_key("c3").then_some(()));
    }
    accepted(50);
    gateway.terminate();
    let accepted = field.noted().accepted.clone();
    until("all that was accepted", || {
        let all = observer.all();
        let mut numbers =
            all.iter().filter_map(|message| message.on("v1/from/S01/s--d0/v1/telemetry")?["number"].as_i64());
        let arrived = numbers.by_ref().collect::<std::collections::BTreeSet<_>>();
        accepted.is_subset(&arrived).then_some(())
    });
    assert!(field.noted().runs.values().all(|times| *times == 1), "{:?}", field.noted().runs);
    let log = gateway.log();
    assert!(!log.contains("held back") && !log.contains("dropped") && !log.contains("ERROR"), "{log}");
}

#[needs("mosquitto")]
#[tokio::test(flavor = "multi_thread")]
async fn all_is_well_on_mosquitto() {
    all_is_well_on(Broker::mosquitto("allow_anonymous true", &[]), Lacks::default()).await;
}

#[needs("nats-server")]
#[tokio::test(flavor = "multi_thread")]
async fn all_is_well_on_nats() {
    all_is_well_on(Broker::nats(), Lacks::default()).await;
}

#[needs("rabbitmq-server")]
#[tokio::test(flavor = "multi_thread")]
async fn all_is_well_on_rabbitmq() {
    all_is_well_on(Broker::rabbitmq(), Lacks::default()).await;
}

#[needs("ejabberdctl")]
#[tokio::test(flavor = "multi_thread")]
async fn all_is_well_on_ejabberd() {
    all_is_well_on(Broker::ejabberd(), Lacks { strangers: true, ..Lacks::default() }).await;
}

/// It keeps nothing for anybody, as a cloud may do.
#[tokio::test(flavor = "multi_thread")]
async fn all_is_well_on_the_stand_in() {
    all_is_well_on(Broker::start(), Lacks { sessions: true, ..Lacks::default() }).await;
}
