//! A zoo of hostile drivers beside twenty healthy devices at 10 Hz: every import,
//! every export, every limit. Each misdeed is refused or stopped, with the device
//! and the cause in the log; the healthy ones miss nothing; the gateway's memory
//! and descriptors stay where they were; nothing of others is reached.
//!
//! Here they come by the dozen. One by one, with the delays of the healthy ones
//! measured, they are among the benchmarks: `cargo bench -p sandgate -- zoo`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value as Json;

use crate::harness::{Broker, Gateway, Observer, fixture, until};
use crate::modbus::counting_server;

/// Healthy devices that only count, and those that read the bus.
const COUNTING: usize = 17;
const READING: usize = 3;

/// What a hostile driver may take, and the gateway for it.
const MEMORY: usize = 16 << 20;
const MOST_OVER: usize = 96 << 20;
const MOST_DESCRIPTORS: usize = 900;

/// A misdeed, the export in which it is done, and how it ends.
#[derive(Debug, Clone)]
struct Misdeed {
    act: &'static str,
    place: &'static str,
    end: End,
}

#[derive(Debug, Clone, Copy)]
enum End {
    /// The driver is stopped; the log names the device and this cause.
    Stopped(&'static str),
    /// The export's result is refused or shortened; the log or the answer says this.
    Told(&'static str),
    /// The host refuses, the driver sees it and goes on.
    GoesOn,
}

/// What can be done in every export, and the cause that is named.
const EVERYWHERE: &[(&str, &str)] = &[
    ("loop", "used up its CPU budget of 200 ms"),
    ("host calls", "used up its CPU budget of 200 ms"),
    ("memory", "ran out of memory"),
    ("recursion", "call stack exhausted"),
    ("trap", "`unreachable` instruction"),
    ("panic", "panicked at tests/fixtures/zoo/acts.rs"),
    ("sleep", "exceeded its limit of 1000 ms"),
    ("exit", "exit"),
];

const PLACES: &[&str] = &["start", "on-timer", "handle-command", "configure", "stop", "snapshot", "restore", "version"];

/// What only one export can do.
const RESULTS: &[(&str, &str, &str)] = &[
    ("result: nasty error", "start", "owned"),
    ("result: huge error", "start", "xxxx"),
    ("result: nasty error", "on-timer", "owned"),
    ("result: huge error", "on-timer", "xxxx"),
    ("result: nasty error", "handle-command", "owned"),
    ("result: huge error", "handle-command", "expected at most 65536"),
    ("result: huge attributes", "handle-command", "expected at most 65536"),
    ("result: many attributes", "handle-command", "expected at most 65536"),
    ("result: nasty error", "configure", "owned"),
    ("result: huge error", "snapshot", "at most 1048576 bytes"),
    ("result: nasty error", "restore", "owned"),
    ("result: huge error", "restore", "xxxx"),
];

/// What the host refuses, call by call, or bears.
const CALLS: &[&str] = &[
    "most of the budget",
    "memory to the limit",
    "naps",
    "telemetry: flood",
    "telemetry: nothing",
    "telemetry: many attributes",
    "telemetry: undeclared",
    "telemetry: nasty names",
    "telemetry: huge name",
    "telemetry: huge text",
    "telemetry: many texts",
    "telemetry: wrong types",
    "telemetry: no numbers",
    "telemetry: no dates",
    "telemetry: no JSON",
    "telemetry: deep JSON",
    "properties: flood",
    "properties: undeclared",
    "properties: huge",
    "alerts: many",
    "alerts: nasty",
    "alerts: huge",
    "alerts: flapping",
    "log: flood",
    "log: nasty",
    "log: huge",
    "log: command log flood",
    "log: nasty command log",
    "timers: all",
    "timers: no times",
    "timers: storm",
    "timers: unknown ids",
    "storage: bad keys",
    "storage: nasty keys",
    "storage: behind the last key",
    "storage: huge value",
    "storage: quota",
    "storage: reads",
    "tcp: not granted",
    "tcp: nasty hosts",
    "tcp: no times",
    "tcp: many connections",
    "tcp: connections kept",
    "tcp: bad receives",
    "tcp: huge send",
    "tcp: silent peer",
    "http: not granted",
    "http: no URLs",
    "http: bad methods",
    "http: smuggled headers",
    "http: many headers",
    "http: huge body",
    "http: silent server",
    "can: other names",
    "can: bad frames",
    "can: many queues",
    "can: a dead bus",
    "io: other names",
    "io: bad times",
    "io: a dead relay",
    "serial: other names",
    "serial: bad arguments",
    "serial: a dead port",
    "modbus: other names",
    "modbus: other units",
    "modbus: writes",
    "modbus: bad counts",
    "modbus: bad times",
    "modbus: absent unit",
    "modbus: endless pause",
    "metadata: calls",
    "metadata: bad keys",
    "blobs: calls",
    "blobs: bad names",
    "blobs: huge",
    "wasi: output flood",
    "wasi: nasty output",
    "wasi: endless line",
    "wasi: files",
    "wasi: environment",
    "wasi: not granted",
    "wasi: listening",
    "wasi: datagrams",
    "wasi: many connections",
    "wasi: names",
    "wasi: clocks",
];

/// What waits until it is stopped.
const WAITS: &[&str] = &["storage: write flood", "tcp: wait for ever", "wasi: silent peer"];

fn misdeeds() -> Vec<Misdeed> {
    let everywhere = PLACES
        .iter()
        .flat_map(|place| EVERYWHERE.iter().map(|(act, cause)| Misdeed { act, place, end: End::Stopped(cause) }));
    let results = RESULTS.iter().map(|(act, place, told)| Misdeed { act, place, end: End::Told(told) });
    let calls = CALLS.iter().map(|act| Misdeed { act, place: "on-timer", end: End::GoesOn });
    let too_long = End::Stopped("exceeded its limit of 1000 ms");
    let waits = WAITS.iter().map(|act| Misdeed { act, place: "on-timer", end: too_long });
    let attributes = ["result: nasty attributes"];
    let attributes = attributes.map(|act| Misdeed { act, place: "handle-command", end: End::Told("nan: null") });
    let many = ["modbus: many units", "serial: many ports"];
    let many = many.map(|act| Misdeed { act, place: "on-timer", end: End::Stopped("it holds more than 256") });
    let versions = ["result: nasty error", "result: huge error"];
    let versions = versions.map(|act| Misdeed { act, place: "version", end: End::GoesOn });
    everywhere.chain(results).chain(calls).chain(waits).chain(versions).chain(attributes).chain(many).collect()
}

/// Accepts and says nothing; counts who came.
fn silent_server() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (count, visitors) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
    let counted = Arc::clone(&count);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            counted.fetch_add(1, Ordering::SeqCst);
            let mut visitors = visitors.lock().unwrap();
            visitors.push(stream.unwrap());
            if visitors.len() > 300 {
                visitors.drain(..200);
            }
        }
    });
    (port, count)
}

