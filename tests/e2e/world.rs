//! A hostile world around the gateway: a disk that fails, is full, read-only or
//! stalls, a clock that jumps, names that do not resolve, a certificate that has
//! expired. It keeps polling, says it once, and recovers by itself.

use std::process::Command;

use sandgate_test_needs::needs;
use serde_json::{Value as Json, json};

use crate::harness::{Broker, Gateway, Observer, Proxy, fixture, free_port, must, until};

const DEVICES: &str =
    "[devices.echo1]\ndriver = 'echo.wasm'\nconfiguration.main.interval_ms = 20\nlimits.telemetry = '1000/s'\n";
const CHANNEL: &str = "v1/from/S01/s--echo1/v1/telemetry";
const EIO: i64 = 5;
const ENOSPC: i64 = 28;
const EROFS: i64 = 30;

/// A gateway whose calls of the system can be made to fail.
struct World {
    gateway: Gateway,
    faults: std::path::PathBuf,
    library: std::path::PathBuf,
}

impl World {
    /// Nothing runs yet.
    fn new() -> World {
        let gateway = Gateway::prepare(&[("echo.wasm", fixture("echo"))]);
        let (source, library, faults) = (gateway.path("world.c"), gateway.path("world.so"), gateway.path("world"));
        std::fs::write(&source, include_str!("world.c")).unwrap();
        std::fs::create_dir(&faults).unwrap();
        must(Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).arg("-ldl"));
        World { gateway, faults, library }
    }

    fn start(&mut self, port: u16) {
        self.gateway.configure(port, DEVICES);
        self.restart();
    }

    fn restart(&mut self) {
        let (library, faults) = (self.library.to_str().unwrap(), self.faults.to_str().unwrap());
        self.gateway.restart_with(&[("LD_PRELOAD", library), ("SANDGATE_WORLD", faults)]);
    }

    fn begin(&self, fault: &str, number: i64) {
        let part = self.faults.join("part");
        std::fs::write(&part, number.to_string()).unwrap();
        std::fs::rename(part, self.faults.join(fault)).unwrap();
    }

    fn end(&self, fault: &str) {
        std::fs::remove_file(self.faults.join(fault)).unwrap();
    }

    fn samples(&self) -> u64 {
        self.gateway.device("echo1")["samples"].as_u64().unwrap()
    }

    /// The device is polled on.
    fn goes_on(&self) {
        self.gateway.wait_for_samples("echo1", self.samples() + 30);
    }

    fn times_in_log(&self, text: &str) -> usize {
        self.gateway.log().matches(text).count()
    }

    fn is_kept(&self) -> bool {
        self.gateway.json(&["outbox"])["main"]["outbox"]["disk"]["problem"].is_null()
    }
}

/// A gateway whose first sample has come.
async fn running() -> (Broker, Observer, World) {
    let broker = Broker::start();
    let observer = Observer::connect(broker.port).await;
    let mut world = World::new();
    world.start(broker.port);
    observer.find("the first sample", |m| m.on(CHANNEL)).await;
    (broker, observer, world)
}

/// The counts of all samples that came, in their order.
fn counts(observer: &Observer) -> Vec<i64> {
    let messages = observer.all();
    messages.iter().filter_map(|message| message.on(CHANNEL)?["count"].as_i64()).collect()
}

/// Samples of one life come without a gap.
async fn assert_none_is_lost(observer: &Observer, accepted: u64) {
    let last = until("all samples", || counts(observer).last().copied().filter(|last| *last >= accepted as i64));
    let mut all = counts(observer);
    // Those on the way at a cut come twice.
    all.sort_unstable();
    all.dedup();
    assert_eq!(all, (1..=all.len() as i64).collect::<Vec<_>>());
    assert!(all.len() as i64 >= last);
}

