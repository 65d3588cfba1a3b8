//! The numbers of a gateway, each as a ratio against a baseline of the same run
//! or against its bar: `cargo bench`. Needs mosquitto for two of them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeMap, HashMap};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use sandgate::cloud::enapter::Enapter;
use sandgate::cloud::{Cloud, Greeting};
use sandgate::config::{Communication, Credentials, Limits, LogLevel, PropertiesTopic, Rate, Span};
use sandgate::device::{DeviceHandle, Input, Phase, Specification, prepare};
use sandgate::journal::Journal;
use sandgate::manifest::Manifest;
use sandgate::message::{Alerts, Attribute, CommandRequest, DeviceId, Uplink, Value, now};
use sandgate::outbox::{Bounds, Outbox};
use sandgate::receipt::Receipts;
use sandgate::router::{Outlet, Route, Table};
use sandgate::sandbox::{Compiler, Driver, Sandbox, embed_manifest};
use sandgate::session::{Picture, Session, SessionStatus};
use sandgate::status::resident_memory;
use serde_json::json;
use tokio::sync::{mpsc, oneshot, watch};

#[path = "../../tests/fixtures/bench/core.rs"]
mod core;

fn main() {
    // `cargo test --benches` only asks whether it builds and starts.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        println!("{:<62} {:>12} {:>12} {:>8}  bar", "what", "measured", "baseline", "ratio");
        sandbox_cost().await;
        memory().await;
        swaps().await;
        restart_after_trap().await;
        if mosquitto_is_here() {
            throughput().await;
            command_round_trip().await;
        } else {
            println!("mosquitto is not installed: no throughput and no round trip");
        }
    });
    // Idle tasks of the broker's clients do not end by themselves.
    std::process::exit(0);
}

fn print(what: &str, measured: String, baseline: &str, ratio: Option<f64>, bar: &str) {
    let ratio = ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
    println!("{what:<62} {measured:>12} {baseline:>12} {ratio:>8}  {bar}");
}

// What all of them need.

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A guest of tests/fixtures with a version of one's own.
fn guest(name: &str, version: &str) -> Vec<u8> {
    let status = Command::new("cargo")
        .current_dir(root())
        .args([
            "build",
            "-q",
            "--profile",
            "driver",
            "--target",
            "wasm32-wasip2",
            "-p",
            "sandgate-fixtures",
            "--examples",
        ])
        .status()
        .unwrap();
    assert!(status.success());
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root().join("target"), PathBuf::from);
    let component = std::fs::read(target.join(format!("wasm32-wasip2/driver/examples/{name}.wasm"))).unwrap();
    let manifest = std::fs::read_to_string(root().join("tests/fixtures").join(name).join("manifest.yml")).unwrap();
    embed_manifest(&component, &manifest.replace("version: 1.0.0", &format!("version: {version}"))).unwrap()
}

async fn driver(sandbox: &Sandbox, name: &str, version: &str) -> Arc<Driver> {
    Arc::new(sandbox.prepare(guest(name, version)).await.unwrap())
}

fn sandbox() -> Sandbox {
    Sandbox::new(Compiler::InProcess, None).unwrap()
}

fn cloud() -> Arc<dyn Cloud> {
    Arc::new(Enapter {
        hardware_id: "S01".into(),
        channel_id: "s".into(),
        properties_topic: PropertiesTopic::Properties,
        needs_ucm: false,
    })
}

fn outbox(bytes: usize) -> Arc<Outbox> {
    Arc::new(Outbox::new(Bounds { bytes, age: Duration::from_secs(3600) }))
}

fn specification(id: &str, outbox: &Arc<Outbox>) -> Arc<Specification> {
    let device = DeviceId::new(id);
    let cloud = cloud();
    let route = Route { channel: cloud.channel(&device), cloud, outbox: Arc::clone(outbox) };
    let rate = Some(Rate { per_second: 1e9, burst: 1e9 });
    Arc::new(Specification {
        id: device.clone(),
        outlet: Arc::new(Outlet { device, routes: vec![route] }),
        statistics: Arc::default(),
        storage: None,
        tcp: Vec::new(),
        http: Vec::new(),
        buses: BTreeMap::new(),
        limits: Limits { telemetry: rate, logs: rate, cpu: Some(Span(Duration::from_secs(60))), ..Limits::default() },
        cloud_log: LogLevel::Off,
        health_window: Duration::from_millis(1),
    })
}