struct Zoo {
    // The broker ends with it.
    broker: Broker,
    observer: Observer,
    gateway: Gateway,
    bus: u16,
    asked: Arc<Mutex<BTreeMap<u8, u64>>>,
    peer: u16,
    /// The peer of those that wait, where nobody makes so many connections that the oldest are closed.
    quiet_peer: u16,
    neighbour: u16,
    intruders: Arc<AtomicUsize>,
}

impl Zoo {
    async fn open() -> Zoo {
        let broker = Broker::start();
        let observer = Observer::connect(broker.port).await;
        let (bus, asked) = counting_server();
        let ((peer, _), (quiet_peer, _)) = (silent_server(), silent_server());
        let (neighbour, intruders) = silent_server();
        let mut gateway = Gateway::prepare(&[("echo.wasm", fixture("echo")), ("zoo.wasm", fixture("zoo"))]);
        gateway.start(broker.port, &healthy(bus));
        let zoo = Zoo { broker, observer, gateway, bus, asked, peer, quiet_peer, neighbour, intruders };
        zoo.wait_for_healthy(20);
        zoo
    }

    /// The healthy ones have sent this number of further samples.
    fn wait_for_healthy(&self, more: u64) {
        let wanted: Vec<(String, u64)> = (0..COUNTING + READING)
            .map(|n| (format!("healthy{n}"), self.gateway.device(&format!("healthy{n}"))["samples"].as_u64()))
            .map(|(id, samples)| (id, samples.unwrap_or_default() + more))
            .collect();
        for (id, samples) in wanted {
            self.gateway.wait_for_samples(&id, samples);
        }
    }