#[needs("cc")]
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_is_told_once_costs_nothing_and_is_used_again() {
    let broker = Broker::start();
    let observer = Observer::connect(broker.port).await;
    let proxy = Proxy::to(broker.port).await;
    let mut world = World::new();
    world.start(proxy.port);
    observer.find("the first sample", |m| m.on(CHANNEL)).await;
    for (number, (fault, error)) in
        [("write", ENOSPC), ("write", EROFS), ("write", EIO), ("sync", EIO)].iter().enumerate()
    {
        proxy.unplug();
        world.begin(fault, *error);
        until("the failure is noticed", || (!world.is_kept()).then_some(()));
        world.goes_on();
        assert_eq!(world.times_in_log("the outbox cannot be written to the disk"), number + 1, "{fault} {error}");
        let status = world.gateway.json(&["outbox"]);
        let problem = status["main"]["outbox"]["disk"]["problem"].as_str().unwrap_or_default();
        assert!(problem.contains("os error"), "{status}");
        world.end(fault);
        until("the disk is used again", || world.is_kept().then_some(()));
        world.gateway.wait_for_log("the outbox is on the disk again");
        // What was accepted meanwhile survives a kill.
        proxy.plug();
        assert_none_is_lost(&observer, world.samples()).await;
    }
    assert_eq!(world.times_in_log("the outbox is on the disk again"), 4);
    proxy.unplug();
    world.begin("write", ENOSPC);
    until("the failure is noticed", || (!world.is_kept()).then_some(()));
    world.goes_on();
    world.end("write");
    until("the disk is used again", || world.is_kept().then_some(()));
    let accepted = world.samples();
    world.gateway.kill();
    proxy.plug();
    world.restart();
    until("the second life", || counts(&observer).windows(2).any(|pair| pair[1] == 1).then_some(()));
    let all = counts(&observer);
    let second = all.windows(2).position(|pair| pair[1] == 1).unwrap() + 1;
    let first: std::collections::BTreeSet<i64> = all[..second].iter().copied().collect();
    assert!(first.len() as u64 >= accepted && first.len() as i64 == *first.last().unwrap(), "{accepted}");
}

#[needs("cc")]
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_commands_and_swaps_with_a_reason_and_takes_them_later() {
    let (_broker, observer, world) = running().await;
    world.begin("write", ENOSPC);
    let answer = observer.command("s--echo1", json!({"id": "c1", "name": "echo", "arguments": {"text": "a"}})).await;
    assert_eq!(answer["state"], json!("error"), "{answer}");
    assert!(answer.to_string().contains("cannot note commands"), "{answer}");
    let swap = world.gateway.cli(&["swap", "echo1"]);
    let told = String::from_utf8_lossy(&swap.stderr).into_owned() + &String::from_utf8_lossy(&swap.stdout);
    assert!(swap.status.success() || told.contains("space"), "{told}");
    world.goes_on();
    world.end("write");
    let answer = until_answered(&observer).await;
    assert_eq!(answer["state"], json!("completed"), "{answer}");
    assert!(world.gateway.cli(&["swap", "echo1"]).status.success());
    world.goes_on();
}

/// The first answer to a command that is none of a disk that fails.
async fn until_answered(observer: &Observer) -> Json {
    for number in 0.. {
        let request = json!({"id": format!("d{number}"), "name": "echo", "arguments": {"text": "a"}});
        let answer = observer.command("s--echo1", request).await;
        if answer["state"] == json!("completed") || number > 100 {
            return answer;
        }
    }
    Json::Null
}

#[needs("cc")]
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_does_not_answer_blocks_nobody() {
    let (_broker, observer, mut world) = running().await;
    world.begin("stall", 1);
    // It goes on in memory, and to the cloud.
    let mark = observer.mark();
    let before = world.samples();
    world.goes_on();
    let arrived = |m: &crate::harness::Message| m.on(CHANNEL)?["count"].as_u64().filter(|count| *count > before + 20);
    observer.find_after(mark, "samples while the disk stalls", arrived).await;
    let answer = observer.command("s--echo1", json!({"id": "c1", "name": "echo", "arguments": {"text": "a"}})).await;
    assert_eq!(answer["state"], json!("error"), "{answer}");
    world.end("stall");
    let answer = until_answered(&observer).await;
    assert_eq!(answer["state"], json!("completed"), "{answer}");
    assert_none_is_lost(&observer, world.samples()).await;
    world.gateway.terminate();
}

