//! Trouble on the way to the broker: nothing that was accepted is lost, nobody
//! is accused, and afterwards all is as before.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use rumqttc::Packet;

use crate::fault_proxy::{Act, FaultProxy, Plan, Way, is_sample};
use crate::harness::{Broker, Gateway, Observer, fixture, until};

const DEVICES: usize = 5;

/// A gateway with some devices behind a proxy.
async fn site(plan: Plan) -> (Broker, Observer, FaultProxy, Gateway) {
    let broker = Broker::start();
    let observer = Observer::connect(broker.port).await;
    let proxy = FaultProxy::to(broker.port, plan).await;
    // What stalls is noticed by the second ping.
    let mut devices = "keep_alive = '2s'\n".to_owned();
    for number in 0..DEVICES {
        let _ = write!(
            devices,
            "[devices.d{number}]\ndriver = 'echo.wasm'\nconfiguration.main.interval_ms = 50\n\
             limits.telemetry = '1000/s'\n"
        );
    }
    let mut gateway = Gateway::prepare(&[("echo.wasm", fixture("echo"))]);
    gateway.start(proxy.port, &devices);
    (broker, observer, proxy, gateway)
}

/// The samples of each device that arrived, by their counters.
fn arrived(observer: &Observer) -> BTreeMap<usize, Vec<u64>> {
    let mut all: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
    for message in observer.all() {
        for number in 0..DEVICES {
            if let Some(sample) = message.on(&format!("v1/from/S01/s--d{number}/v1/telemetry")) {
                all.entry(number).or_default().extend(sample["count"].as_u64());
            }
        }
    }
    all
}

/// Waits until every sample that was accepted by now has arrived.
fn all_arrive(gateway: &Gateway, observer: &Observer) {
    let accepted: Vec<u64> = (0..DEVICES)
        .map(|number| gateway.device(&format!("d{number}"))["samples"].as_u64().unwrap_or_default())
        .collect();
    assert!(accepted.iter().all(|samples| *samples > 0));
    until("all samples that were accepted", || {
        let arrived = arrived(observer);
        let is_here = |(number, samples): (usize, &u64)| {
            let here = arrived.get(&number)?;
            (1..=*samples).all(|count| here.contains(&count)).then_some(())
        };
        accepted.iter().enumerate().all(|place| is_here(place).is_some()).then_some(())
    });
    let session = gateway.json(&["devices"])["sessions"]["main"].clone();
    assert_eq!((&session["rejected"], &session["dropped"]), (&0.into(), &0.into()), "{session}");
}

/// Waits until this number of connections was tried.
fn wait_for_losses(gateway: &Gateway, losses: usize) {
    until("connections to be lost", || (gateway.log().matches("connecting again in").count() >= losses).then_some(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_way_that_ends_at_every_sample_accuses_no_message_and_loses_none() {
    for act in [Act::Close, Act::ResetAfter(Duration::from_millis(200))] {
        let plan = move |way, packet: &Packet| if way == Way::Up && is_sample(packet) { act } else { Act::Pass };
        let (_broker, observer, proxy, gateway) = site(Box::new(plan)).await;
        wait_for_losses(&gateway, 8);
        proxy.heal();
        all_arrive(&gateway, &observer);
        let log = gateway.log();
        assert!(!log.contains("held back") && !log.contains("dropped"), "{act:?}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_way_that_closes_at_one_device_only_loses_nothing_of_any() {
    let is_its = |packet: &Packet| matches!(packet, Packet::Publish(publish) if publish.topic.contains("--d3/"));
    let plan = move |way, packet: &Packet| if way == Way::Up && is_its(packet) { Act::Close } else { Act::Pass };
    let (_broker, observer, proxy, gateway) = site(Box::new(plan)).await;
    gateway.wait_for_log("the broker closes the connection at it again and again");
    let log = gateway.log();
    let mut blamed = log.lines().filter(|line| line.contains("the broker closes the connection at"));
    assert!(blamed.all(|line| line.contains("device=\"d3\"")), "{log}");
    // The others go on meanwhile.
    let before = arrived(&observer).get(&0).map_or(0, Vec::len);
    until("samples of another device", || (arrived(&observer).get(&0)?.len() > before + 10).then_some(()));
    assert!(!arrived(&observer).contains_key(&3));
    proxy.heal();
    all_arrive(&gateway, &observer);
}

/// All that a way can do to a packet, now and then.
fn at_random(seed: u64) -> Plan {
    eprintln!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    Box::new(move |way, packet| match (random.u32(..1000), way, packet) {
        (0..8, Way::Up, Packet::Publish(_)) => Act::Close,
        (8..14, _, _) => Act::ResetAfter(Duration::from_millis(random.u64(..50))),
        (14..18, Way::Down, _) => Act::Garble,
        (18..24, Way::Down, Packet::PubAck(_)) => Act::Twice,
        (24..27, Way::Up, Packet::Publish(_)) => Act::Swallow,
        (27..28, _, _) => Act::Stall,
        (0..100, Way::Down, Packet::SubAck(_)) => Act::Refuse,
        _ => Act::Pass,
    })
}

/// SANDGATE_LOSSES makes it longer, SANDGATE_SEED another one.
#[tokio::test(flavor = "multi_thread")]
async fn a_way_that_stalls_lies_and_resets_at_random_loses_nothing() {
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let (_broker, observer, proxy, gateway) = site(at_random(number("SANDGATE_SEED", 7))).await;
    wait_for_losses(&gateway, number("SANDGATE_LOSSES", 12) as usize);
    proxy.heal();
    all_arrive(&gateway, &observer);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_subscription_is_asked_for_again() {
    let plan = |_, packet: &Packet| if matches!(packet, Packet::SubAck(_)) { Act::Refuse } else { Act::Pass };
    let (_broker, _observer, proxy, gateway) = site(Box::new(plan)).await;
    gateway.wait_for_log("the broker refused to subscribe to v1/to/S01/");
    let again: std::sync::Arc<std::sync::atomic::AtomicUsize> = std::sync::Arc::default();
    let count = std::sync::Arc::clone(&again);
    proxy.follow(Box::new(move |way, packet| {
        if way == Way::Up && matches!(packet, Packet::Subscribe(_)) {
            count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
        Act::Pass
    }));
    until("the next try", || (again.load(std::sync::atomic::Ordering::SeqCst) > 0).then_some(()));
}
