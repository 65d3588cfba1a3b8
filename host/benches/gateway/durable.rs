//! What it costs to keep the outbox on the disk.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sandgate::clock::Moment;
use sandgate::message::{DeviceId, Publication};
use sandgate::outbox::{Bounds, Class, Outbox};
use sandgate::status::resident_memory;

use crate::print;
use crate::setup::{driver, sandbox, specification, start};
use crate::through_broker::{Kept, mosquitto, own_throughput, sample_payload, session};

const ROOM: Bounds = Bounds {
    bytes: 4 << 30,
    memory: 32 << 20,
    backfill: None,
    age: Duration::from_secs(3600),
    batching: sandgate::outbox::Batching { count: 1, bytes: usize::MAX, age: Duration::ZERO },
};
const EVERY: Duration = Duration::from_millis(50);

fn kept(folder: &std::path::Path) -> Arc<Outbox> {
    let outbox = Arc::new(Outbox::new(ROOM));
    outbox.keep_in(folder, EVERY).unwrap();
    outbox
}

fn entry(payload: &[u8]) -> Publication {
    let payload = bytes::Bytes::copy_from_slice(payload);
    Publication { topic: "v1/from/S01/s--bench/v1/telemetry".into(), payload, joins: false, stamp: None }
}

/// Bytes that this process has caused to be written to disks.
fn written() -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: ")).unwrap();
    line.parse().unwrap()
}

/// The way to the broker with and without the disk, beside a socket that does nothing else.
pub async fn throughput() {
    const MESSAGES: u64 = 60_000;
    const ROUNDS: usize = 5;
    let folder = tempfile::tempdir().unwrap();
    let broker = mosquitto(folder.path());
    let sandbox = sandbox();
    let driver = driver(&sandbox, "bench", "1.0.0").await;
    let payload = sample_payload();
    let (mut to_memory, mut to_raw, mut owns, mut raws, mut sizes) = (vec![], vec![], vec![], vec![], vec![]);
    // In turns, because the machine's pace changes from second to second.
    for round in 0..ROUNDS {
        let (port, raw_payload) = (broker.1, payload.clone());
        let raw = tokio::task::spawn_blocking(move || raw_throughput(port, &raw_payload, MESSAGES)).await.unwrap();
        let memory = own_throughput(broker.1, &driver, MESSAGES, Kept::InMemory(round)).await;
        let place = tempfile::tempdir().unwrap();
        let before = written();
        let durable = own_throughput(broker.1, &driver, MESSAGES, Kept::OnDisk(round, kept(place.path()))).await;
        sizes.push((written() - before) as f64 / MESSAGES as f64);
        to_memory.push(durable / memory);
        to_raw.push(durable / raw);
        owns.push(durable);
        raws.push(raw);
    }
    for numbers in [&mut to_memory, &mut to_raw, &mut owns, &mut raws, &mut sizes] {
        numbers.sort_by(f64::total_cmp);
    }
    let middle = |numbers: &[f64]| numbers[ROUNDS / 2];
    let rate = format!("{:.0}/s", middle(&owns));
    let (raw, memory) = (middle(&to_raw), middle(&to_memory));
    let what = "driver to broker with the outbox on the disk, vs a raw socket";
    print(what, rate, &format!("{:.0}/s", middle(&raws)), Some(raw), (">= 0.75", raw >= 0.75));
    let what = "the same, vs the outbox in memory";
    print(what, String::new(), "", Some(memory), (">= 0.95", memory >= 0.95));
    let size = middle(&sizes);
    let what = format!("bytes written to the disk for each message of {} bytes", payload.len());
    print(&what, format!("{size:.0}"), "", None, ("<= 250", size <= 250.0));
}

/// How fast a million messages that wait on the disk go, beside a socket that does nothing else.
pub async fn drain() {
    const MANY: usize = 1_000_000;
    const RAW: u64 = 200_000;
    let folder = tempfile::tempdir().unwrap();
    let broker = mosquitto(folder.path());
    let driver = driver(&sandbox(), "bench", "1.0.0").await;
    let payload = sample_payload();
    let outbox = kept(&folder.path().join("outbox"));
    let device = DeviceId::new("bench");
    (0..MANY).for_each(|_| outbox.append(&device, Class::Telemetry, Moment::now(), entry(&payload)));
    let spec = specification("bench", &outbox);
    let handle = start(&spec, &driver, serde_json::json!({"interval_ms": 0.0})).await;
    let (port, raw_payload) = (broker.1, payload.clone());
    let raw_rate = move || raw_throughput(port, &raw_payload, RAW);
    // Before and after, because the machine's pace changes.
    let before = tokio::task::spawn_blocking(raw_rate.clone()).await.unwrap();
    let begin = Instant::now();
    let _picture = session(broker.1, &outbox, &[&handle]).await;
    while outbox.stats().delivered < MANY as u64 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let own = MANY as f64 / begin.elapsed().as_secs_f64();
    let after = tokio::task::spawn_blocking(raw_rate).await.unwrap();
    let raw = (before + after) / 2.0;
    let ratio = own / raw;
    let what = "drain of a million messages on the disk, vs a raw socket";
    print(what, format!("{own:.0}/s"), &format!("{raw:.0}/s"), Some(ratio), (">= 0.75", ratio >= 0.75));
}