    fn hostile(&self, id: &str, misdeed: &Misdeed) -> String {
        format!(
            "[devices.{id}]\ndriver = 'zoo.wasm'\ncloud_log = 'off'\n\
             grants.tcp = ['127.0.0.1:{peer}']\ngrants.http = ['127.0.0.1:{peer}']\n\
             grants.modbus.line = {{ bus = 'field', units = [9], writes = [] }}\n\
             grants.serial.port = 'nothing'\ngrants.io.relay = 'relay'\ngrants.can.bus = 'can'\n\
             limits = {{ cpu = '200ms', call = '1s', memory = '{memory}MiB' }}\n\
             [devices.{id}.configuration.main]\nact = '{act}'\nplace = '{place}'\n\
             peer = '127.0.0.1:{peer}'\nneighbour = '127.0.0.1:{neighbour}'\n",
            memory = MEMORY >> 20,
            peer = if WAITS.contains(&misdeed.act) { self.quiet_peer } else { self.peer },
            neighbour = self.neighbour,
            act = misdeed.act,
            place = misdeed.place,
        )
    }

    /// Lets drivers in, sees each do its misdeed, and how it ends.
    /// Panics after all of them with what was otherwise.
    fn admit(&self, first: usize, misdeeds: &[Misdeed]) {
        let ids: Vec<String> = (0..misdeeds.len()).map(|n| format!("guest{}", first + n)).collect();
        let text: String = ids.iter().zip(misdeeds).map(|(id, misdeed)| self.hostile(id, misdeed)).collect();
        self.gateway.configure(self.broker.port, &format!("{}{text}", healthy(self.bus)));
        for (id, misdeed) in ids.iter().zip(misdeeds) {
            if !["start", "version"].contains(&misdeed.place) {
                self.gateway.wait_for_device(id, &format!("{misdeed:?}"), |device| {
                    (device["phase"] == "running" || device["crashes"].as_u64()? > 0).then_some(())
                });
            }
        }
        if misdeeds.iter().any(|misdeed| misdeed.place == "configure") {
            let changed = text.replace("place = 'configure'\n", "place = 'configure'\nother = 1\n");
            self.gateway.configure(self.broker.port, &format!("{}{changed}", healthy(self.bus)));
        }
        let mut surprises = Vec::new();
        for (id, misdeed) in ids.iter().zip(misdeeds) {
            let is_asked = ["handle-command", "stop", "snapshot", "restore"].contains(&misdeed.place);
            let output = match misdeed.place {
                "handle-command" => self.gateway.cli(&["command", id, "act"]),
                "stop" => self.gateway.cli(&["restart", id]),
                "snapshot" | "restore" => self.gateway.cli(&["swap", id]),
                _ => self.gateway.cli(&["devices"]),
            };
            let answer = [output.stdout, output.stderr].concat();
            let is_bare = |byte: &u8| *byte < b' ' && *byte != b'\n';
            assert!(!answer.iter().any(is_bare), "{misdeed:?}: {}", String::from_utf8_lossy(&answer).escape_debug());
            let is_forged = |line: &str| line.starts_with("2026-01-01T00:00:00Z");
            assert!(!String::from_utf8_lossy(&answer).lines().any(is_forged), "{misdeed:?} forges a line");
            assert!(answer.len() < 64 << 10, "{misdeed:?}: {} bytes", answer.len());
            // The list of all devices says nothing of this one alone.
            let answer = if is_asked { String::from_utf8_lossy(&answer) } else { "".into() };
            let see = || self.judge(id, misdeed, &answer);
            if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(see)) {
                surprises.push(panic.downcast_ref::<String>().cloned().unwrap_or_default());
            }
        }
        assert!(surprises.is_empty(), "{}", surprises.join("\n"));
    }

    fn judge(&self, id: &str, misdeed: &Misdeed, answer: &str) {
        let device = format!("device=\"{id}\"");
        let is_told = |cause: &str| {
            let log = self.gateway.log();
            let mut lines = log.lines().filter(|line| line.contains(&device));
            answer.contains(cause) || lines.any(|line| line.contains(cause))
        };
        match misdeed.end {
            End::Stopped(cause) => until(&format!("{misdeed:?} of {id} to be told: {}", self.told(&device)), || {
                (is_told(cause) && is_told(misdeed.place)).then_some(())
            }),
            End::Told(cause) => {
                until(&format!("{misdeed:?} of {id} to be told: {}\n{answer}", self.told(&device)), || {
                    is_told(cause).then_some(())
                })
            }
            End::GoesOn => until(&format!("{misdeed:?} of {id} to be done: {}", self.told(&device)), || {
                let output = self.gateway.cli(&["command", id, "done", "--json"]);
                let answer: Json = serde_json::from_slice(&output.stdout).ok()?;
                answer.to_string().contains("\"done\":").then_some(())?;
                (!answer.to_string().contains("\"done\":0")).then_some(())
            }),
        }
        if matches!(misdeed.end, End::GoesOn) {
            assert_eq!(self.gateway.device(id)["crashes"], 0, "{misdeed:?}: {}", self.told(&device));
        }
    }

    /// The last of what the log says of a device.
    fn told(&self, device: &str) -> String {
        let log = self.gateway.log();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(device) && !line.contains("DEBUG")).collect();
        lines.iter().rev().take(5).map(|line| line.chars().take(400).collect::<String>() + "\n").collect()
    }

    /// All hostile drivers leave; nothing of theirs stays.
    fn check(&self, before: &Room) {
        self.gateway.configure(self.broker.port, &healthy(self.bus));
        until("the guests to leave", || {
            let status = self.gateway.json(&["devices"]);
            (status["devices"].as_array()?.len() == COUNTING + READING).then_some(())
        });
        self.wait_for_healthy(5);
        let room = until("the guests' descriptors to be closed", || {
            let room = self.room();
            (room.descriptors <= before.descriptors + 20).then_some(room)
        });
        assert!(room.memory <= before.memory + MOST_OVER, "{before:?}, afterwards {room:?}");
        for id in (0..COUNTING + READING).map(|n| format!("healthy{n}")) {
            let report = self.gateway.device(&id);
            let expected = (Some(0), Some(0), "running");
            let found = (report["crashes"].as_u64(), report["rejected"].as_u64(), report["phase"].as_str().unwrap());
            assert_eq!(found, expected, "{report:#}");
        }
        assert_eq!(self.intruders.load(Ordering::SeqCst), 0, "a server that was not granted was reached");
        let units: BTreeSet<u8> = self.asked.lock().unwrap().keys().copied().collect();
        assert!(units.is_subset(&BTreeSet::from([1, 9])), "units {units:?} were asked");
        let log = self.gateway.log();
        let bare = log.chars().find(|character| character.is_control() && *character != '\n');
        assert_eq!(bare, None, "a control character in the log");
        let longest = log.lines().map(str::len).max().unwrap_or_default();
        assert!(longest < 16 << 10, "a line of {longest} bytes");
        assert!(!log.lines().any(|line| line.starts_with("2026-01-01T00:00:00Z ERROR forged")));
    }

    fn room(&self) -> Room {
        let process = format!("/proc/{}", self.gateway.id());
        let status = std::fs::read_to_string(format!("{process}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let kilobytes: usize = line.trim().trim_end_matches(" kB").parse().unwrap();
        let descriptors = std::fs::read_dir(format!("{process}/fd")).unwrap().count();
        Room { memory: kilobytes << 10, descriptors }
    }

    /// Of every counting device nothing is missing at the broker.
    fn all_arrived(&self) {
        for number in 0..COUNTING {
            let samples = self.gateway.device(&format!("healthy{number}"))["samples"].as_u64().unwrap();
            until("all samples of the healthy ones", || {
                let counts: Vec<u64> = self.samples(number).iter().map(|(_, count)| *count).collect();
                (counts.last()? >= &samples).then(|| {
                    assert_eq!(counts, (1..=counts.len() as u64).collect::<Vec<_>>());
                })
            });
        }
    }

    /// When each sample of a counting device arrived.
    fn samples(&self, number: usize) -> Vec<(Instant, u64)> {
        let topic = format!("v1/from/S01/s--healthy{number}/v1/telemetry");
        let messages = self.observer.all();
        messages.iter().filter_map(|message| Some((message.at, message.on(&topic)?["count"].as_u64()?))).collect()
    }

    /// How late the slowest percent of the counting devices' samples of a time was.
    fn lateness(&self, from: Instant, to: Instant) -> Duration {
        let mut all = Vec::new();
        for number in 0..COUNTING {
            let samples = self.samples(number);
            let of_first = |(at, count): &(Instant, u64)| *at - Duration::from_millis(100 * count);
            let Some(grid) = samples.iter().map(of_first).min() else { continue };
            let late = |(at, count): &(Instant, u64)| *at - grid - Duration::from_millis(100 * count);
            all.extend(samples.iter().filter(|(at, _)| (from..to).contains(at)).map(late));
        }
        all.sort();
        all.get(all.len() * 99 / 100).copied().unwrap_or_default()
    }

    /// How many readings of the bus were good so far.
    fn good_readings(&self) -> u64 {
        (COUNTING..COUNTING + READING)
            .map(|n| self.gateway.device(&format!("healthy{n}"))["samples"].as_u64().unwrap())
            .sum()
    }
}

/// What the process takes.
#[derive(Debug, Clone, Copy)]
struct Room {
    memory: usize,
    descriptors: usize,
}

fn healthy(bus: u16) -> String {
    let mut text = format!(
        "[buses.field.modbus_tcp]\naddress = '127.0.0.1:{bus}'\ntimeout = '100ms'\n\
         [buses.nothing.serial]\nport = '/dev/sandgate-has-no-such-port'\n\
         [buses.can.can]\ninterface = 'sandgatenone'\n\
         [buses.relay.digital_output]\nchip = '/dev/sandgate-has-no-such-chip'\nline = 1\n"
    );
    for number in 0..COUNTING {
        let _ = write!(
            text,
            "[devices.healthy{number}]\ndriver = 'echo.wasm'\nconfiguration.main.interval_ms = 100\n\
             limits.telemetry = '1000/s'\n"
        );
    }
    for number in COUNTING..COUNTING + READING {
        let _ = write!(
            text,
            "[devices.healthy{number}]\ndriver = 'zoo.wasm'\nlimits.telemetry = '1000/s'\ngrants.tcp = []\n\
             grants.http = []\nconfiguration.main = {{ act = 'modbus: reads', place = 'on-timer' }}\n\
             grants.modbus.line = {{ bus = 'field', units = [1] }}\n"
        );
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn every_misdeed_is_refused_or_stopped_and_the_healthy_miss_nothing() {
    let zoo = Zoo::open().await;
    let before = zoo.room();
    let misdeeds = misdeeds();
    assert!(misdeeds.len() >= 100, "{} misdeeds", misdeeds.len());
    for (number, some) in misdeeds.chunks(24).enumerate() {
        zoo.admit(24 * number, some);
        let room = zoo.room();
        assert!(room.memory <= before.memory + MOST_OVER + some.len() * MEMORY, "{before:?}, now {room:?}: {some:?}");
        assert!(room.descriptors <= MOST_DESCRIPTORS, "{room:?}: {some:?}");
        zoo.check(&before);
    }
    zoo.all_arrived();
}

/// Each misdeed alone, with what it costs the others; in about 15 minutes.
#[allow(dead_code)] // The benchmarks call it.
pub async fn one_by_one() {
    let zoo = Zoo::open().await;
    let (begin, readings) = (Instant::now(), zoo.good_readings());
    std::thread::sleep(Duration::from_secs(10));
    let undisturbed = zoo.lateness(begin, Instant::now());
    let reading_rate = (zoo.good_readings() - readings) as f64 / begin.elapsed().as_secs_f64();
    println!("undisturbed: p99 {undisturbed:.1?}, {reading_rate:.1} good readings/s");
    let before = zoo.room();
    let bar = (undisturbed * 2).max(Duration::from_millis(10));
    let mut violations = Vec::new();
    for (number, misdeed) in misdeeds().into_iter().enumerate() {
        zoo.admit(number, std::slice::from_ref(&misdeed));
        let (from, readings) = (Instant::now(), zoo.good_readings());
        let mut most = zoo.room();
        while from.elapsed() < Duration::from_secs(3) {
            std::thread::sleep(Duration::from_millis(50));
            let room = zoo.room();
            most = Room { memory: most.memory.max(room.memory), descriptors: most.descriptors.max(room.descriptors) };
        }
        let share = (zoo.good_readings() - readings) as f64 / from.elapsed().as_secs_f64() / reading_rate;
        let late = zoo.lateness(from, Instant::now());
        let over = most.memory.saturating_sub(before.memory) >> 20;
        let Misdeed { act, place, .. } = &misdeed;
        println!("{act} in {place}: p99 {late:.1?}, {over} MiB over, {} descriptors, bus {share:.2}", most.descriptors);
        if late > bar || over > MOST_OVER >> 20 || most.descriptors > MOST_DESCRIPTORS || share < 0.5 {
            violations.push(format!("{act} in {place}"));
        }
        zoo.check(&before);
    }
    zoo.all_arrived();
    assert!(violations.is_empty(), "{} violations: {violations:#?}", violations.len());
}
