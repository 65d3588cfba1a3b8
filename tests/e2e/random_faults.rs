//! Kills, cuts, swaps, restarts and torn files at random, from a seed: what was
//! accepted arrives, in order, and commands run once and are answered.
//!
//! `SANDGATE_KILLS=1000 SANDGATE_SEED=1 cargo test --release -p sandgate --test e2e -- --nocapture random_faults`
//! does it for longer and otherwise.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::time::{Duration, Instant};

use sandgate_test_needs::needs;
use serde_json::json;

use crate::field::Field;
use crate::harness::{Broker, Gateway, Observer, Proxy, fixture, fixture_with, until};
use crate::once::answers;

const KILLS: usize = 100;
const DEVICES: [&str; 3] = ["d0", "d1", "d2"];

/// What the gateway, its devices and its cloud are made of.
struct Site {
    random: fastrand::Rng,
    observer: Observer,
    proxy: Proxy,
    gateway: Gateway,
    fields: Vec<Field>,
    versions: [Vec<u8>; 2],
    commands: usize,
    is_plugged: bool,
    kills: usize,
    cuts: usize,
    swaps: usize,
}

impl Site {
    async fn act(&mut self) {
        match self.random.u32(..12) {
            0..3 => self.kill(),
            3..6 if self.is_plugged => {
                self.proxy.unplug();
                (self.is_plugged, self.cuts) = (false, self.cuts + 1);
            }
            3..7 => {
                self.proxy.plug();
                self.is_plugged = true;
            }
            7 => {
                self.swaps += 1;
                let version = &self.versions[self.random.usize(..2)];
                self.gateway.write("actuator.wasm", version);
            }
            8 => {
                // It may be on its way up, and then it says so.
                self.gateway.cli(&["restart", DEVICES[self.random.usize(..3)]]);
            }
            _ => self.send_commands().await,
        }
    }

    async fn send_commands(&mut self) {
        for _ in 0..self.random.usize(1..5) {
            self.commands += 1;
            let request = json!({"id": format!("c{}", self.commands), "name": "act"});
            let topic = format!("v1/to/S01/s--{}/v1/command/requests", DEVICES[self.random.usize(..3)]);
            self.observer.publish(&topic, &request.to_string()).await;
        }
    }

    /// Kills the gateway, tears a file at times, and starts it again.
    fn kill(&mut self) {
        assert!(self.gateway.is_alive(), "the gateway ended by itself");
        self.gateway.kill();
        self.kills += 1;
        let torn = ["commands.jsonl", "devices.jsonl", "swaps.jsonl"][self.random.usize(..3)];
        if self.random.u32(..4) == 0
            && let Ok(mut file) =
                std::fs::File::options().append(true).open(self.gateway.path("sandgate-state").join(torn))
        {
            file.write_all(b"{\"half\": \"a li").unwrap();
        }
        self.gateway.restart();
    }
}

#[needs("mosquitto")]
#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_what_was_accepted_arrives_and_commands_run_once() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let kills = number("SANDGATE_KILLS").map_or(KILLS, |kills| kills as usize);
    let seed = number("SANDGATE_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed}");
    let begin = Instant::now();
    let broker = Broker::mosquitto("allow_anonymous true", &[]);
    let mut site = Site {
        random: fastrand::Rng::with_seed(seed),
        observer: Observer::connect(broker.port).await,
        proxy: Proxy::to(broker.port).await,
        gateway: Gateway::prepare(&[("actuator.wasm", fixture("actuator"))]),
        fields: Vec::new(),
        versions: ["1.0.0", "1.0.1"]
            .map(|version| fixture_with("actuator", "version: 1.0.0", &format!("version: {version}"))),
        commands: 0,
        is_plugged: true,
        kills: 0,
        cuts: 0,
        swaps: 0,
    };
    let mut devices = "keep_alive = '5s'\n".to_owned();
    for name in DEVICES {
        let field = Field::start(Duration::from_millis(15)).await;
        devices += &field.device(name, 10);
        site.fields.push(field);
    }
    site.gateway.start(site.proxy.port, &devices);
    site.gateway.wait_for_log("connected to");
    // Until that is written down, a broker is asked to forget.
    until("the broker to be remembered", || {
        let places = std::fs::read_dir(site.gateway.path("sandgate-state/outbox")).ok()?;
        places.flatten().any(|place| place.path().extension().is_some_and(|end| end == "contact")).then_some(())
    });
    while site.kills < kills || site.cuts < kills / 2 {
        site.act().await;
        let pause = site.random.u64(..400);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    site.proxy.plug();
    site.gateway.wait_for_device("d0", "the device to run", |device| (device["phase"] == "running").then_some(()));
    println!(
        "{} kills, {} cuts, {} swaps, {} commands in {:.0?}",
        site.kills,
        site.cuts,
        site.swaps,
        site.commands,
        begin.elapsed()
    );
    assert!(site.cuts > 0 && site.swaps > 0 && site.commands > 0);
    let number = site.commands;
    until("all answers", || (answers(&site.observer).len() == number).then_some(()));
    for (name, field) in DEVICES.iter().zip(&site.fields) {
        let accepted = field.noted().accepted.clone();
        let topic = format!("v1/from/S01/s--{name}/v1/telemetry");
        let arrived = until(&format!("all samples of {name} that were accepted"), || {
            let all = site.observer.all();
            let arrived: Vec<i64> = all.iter().filter_map(|message| message.on(&topic)?["number"].as_i64()).collect();
            let seen: BTreeSet<i64> = arrived.iter().copied().collect();
            accepted.is_subset(&seen).then_some(arrived)
        });
        // In order; what comes a second time has come before.
        let (mut seen, mut highest) = (BTreeSet::new(), 0);
        for number in &arrived {
            assert!(!seen.insert(*number) || *number > highest, "{name}: {number} came after {highest}");
            highest = highest.max(*number);
        }
        println!(
            "{name}: {} accepted, {} arrived, {} of them twice",
            accepted.len(),
            arrived.len(),
            arrived.len() - seen.len()
        );
        assert!(accepted.len() > kills, "{name} sent little: {}", accepted.len());
    }
    let answers = answers(&site.observer);
    let mut interrupted = 0;
    let runs = |id: &String| {
        site.fields.iter().map(|field| field.noted().runs.get(id).copied().unwrap_or_default()).sum::<usize>()
    };
    for (id, answers) in &answers {
        assert!(runs(id) <= 1, "{id} ran {} times", runs(id));
        let states: BTreeSet<&str> = answers.iter().filter_map(|answer| answer["state"].as_str()).collect();
        assert_eq!(states.len(), 1, "{id}: {answers:?}");
        let text = answers[0]["payload"]["message"].as_str().unwrap_or_default();
        match *states.first().unwrap() {
            "completed" => assert_eq!(runs(id), 1, "{id}"),
            _ => interrupted += usize::from(text.contains("interrupted")),
        }
    }
    println!("{} commands, {interrupted} interrupted", answers.len());
}