/// Messages a second of a socket that writes the same packets, encoded before,
/// with as many on the way as a session has.
fn raw_throughput(port: u16, payload: &[u8], messages: u64) -> f64 {
    const WINDOW: u64 = 2048;
    const TOPIC: &[u8] = b"v1/from/S01/s--bench/v1/telemetry";
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    socket.set_nodelay(true).unwrap();
    socket.write_all(b"\x10\x0f\x00\x04MQTT\x04\x02\x00\x3c\x00\x03raw").unwrap();
    let mut answer = [0; 4];
    socket.read_exact(&mut answer).unwrap();
    let mut reader = socket.try_clone().unwrap();
    let size = 2 + TOPIC.len() + 2 + payload.len();
    let packet = |number: u64| {
        let id = (number % WINDOW + 1) as u16;
        let mut packet = vec![0x32];
        let mut rest = size;
        while rest > 127 {
            packet.push((rest & 127) as u8 | 128);
            rest >>= 7;
        }
        packet.push(rest as u8);
        packet.extend((TOPIC.len() as u16).to_be_bytes());
        packet.extend(TOPIC);
        packet.extend(id.to_be_bytes());
        packet.extend(payload);
        packet
    };
    let packets: Vec<Vec<u8>> = (0..WINDOW).map(packet).collect();
    let begin = Instant::now();
    let (mut sent, mut proved, mut burst, mut acks) = (0, 0, Vec::new(), vec![0; 64 << 10]);
    let mut left = 0;
    while proved < messages {
        burst.clear();
        while sent < messages && sent - proved < WINDOW && burst.len() < 64 << 10 {
            burst.extend(&packets[(sent % WINDOW) as usize]);
            sent += 1;
        }
        socket.write_all(&burst).unwrap();
        // Each PUBACK has four bytes.
        let size = reader.read(&mut acks).unwrap() + left;
        proved += (size / 4) as u64;
        left = size % 4;
    }
    messages as f64 / begin.elapsed().as_secs_f64()
}

/// Appending, the lag at a steady rate, and a start with a million messages.
pub async fn outbox() {
    const MANY: usize = 1_000_000;
    let (device, payload) = (DeviceId::new("bench"), [b'x'; 128]);
    let publications: Vec<Publication> = (0..1000).map(|_| entry(&payload)).collect();
    // Before there is much that the system still has to write.
    let place = tempfile::tempdir().unwrap();
    let outbox = kept(place.path());
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    for number in 0..5000 {
        tick.tick().await;
        for place in 0..10 {
            outbox.append(&device, Class::Telemetry, Moment::now(), publications[(number * 10 + place) % 1000].clone());
        }
    }
    let lag = outbox.durability().lag_p99_ms;
    let what = "from accepted to durable at 10,000/s, p99";
    print(what, format!("{lag:.0} ms"), "", None, ("<= 100 ms", lag <= 100.0));
    drop(outbox);

    let place = tempfile::tempdir().unwrap();
    let outbox = kept(place.path());
    let before = written();
    let begin = Instant::now();
    for number in 0..MANY {
        outbox.append(&device, Class::Telemetry, Moment::now(), publications[number % 1000].clone());
    }
    let rate = MANY as f64 / begin.elapsed().as_secs_f64();
    outbox.flush().await.unwrap();
    let size = (written() - before) as f64 / MANY as f64;
    print("messages of 128 bytes appended", format!("{rate:.0}/s"), "", None, (">= 500,000/s", rate >= 500_000.0));
    let what = "bytes written to the disk for each, all kept";
    print(what, format!("{size:.0}"), "", None, ("<= 400", size <= 400.0));
    drop(outbox);
    let memory = resident_memory();
    let begin = Instant::now();
    let outbox = kept(place.path());
    let (time, more) = (begin.elapsed(), resident_memory().saturating_sub(memory) as f64 / f64::from(1 << 20));
    assert_eq!(outbox.stats().waiting, MANY);
    let what = "start with a million messages that wait";
    print(what, format!("{:.2} s", time.as_secs_f64()), "", None, ("<= 1 s", time <= Duration::from_secs(1)));
    print("the same: memory beyond an empty one", format!("{more:.0} MiB"), "", None, ("<= 64 MiB", more <= 64.0));
}
