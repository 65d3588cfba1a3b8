//! Measurements through mosquitto, against bare rumqttc.

use std::collections::HashMap;
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use sandgate::cloud::{Cloud, Greeting};
use sandgate::device::{DeviceHandle, Input};
use sandgate::journal::Journal;
use sandgate::message::{SessionName, now};
use sandgate::outbox::Outbox;
use sandgate::router::{Recipient, Table};
use sandgate::sandbox::Driver;
use sandgate::session::enapter::EnapterDialogue;
use sandgate::session::{Contact, Links, Picture, Session, SessionStatus};
use serde_json::json;
use tokio::sync::{mpsc, oneshot, watch};

use crate::print;
use crate::setup::{cloud, driver, median, micros, outbox, parts, sandbox, specification, start, start_with};

pub struct Mosquitto(Child, pub u16);

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn mosquitto_is_here() -> bool {
    Command::new("sh").args(["-c", "command -v mosquitto >/dev/null"]).status().unwrap().success()
}

pub fn mosquitto(folder: &Path) -> Mosquitto {
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

pub fn options(name: &str, port: u16) -> MqttOptions {
    let mut options = MqttOptions::new(name, "127.0.0.1", port);
    options.set_inflight(256);
    options
}

/// Starts a session and waits until it is connected.
pub async fn session(port: u16, outbox: &Arc<Outbox>, handles: &[&DeviceHandle]) -> watch::Sender<Arc<Picture>> {
    session_with(port, outbox, handles, Arc::new(Journal::in_memory(Duration::from_secs(60)))).await
}

async fn session_with(
    port: u16,
    outbox: &Arc<Outbox>,
    handles: &[&DeviceHandle],
    journal: Arc<Journal>,
) -> watch::Sender<Arc<Picture>> {
    let cloud = cloud();
    let channels = handles.iter().map(|handle| {
        let device = handle.spec.id.clone();
        let channel = cloud.device(&device, None).unwrap();
        (Recipient::Device(device), channel)
    });
    // What is not announced as a child may not speak.
    let children = handles.iter().map(|handle| (handle.spec.id.clone(), "bench".to_owned())).collect();
    let greeting = Greeting { children, ..Greeting::default() };
    let devices: HashMap<_, _> = handles.iter().map(|handle| (handle.spec.id.clone(), (*handle).clone())).collect();
    let picture = Picture { table: Table::new(channels), greeting, devices, facts: HashMap::new() };
    let (sender, pictures) = watch::channel(Arc::new(picture));
    let (status, mut states) = watch::channel(SessionStatus::default());
    let (gateway, _) = mpsc::channel(1);
    let (_, questions) = mpsc::channel(1);
    let dialogue = Box::new(EnapterDialogue::new(&SessionName::new("bench"), cloud.clone(), Arc::clone(outbox)));
    let parts = parts(port, outbox, Arc::new(cloud), dialogue);
    let links = Links {
        picture: pictures,
        gateway,
        questions,
        journal,
        contact: Contact::none(),
        status,
        refused: Arc::default(),
    };
    Session::new(&SessionName::new("bench"), parts, links).start();
    states.wait_for(|status| status.connected).await.unwrap();
    sender
}

pub async fn throughput() {
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
        let own = own_throughput(broker.1, &driver, MESSAGES, Kept::InMemory(round)).await;
        ratios.push(own / bare);
        ours.push(own);
        bares.push(bare);
    }
    ratios.sort_by(f64::total_cmp);
    ours.sort_by(f64::total_cmp);
    bares.sort_by(f64::total_cmp);
    let show = |rates: &[f64]| format!("{:.0}/s", rates[ROUNDS / 2]);
    let what = "driver to broker, QoS 1, vs a bare rumqttc loop";
    print(what, show(&ours), &show(&bares), Some(ratios[ROUNDS / 2]), (">= 0.9", ratios[ROUNDS / 2] >= 0.9));
}

pub fn sample_payload() -> Vec<u8> {
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

/// Where an outbox is kept, and in which round.
pub enum Kept {
    InMemory(usize),
    OnDisk(usize, Arc<Outbox>),
}

pub async fn own_throughput(port: u16, driver: &Arc<Driver>, messages: u64, kept: Kept) -> f64 {
    let (round, outbox) = match kept {
        Kept::InMemory(round) => (round, outbox(1 << 30)),
        Kept::OnDisk(round, outbox) => (round, outbox),
    };
    let spec = specification(&format!("bench{round}"), &outbox);
    // More samples than the broker takes, so that the way to it is the limit.
    let handle = start(&spec, driver, json!({"interval_ms": 1.0, "burst": 500})).await;
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

pub async fn command_round_trip() {
    const TRIPS: usize = 200;
    const ROUNDS: usize = 11;
    let folder = tempfile::tempdir().unwrap();
    let broker = mosquitto(folder.path());
    let sandbox = sandbox();
    let driver = driver(&sandbox, "bench", "1.0.0").await;
    let outbox = outbox(1 << 24);
    let (journal, _) = Journal::open(&folder.path().join("commands.jsonl"), Duration::from_secs(60)).unwrap();
    let journal = Arc::new(journal);
    let spec = specification("bench", &outbox);
    let handle = start_with(&spec, &driver, json!({"interval_ms": 0.0}), Arc::clone(&journal)).await;
    let _picture = session_with(broker.1, &outbox, &[&handle], journal).await;
    echo(broker.1, &folder.path().join("echo")).await;
    // In turns, because the machine's pace changes from second to second.
    let (mut owns, mut bares, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (request, response) =
            ("v1/to/S01/s--bench/v1/command/requests", "v1/from/S01/s--bench/v1/command/responses");
        let own = median(trips(broker.1, request, response, TRIPS).await);
        let bare = median(trips(broker.1, "echo/requests", "echo/responses", TRIPS).await);
        ratios.push(own.as_secs_f64() / bare.as_secs_f64());
        owns.push(own);
        bares.push(bare);
    }
    ratios.sort_by(f64::total_cmp);
    let (own, bare, ratio) = (median(owns), median(bares), ratios[ROUNDS / 2]);
    print(
        "command round trip through the broker, p50, vs an echo that syncs a line",
        micros(own),
        &micros(bare),
        Some(ratio),
        ("<= 1.5", ratio <= 1.5),
    );
}

/// Answers on a topic what comes on another, as barely as rumqttc can, once it
/// is on the disk.
async fn echo(port: u16, path: &Path) {
    let mut file = std::fs::File::create(path).unwrap();
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
                    file.write_all(&[b'x'; 200]).unwrap();
                    file.sync_data().unwrap();
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
        let payload = json!({"id": format!("{}{trip}", fastrand::u64(..)), "name": "ping"}).to_string();
        let begin = Instant::now();
        client.publish(request, QoS::AtLeastOnce, false, payload).await.unwrap();
        arrived.recv().await.unwrap();
        times.push(begin.elapsed());
    }
    times
}