async fn start(spec: &Arc<Specification>, driver: &Arc<Driver>, configuration: serde_json::Value) -> DeviceHandle {
    let given = json!({ "main": configuration }).as_object().unwrap().clone();
    let prepared = prepare(spec, Arc::clone(driver), given).await.unwrap();
    DeviceHandle::start(Arc::clone(spec), prepared, Arc::new(Journal::in_memory()), Arc::new(Receipts::in_memory()))
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() * 99 / 100]
}

fn micros(time: Duration) -> String {
    format!("{:.1} µs", time.as_secs_f64() * 1e6)
}

// One timer call that sends one sample of four attributes.

async fn sandbox_cost() {
    const CALLS: u32 = 20_000;
    const ROUNDS: usize = 9;
    let sandbox = sandbox();
    let driver = driver(&sandbox, "bench", "1.0.0").await;
    let (mut guest, mut native) = (Vec::new(), Vec::new());
    // A small outbox, so that both sides drop the oldest all the time.
    let outbox = outbox(1 << 16);
    let spec = specification("bench", &outbox);
    let given = json!({"main": {"interval_ms": 1.0, "burst": 1}}).as_object().unwrap().clone();
    let mut instance = prepare(&spec, Arc::clone(&driver), given).await.unwrap().into_started("bench").await.unwrap();
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        for _ in 0..CALLS {
            instance.on_timer(1).await.unwrap().unwrap();
        }
        guest.push(begin.elapsed() / CALLS);
        let begin = Instant::now();
        for count in 0..CALLS {
            native_call(&driver.manifest, &spec, i64::from(count));
        }
        native.push(begin.elapsed() / CALLS);
    }
    let (guest, native) = (median(guest), median(native));
    let ratio = guest.as_secs_f64() / native.as_secs_f64();
    let what = "timer call with one sample, guest to publication, vs native";
    print(what, micros(guest), &micros(native), Some(ratio), "<= 6 µs and <= 4");
}

/// The same driver without a sandbox: makes the same values, checks them
/// against the same manifest, sends them the same way.
fn native_call(manifest: &Manifest, spec: &Specification, count: i64) {
    let (count, voltage, power, on) = core::values(count);
    let attribute = |name: &str, value| Attribute { name: name.to_owned(), value };
    let attributes = vec![
        attribute("count", Value::Integer(count)),
        attribute("voltage", Value::Float(voltage)),
        attribute("power", Value::Float(power)),
        attribute("on", Value::Boolean(on)),
    ];
    for attribute in &attributes {
        let field = manifest.blueprint.telemetry.get(&attribute.name).unwrap();
        field.check(&attribute.value, |_| false).unwrap();
    }
    let time = now();
    spec.statistics.sample(time, &attributes);
    spec.outlet.send(time, &Uplink::Telemetry { time, attributes: &attributes, alerts: &Alerts::None });
}

// Resident memory of an idle device.

async fn memory() {
    const DEVICES: usize = 1000;
    let sandbox = sandbox();
    let driver = driver(&sandbox, "bench", "1.0.0").await;
    let outbox = outbox(1 << 20);
    let configuration = json!({"interval_ms": 3_600_000.0});
    let warm = start(&specification("warm", &outbox), &driver, configuration.clone()).await;
    let before = resident_memory();
    let mut handles = Vec::new();
    for number in 0..DEVICES {
        handles.push(start(&specification(&format!("d{number}"), &outbox), &driver, configuration.clone()).await);
    }
    // Each has answered, so each has started.
    for handle in &handles {
        ping(handle, "ready").await;
    }
    let each = (resident_memory() - before) / DEVICES as u64;
    print(
        "resident memory of an idle device, of 1,000",
        format!("{:.1} KiB", each as f64 / 1024.0),
        "",
        None,
        "<= 64 KiB",
    );
    drop((warm, handles));
}

