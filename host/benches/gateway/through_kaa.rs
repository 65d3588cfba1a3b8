//! Measurements against the stand-in of Kaa, which runs as a program of its own.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sandgate::clock::TimeFormat;
use sandgate::cloud::Cloud;
use sandgate::cloud::kaa::Kaa;
use sandgate::config::{Config, Endpoint, KaaEndpoint, Secret, Source};
use sandgate::device::Input;
use sandgate::journal::Journal;
use sandgate::message::{DeviceId, SessionName};
use sandgate::outbox::{Batching, Bounds, Outbox, Stats};
use sandgate::router::{Outlet, Recipient, Route, Table};
use sandgate::sandbox::{Compiler, Driver};
use sandgate::secrets::Secrets;
use sandgate::session::kaa::{KaaDialogue, Manner};
use sandgate::session::{Contact, Facts, Links, Picture, Session, SessionStatus};
use sandgate::state::StateFolder;
use sandgate::status::resident_memory;
use sandgate::supervisor::Supervisor;
use serde_json::{Value as Json, json};
use tokio::sync::{mpsc, watch};

use crate::print;
use crate::setup::{driver, guest, parts, sandbox, specification_with, start};

/// Nothing that goes on pauses for longer.
const STUCK: Duration = Duration::from_secs(30);

/// A running stand-in.
struct StandIn {
    process: Child,
    mqtt: u16,
    http: String,
}