#[needs("cc")]
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_costs_no_sample_and_what_waits_gets_its_time() {
    let broker = Broker::start();
    let observer = Observer::connect(broker.port).await;
    let proxy = Proxy::to(broker.port).await;
    let mut world = World::new();
    // A clock that was never set: the machine has just started, and has no uplink.
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
    let begin = now();
    world.begin("clock", 1000 - begin);
    world.start(proxy.port);
    world.gateway.wait_for_samples("echo1", 20);
    proxy.unplug();
    world.goes_on();
    let early = world.samples() as i64;
    // The clock is set, then it is set wrong, a day forward and a year back.
    world.begin("clock", 0);
    world.gateway.wait_for_log("the clock was set forward");
    world.begin("clock", 24 * 3600);
    world.goes_on();
    world.begin("clock", -365 * 24 * 3600);
    world.gateway.wait_for_log("the clock was set back");
    world.goes_on();
    world.begin("clock", 0);
    let mark = observer.mark();
    proxy.plug();
    assert_none_is_lost(&observer, world.samples()).await;
    let end = now();
    // All that was sent after the clock was right is of this time, whatever it said then.
    for message in observer.all().iter().skip(mark) {
        if let Some(sample) = message.on(CHANNEL) {
            let time = sample["timestamp"].as_i64().unwrap();
            let is_early = sample["count"].as_i64().is_some_and(|count| count <= early);
            assert!((begin - 2..=end + 2).contains(&time), "{sample}, early: {is_early}");
        }
    }
}

#[needs("cc")]
#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_does_not_resolve_is_told_and_asked_for_again() {
    let broker = Broker::start();
    let observer = Observer::connect(broker.port).await;
    let mut world = World::new();
    world.begin("names", 1);
    let config =
        format!("[sessions.main.enapter]\nhost = 'localhost'\nport = {}\nhardware_id = 'S01'\n{DEVICES}", broker.port);
    world.gateway.write("gateway.toml", config.as_bytes());
    world.restart();
    world.gateway.wait_for_samples("echo1", 20);
    world.gateway.wait_for_log("connecting again");
    world.goes_on();
    world.end("names");
    observer.find("the first sample", |m| m.on(CHANNEL)).await;
    assert_none_is_lost(&observer, world.samples()).await;
}

#[needs("mosquitto")]
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_whose_certificate_has_expired_is_told_and_one_that_was_renewed_gets_all() {
    let good = crate::tls::papers();
    let port = free_port();
    let plain = free_port();
    let lines = format!(
        "allow_anonymous true\ncertfile FOLDER/cert\nkeyfile FOLDER/key\nlistener {plain} 127.0.0.1\nallow_anonymous true"
    );
    let broker = |papers: &(String, String)| {
        let files = [("cert", papers.0.as_str()), ("key", papers.1.as_str())];
        Broker::mosquitto_at(port, &lines, &files)
    };
    let first = broker(&good.expired);
    let mut gateway = Gateway::prepare(&[("echo.wasm", fixture("echo")), ("ca.pem", good.ca.clone().into_bytes())]);
    let config = format!(
        "[sessions.main.enapter]\nhost = '127.0.0.1'\nport = {port}\nhardware_id = 'S01'\n\
         tls = {{ ca = 'ca.pem' }}\n{DEVICES}"
    );
    gateway.write("gateway.toml", config.as_bytes());
    gateway.restart();
    gateway.wait_for_log("expired");
    gateway.wait_for_samples("echo1", 30);
    drop(first);
    let _second = broker(&good.server);
    let observer = Observer::connect(plain).await;
    observer.find("telemetry after the renewal", |m| m.on(CHANNEL)).await;
    let accepted = gateway.device("echo1")["samples"].as_u64().unwrap();
    // The observer may have come later than the gateway, so only the end is certain.
    until("all samples", || counts(&observer).last().copied().filter(|last| *last >= accepted as i64));
    assert!(gateway.log().matches("expired").count() < 20, "{}", gateway.log());
}