async fn ping(handle: &DeviceHandle, id: &str) {
    let (reply, done) = oneshot::channel();
    let request = CommandRequest { id: id.to_owned(), name: "ping".into(), arguments: serde_json::Map::new() };
    handle.command(request, Some(reply)).unwrap();
    done.await.unwrap().unwrap();
}

// 1,000 swaps under 1,000 samples a second.

async fn swaps() {
    const SWAPS: usize = 1000;
    let sandbox = sandbox();
    let drivers = [driver(&sandbox, "bench", "1.0.0").await, driver(&sandbox, "bench", "1.0.1").await];
    let outbox = outbox(1 << 30);
    let spec = specification("bench", &outbox);
    let configuration = json!({"interval_ms": 1.0, "burst": 4});
    let handle = start(&spec, &drivers[0], configuration.clone()).await;
    let given = json!({ "main": configuration }).as_object().unwrap().clone();
    let mut pauses = Vec::new();
    let begin = Instant::now();
    for number in 0..SWAPS {
        let prepared = prepare(&spec, Arc::clone(&drivers[(number + 1) % 2]), given.clone()).await.unwrap();
        let ask = |reply| Input::Swap(Box::new(prepared), "bench".into(), reply);
        let receipt = handle.ask(ask).await.unwrap();
        assert_eq!(receipt.outcome, sandgate::receipt::Outcome::Accepted, "{receipt}");
        pauses.push(Duration::from_micros(receipt.pause_us));
        // Timers run on between two swaps.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let seconds = begin.elapsed().as_secs_f64();
    handle.ask(Input::Stop).await.unwrap();
    let mut counts = Vec::new();
    while let Some((sequence, publication)) = outbox.next() {
        let sample: serde_json::Value = serde_json::from_slice(&publication.payload).unwrap();
        counts.extend(sample["count"].as_u64());
        outbox.acknowledge(sequence);
    }
    let last = counts.iter().copied().max().unwrap();
    let mut unique = counts.clone();
    unique.sort_unstable();
    unique.dedup();
    let (lost, doubled) = (last as usize - unique.len(), counts.len() - unique.len());
    let rate = counts.len() as f64 / seconds;
    print(
        &format!("swap pause, p50 of {SWAPS} under {rate:.0} samples/s"),
        micros(median(pauses.clone())),
        "",
        None,
        "",
    );
    print(
        &format!("swap pause, p99; lost {lost}, duplicated {doubled}"),
        micros(p99(pauses)),
        "",
        None,
        "<= 2 ms, 0, 0",
    );
}

// From a trap to the next answer.

async fn restart_after_trap() {
    const TRAPS: usize = 200;
    let sandbox = sandbox();
    let driver = driver(&sandbox, "hostile", "1.0.0").await;
    let outbox = outbox(1 << 24);
    let spec = specification("trap", &outbox);
    let handle = start(&spec, &driver, json!({"act": "trap in handle-command"})).await;
    let mut times = Vec::new();
    for number in 0..TRAPS {
        let (reply, done) = oneshot::channel();
        let request =
            CommandRequest { id: format!("c{number}"), name: "act".into(), arguments: serde_json::Map::new() };
        let begin = Instant::now();
        handle.command(request, Some(reply)).unwrap();
        // The answer comes after the fresh start.
        done.await.unwrap().unwrap_err();
        times.push(begin.elapsed());
        assert_eq!(handle.status.borrow().phase, Phase::Running);
        // By hand, so that the next crash counts as the first.
        handle.ask(Input::Restart).await.unwrap();
    }
    let what = "command that traps to serving again, p99 of first restarts";
    print(what, micros(p99(times)), "", None, "<= 5 ms");
}

// Through mosquitto.

struct Mosquitto(Child, u16);

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn mosquitto_is_here() -> bool {
    Command::new("sh").args(["-c", "command -v mosquitto >/dev/null"]).status().unwrap().success()
}

fn mosquitto(folder: &Path) -> Mosquitto {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let path = folder.join("mosquitto.conf");
    std::fs::write(
        &path,
        format!("user root\nlistener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\n"),
    )
    .unwrap();
    let child = Command::new("mosquitto").arg("-c").arg(path).stderr(Stdio::null()).spawn().unwrap();
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        std::thread::sleep(Duration::from_millis(10));
    }
    Mosquitto(child, port)
}