impl Drop for StandIn {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl StandIn {
    fn start() -> StandIn {
        let mut process = Command::new(env!("CARGO_BIN_EXE_sandgate"))
            .args(["cloud", "kaa", "--mqtt", "127.0.0.1:0", "--http", "127.0.0.1:0", "--json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let first: Json = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        // Its lines about events are read and forgotten, or it would wait.
        std::thread::spawn(move || lines.for_each(drop));
        let port = |key: &str| first[key].as_str().unwrap().rsplit(':').next().unwrap().parse::<u16>().unwrap();
        StandIn { process, mqtt: port("mqtt"), http: format!("http://127.0.0.1:{}", port("http")) }
    }

    async fn get(&self, path: &str) -> Json {
        let response = reqwest::get(format!("{}{path}", self.http)).await.unwrap();
        serde_json::from_slice(&response.bytes().await.unwrap()).unwrap_or_default()
    }
}

fn cloud() -> Kaa {
    Kaa {
        app_version: "bench-v1".into(),
        token: None,
        timestamp_field: "timestamp".into(),
        timestamp_format: TimeFormat::Milliseconds,
    }
}

fn route(device: &DeviceId, outbox: &Arc<Outbox>) -> Route {
    let endpoint =
        KaaEndpoint { token: Source::Value(Secret(device.to_string())), app_version: None, plain: Default::default() };
    let channel = cloud().device(device, Some(&Endpoint::Kaa(endpoint))).unwrap();
    Route { session: SessionName::new("kaa"), channel, outbox: Arc::clone(outbox), questions: None, binary_data: None }
}

/// Runs a session for these channels until the sender is dropped.
fn session(
    port: u16,
    outbox: &Arc<Outbox>,
    routes: &[(DeviceId, Route)],
) -> (watch::Sender<Arc<Picture>>, watch::Receiver<SessionStatus>) {
    let channels = routes.iter().map(|(id, route)| (Recipient::Device(id.clone()), route.channel.clone()));
    let facts = Facts { commands: vec!["ping".into()], version: Some("1.0.0".into()), ..Facts::default() };
    let facts = routes.iter().map(|(id, _)| (Recipient::Device(id.clone()), facts.clone()));
    let picture = Picture {
        table: Table::new(channels),
        greeting: Default::default(),
        devices: HashMap::new(),
        facts: facts.collect(),
    };
    let (sender, pictures) = watch::channel(Arc::new(picture));
    let (status, states) = watch::channel(SessionStatus::default());
    let (gateway, orders) = mpsc::channel(10_000);
    std::mem::forget(orders);
    let (_, questions) = mpsc::channel(1);
    let manner = Manner {
        reply_timeout: Duration::from_secs(15),
        configurations: Vec::new(),
        software: true,
        request_status: false,
        check_time: false,
        poll_every: Duration::from_secs(600),
    };
    let dialogue = Box::new(KaaDialogue::new(&SessionName::new("kaa"), manner, Arc::clone(outbox)));
    let parts = parts(port, outbox, Arc::new(cloud()), dialogue);
    let journal = Arc::new(Journal::in_memory(Duration::from_secs(60)));
    let links = Links {
        picture: pictures,
        gateway,
        questions,
        journal,
        contact: Contact::none(),
        status,
        refused: Arc::default(),
    };
    Session::new(&SessionName::new("kaa"), parts, links).start();
    (sender, states)
}

pub async fn batching() {
    const ROUNDS: usize = 5;
    let stand_in = StandIn::start();
    let sandbox = sandbox();
    let driver = driver(&sandbox, "bench", "1.0.0").await;
    let alone = Batching { count: 1, bytes: 64 << 10, age: Duration::ZERO };
    let together = Batching { count: 100, bytes: 64 << 10, age: Duration::from_secs(1) };
    let (mut singles, mut batches, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    // In turns, because the machine's pace changes from second to second.
    for round in 0..ROUNDS {
        let single = delivery_rate(&stand_in, &driver, &format!("alone{round}"), alone).await;
        let batch = delivery_rate(&stand_in, &driver, &format!("together{round}"), together).await;
        singles.push(single);
        batches.push(batch);
        ratios.push(batch / single);
    }
    for numbers in [&mut singles, &mut batches, &mut ratios] {
        numbers.sort_by(f64::total_cmp);
    }
    print(
        "samples to the Kaa stand-in in batches, QoS 1, vs one by one",
        format!("{:.0}/s", batches[ROUNDS / 2]),
        &format!("{:.0}/s", singles[ROUNDS / 2]),
        Some(ratios[ROUNDS / 2]),
        (">= 5", ratios[ROUNDS / 2] >= 5.0),
    );
}

/// Samples a second, from the first that a driver sends to the answer to the last.
async fn delivery_rate(stand_in: &StandIn, driver: &Arc<Driver>, name: &str, batching: Batching) -> f64 {
    const SAMPLES: u64 = 200_000;
    let bounds = Bounds { bytes: 1 << 30, age: Duration::from_secs(3600), batching, ..Bounds::default() };
    let outbox = Arc::new(Outbox::new(bounds));
    let id = DeviceId::new(name);
    let route = route(&id, &outbox);
    let (picture, mut states) = session(stand_in.mqtt, &outbox, &[(id.clone(), route.clone())]);
    states.wait_for(|status| status.connected).await.unwrap();
    let begin = Instant::now();
    // As many at a time as keep the driver ahead of the session.
    let spec = specification_with(Outlet { device: id, routes: vec![route] });
    let handle = start(&spec, driver, json!({"interval_ms": 1.0, "burst": 2000})).await;
    until(&outbox, &states, |stats| stats.appended >= SAMPLES).await;
    handle.ask(Input::Stop).await.unwrap();
    let samples = outbox.stats().appended;
    until(&outbox, &states, |stats| stats.delivered >= samples).await;
    let rate = samples as f64 / begin.elapsed().as_secs_f64();
    drop(picture);
    rate
}

/// Waits until the outbox is so; one that gets no further says how far it is.
async fn until(outbox: &Outbox, session: &watch::Receiver<SessionStatus>, is_so: impl Fn(&Stats) -> bool) {
    let (mut last, mut since) = (outbox.stats(), Instant::now());
    while !is_so(&last) {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let now = outbox.stats();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        assert!(since.elapsed() < STUCK, "stuck at {last:?}, the session at {:?}", session.borrow());
    }
}

pub async fn endpoints() {
    const ENDPOINTS: usize = 1000;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let stand_in = StandIn::start();
    let before = resident_memory();
    let outbox = Arc::new(Outbox::new(Bounds { bytes: 1 << 30, age: Duration::from_secs(3600), ..Bounds::default() }));
    let routes: Vec<_> = (0..ENDPOINTS)
        .map(|number| {
            let id = DeviceId::new(&format!("d{number}"));
            (id.clone(), route(&id, &outbox))
        })
        .collect();
    let (picture, mut states) = session(stand_in.mqtt, &outbox, &routes);
    states.wait_for(|status| status.connected).await.unwrap();
    attached(&stand_in, ENDPOINTS, 0).await;
    let memory = (resident_memory() - before) as f64 / ENDPOINTS as f64 / 1024.0;
    print(
        "memory of an endpoint beyond its device, of 1,000",
        format!("{memory:.1} KiB"),
        "",
        None,
        ("<= 8 KiB", memory <= 8.0),
    );
    let mut times = Vec::new();
    for _ in 0..5 {
        let seen = last_seen(&stand_in).await;
        reqwest::Client::new().post(format!("{}/standin/v1/disconnect", stand_in.http)).send().await.unwrap();
        let connects = states.borrow().connects;
        states.wait_for(|status| status.connects > connects).await.unwrap();
        let begin = Instant::now();
        attached(&stand_in, ENDPOINTS, seen).await;
        times.push(begin.elapsed());
    }
    times.sort();
    print(
        "1,000 endpoints attached after a reconnect, slowest of 5",
        format!("{:.2} s", times[4].as_secs_f64()),
        "",
        None,
        ("<= 5 s", times[4] <= Duration::from_secs(5)),
    );
    drop(picture);
}

/// Waits until all endpoints are connected and have told their software since.
async fn attached(stand_in: &StandIn, number: usize, since: u64) {
    loop {
        let all = stand_in.get("/standin/v1/endpoints").await;
        let is_attached = |endpoint: &&Json| {
            endpoint["connected"] == true
                && endpoint["software"] == "1.0.0"
                && endpoint["lastSeen"].as_u64() > Some(since)
        };
        if all.as_array().unwrap().iter().filter(is_attached).count() == number {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn last_seen(stand_in: &StandIn) -> u64 {
    let all = stand_in.get("/standin/v1/endpoints").await;
    all.as_array().unwrap().iter().filter_map(|endpoint| endpoint["lastSeen"].as_u64()).max().unwrap()
}

/// From the offer to the report that the new driver runs, with the real supervisor.
pub async fn software() {
    const OFFERS: usize = 5;
    let stand_in = StandIn::start();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("bench.wasm"), guest("bench", "1.0.0")).unwrap();
    let path = folder.path().join("gateway.toml");
    let config = format!(
        "[sessions.kaa.kaa]\nhost = '127.0.0.1'\nport = {}\napp_version = 'bench-v1'\nbatch = {{ max_age = '20ms' }}\n\
         [devices.d]\ndriver = 'bench.wasm'\nconfiguration.main.interval_ms = 5.0\nhealth_window = '1ms'\n\
         limits.telemetry = '100000/s'\nendpoints.kaa.token = 'd'\n",
        stand_in.mqtt
    );
    std::fs::write(&path, config).unwrap();
    let program = env!("CARGO_BIN_EXE_sandgate").into();
    let config = Config::load(&path).unwrap();
    let state = StateFolder::open(&config.state).unwrap();
    let (supervisor, control) =
        Supervisor::open(&path, config, state.path(), Compiler::Child(program), Secrets::default()).unwrap();
    let running = tokio::spawn(supervisor.run());
    let mut times = Vec::new();
    let mut size = 0;
    for number in 0..OFFERS {
        while stand_in.get("/standin/v1/endpoints/d").await["software"] != format!("1.0.{number}") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let version = format!("1.0.{}", number + 1);
        let component = guest("bench", &version);
        size = component.len();
        let client = reqwest::Client::new();
        let stored = client.post(format!("{}/standin/v1/files/d.wasm", stand_in.http)).body(component).send();
        let stored: Json = serde_json::from_slice(&stored.await.unwrap().bytes().await.unwrap()).unwrap();
        let offer = json!({"specification": {"link": stored["link"], "checksum": stored["sha256"]}});
        let begin = Instant::now();
        let url = format!("{}/otao/api/v1/applications/bench/software/{version}", stand_in.http);
        client.put(url).body(offer.to_string()).send().await.unwrap();
        loop {
            let status = control.status().await.unwrap();
            if status.devices[0].version == version {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        times.push(begin.elapsed());
    }
    control.stop().await;
    running.await.unwrap();
    let samples = stand_in.get("/standin/v1/endpoints/d/samples").await;
    let mut counts: Vec<u64> =
        samples.as_array().unwrap().iter().filter_map(|sample| sample["value"]["count"].as_u64()).collect();
    counts.sort_unstable();
    counts.dedup();
    let lost = counts.last().unwrap() + 1 - counts.first().unwrap() - counts.len() as u64;
    times.sort();
    print(
        &format!("offer to new driver serving, {} KB, slowest of {OFFERS}; lost {lost}", size / 1000),
        format!("{:.0} ms", times[OFFERS - 1].as_secs_f64() * 1000.0),
        "",
        None,
        ("<= 500 ms, 0", times[OFFERS - 1] <= Duration::from_millis(500) && lost == 0),
    );
}