fn options(name: &str, port: u16) -> MqttOptions {
    let mut options = MqttOptions::new(name, "127.0.0.1", port);
    options.set_inflight(256);
    options
}

/// Starts a session and waits until it is connected.
async fn session(port: u16, outbox: &Arc<Outbox>, handles: &[&DeviceHandle]) -> watch::Sender<Arc<Picture>> {
    let cloud = cloud();
    let ids: Vec<DeviceId> = handles.iter().map(|handle| handle.spec.id.clone()).collect();
    let devices: HashMap<_, _> = handles.iter().map(|handle| (handle.spec.id.clone(), (*handle).clone())).collect();
    let picture = Picture { table: Table::new(&*cloud, ids.iter()), greeting: Greeting::default(), devices };
    let (sender, pictures) = watch::channel(Arc::new(picture));
    let (status, mut states) = watch::channel(SessionStatus::default());
    let (gateway, _) = mpsc::channel(1);
    let communication = Communication {
        host: "127.0.0.1".into(),
        port,
        hardware_id: "S01".into(),
        channel_id: "s".into(),
        credentials: Credentials::None,
        tls: None,
        needs_ucm: false,
    };
    let session = Session {
        name: "bench".into(),
        cloud,
        communication,
        client_id: "bench".into(),
        qos: 1,
        keep_alive: Duration::from_secs(60),
        outbox: Arc::clone(outbox),
        picture: pictures,
        gateway,
        status,
        refused: Arc::default(),
    };
    tokio::spawn(session.run());
    states.wait_for(|status| status.connected).await.unwrap();
    sender
}

async fn throughput() {
    const MESSAGES: u64 = 60_000;
    const ROUNDS: usize = 5;
    let folder = tempfile::tempdir().unwrap();
    let broker = mosquitto(folder.path());
    let sandbox = sandbox();
    let driver = driver(&sandbox, "bench", "1.0.0").await;
    let payload = sample_payload();
    let mut ratios = Vec::new();
    let (mut ours, mut bares) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let bare = bare_throughput(broker.1, &payload, MESSAGES).await;
        let own = own_throughput(broker.1, &driver, MESSAGES, round).await;
        ratios.push(own / bare);
        ours.push(own);
        bares.push(bare);
    }
    ratios.sort_by(f64::total_cmp);
    ours.sort_by(f64::total_cmp);
    bares.sort_by(f64::total_cmp);
    let show = |rates: &[f64]| format!("{:.0}/s", rates[ROUNDS / 2]);
    let what = "driver to broker, QoS 1, vs a bare rumqttc loop";
    print(what, show(&ours), &show(&bares), Some(ratios[ROUNDS / 2]), ">= 0.9");
}

fn sample_payload() -> Vec<u8> {
    json!({"timestamp": now() / 1000, "count": 123_456, "voltage": 231.4, "power": 148.5, "on": true})
        .to_string()
        .into_bytes()
}

async fn bare_throughput(port: u16, payload: &[u8], messages: u64) -> f64 {
    let (client, mut events) = AsyncClient::new(options("bare", port), 512);
    let payload = payload.to_vec();
    let publish = tokio::spawn(async move {
        for _ in 0..messages {
            client
                .publish("v1/from/S01/s--bench/v1/telemetry", QoS::AtLeastOnce, false, payload.clone())
                .await
                .unwrap();
        }
        // The loop below ends when the client is gone.
        client
    });
    let mut acknowledged = 0;
    let mut begin = Instant::now();
    while acknowledged < messages {
        match events.poll().await.unwrap() {
            Event::Incoming(Packet::ConnAck(_)) => begin = Instant::now(),
            Event::Incoming(Packet::PubAck(_)) => acknowledged += 1,
            _ => {}
        }
    }
    let rate = messages as f64 / begin.elapsed().as_secs_f64();
    drop(publish.await.unwrap());
    rate
}

async fn own_throughput(port: u16, driver: &Arc<Driver>, messages: u64, round: usize) -> f64 {
    let outbox = outbox(1 << 30);
    let spec = specification(&format!("bench{round}"), &outbox);
    // As many samples as a busy gateway could make: the broker is the limit.
    let handle = start(&spec, driver, json!({"interval_ms": 1.0, "burst": 100})).await;
    let _picture = session(port, &outbox, &[&handle]).await;
    let (begin, first) = (Instant::now(), outbox.stats().delivered);
    let mut stopped = false;
    loop {
        let stats = outbox.stats();
        if stats.delivered - first >= messages {
            break;
        }
        if !stopped && stats.appended >= messages + 1000 {
            handle.ask(Input::Stop).await.unwrap();
            stopped = true;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    messages as f64 / begin.elapsed().as_secs_f64()
}

async fn command_round_trip() {
    const TRIPS: usize = 2000;
    let folder = tempfile::tempdir().unwrap();
    let broker = mosquitto(folder.path());
    let sandbox = sandbox();
    let driver = driver(&sandbox, "bench", "1.0.0").await;
    let outbox = outbox(1 << 24);
    let handle = start(&specification("bench", &outbox), &driver, json!({"interval_ms": 0.0})).await;
    let _picture = session(broker.1, &outbox, &[&handle]).await;
    echo(broker.1).await;
    let own =
        trips(broker.1, "v1/to/S01/s--bench/v1/command/requests", "v1/from/S01/s--bench/v1/command/responses", TRIPS)
            .await;
    let bare = trips(broker.1, "echo/requests", "echo/responses", TRIPS).await;
    let (own, bare) = (median(own), median(bare));
    let ratio = own.as_secs_f64() / bare.as_secs_f64();
    print(
        "command round trip through the broker, p50, vs a bare echo",
        micros(own),
        &micros(bare),
        Some(ratio),
        "<= 1.5",
    );
}

/// Answers on a topic what comes on another, as barely as rumqttc can.
async fn echo(port: u16) {
    let mut options = options("echo", port);
    options.set_keep_alive(Duration::from_secs(60));
    let (client, mut events) = AsyncClient::new(options, 100);
    events.network_options.set_tcp_nodelay(true);
    client.subscribe("echo/requests", QoS::AtLeastOnce).await.unwrap();
    let (ready, is_ready) = oneshot::channel();
    tokio::spawn(async move {
        let mut ready = Some(ready);
        while let Ok(event) = events.poll().await {
            match event {
                Event::Incoming(Packet::SubAck(_)) => drop(ready.take().map(|ready| ready.send(()))),
                Event::Incoming(Packet::Publish(publish)) => {
                    client.publish("echo/responses", QoS::AtLeastOnce, false, publish.payload).await.unwrap();
                }
                _ => {}
            }
        }
    });
    is_ready.await.unwrap();
}

async fn trips(port: u16, request: &str, response: &str, number: usize) -> Vec<Duration> {
    let (client, mut events) = AsyncClient::new(options(&format!("asker-{}", fastrand::u32(..)), port), 100);
    events.network_options.set_tcp_nodelay(true);
    client.subscribe(response, QoS::AtLeastOnce).await.unwrap();
    let (answers, mut arrived) = mpsc::channel(100);
    tokio::spawn(async move {
        while let Ok(event) = events.poll().await {
            if matches!(event, Event::Incoming(Packet::SubAck(_) | Packet::Publish(_)))
                && answers.send(()).await.is_err()
            {
                return;
            }
        }
    });
    arrived.recv().await.unwrap();
    let mut times = Vec::new();
    for trip in 0..number {
        let payload = json!({"id": format!("{request}{trip}"), "name": "ping"}).to_string();
        let begin = Instant::now();
        client.publish(request, QoS::AtLeastOnce, false, payload).await.unwrap();
        arrived.recv().await.unwrap();
        times.push(begin.elapsed());
    }
    times
}
