//! An outbox on a real disk that holds far more than its memory may.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::*;
use crate::message::{DeviceId, Publication};
use crate::outbox::{Bounds, Class, Drops, Stats};

/// So little that nearly all is on the disk only.
const MEMORY: usize = 64 << 10;
const DEVICES: usize = 3;

fn outbox(folder: &Path) -> Arc<Outbox> {
    let (bytes, age) = (64 << 20, Duration::from_secs(3600));
    let outbox = Arc::new(Outbox::new(Bounds { bytes, memory: MEMORY, age, ..Bounds::default() }));
    outbox.keep_in(folder, Duration::from_millis(5)).unwrap();
    outbox
}

fn append(outbox: &Outbox, number: usize, class: Class) {
    let payload = format!("{{\"n\":{number},\"text\":\"{}\"}}", "x".repeat(number % 100));
    let publication =
        Publication { topic: format!("t{}", number % 2).into(), payload: payload.into(), joins: false, stamp: None };
    let device = DeviceId::new(&format!("d{}", number % DEVICES));
    outbox.append(&device, class, Moment::now(), publication);
}

/// Properties and log lines now and then.
fn class_of(number: usize) -> Class {
    match number % 50 {
        7 => Class::Keep,
        10..15 => Class::Log,
        _ => Class::Telemetry,
    }
}

fn append_many(outbox: &Outbox, numbers: std::ops::Range<usize>) {
    numbers.for_each(|number| append(outbox, number, class_of(number)));
}

fn number_of(publication: &Publication) -> usize {
    let json: serde_json::Value = serde_json::from_slice(&publication.payload).unwrap();
    json["n"].as_u64().unwrap() as usize
}

/// Takes and acknowledges all, which are so many; their numbers by device.
async fn drain(outbox: &Outbox, count: usize) -> BTreeMap<DeviceId, Vec<usize>> {
    let all = drain_some(outbox, count).await;
    assert_eq!((outbox.stats().waiting, outbox.stats().bytes), (0, 0));
    all
}

/// Takes and acknowledges until this many have come.
async fn drain_some(outbox: &Outbox, count: usize) -> BTreeMap<DeviceId, Vec<usize>> {
    let mut all = BTreeMap::<DeviceId, Vec<usize>>::new();
    let mut left = count;
    while left > 0 {
        let Some(batch) = outbox.take(tokio::time::Instant::now()) else {
            outbox.changed().await;
            continue;
        };
        for (sequence, publication) in batch.parts {
            all.entry(batch.device.clone()).or_default().push(number_of(&publication));
            outbox.acknowledge(sequence);
            left -= 1;
        }
        let loaded: usize = outbox.lock().entries.values().map(|entry| entry.message.cost()).sum();
        assert!(loaded <= MEMORY, "{loaded} bytes are loaded");
    }
    all
}

fn expected(numbers: impl Iterator<Item = usize>) -> BTreeMap<DeviceId, Vec<usize>> {
    let mut all = BTreeMap::<DeviceId, Vec<usize>>::new();
    numbers.for_each(|number| all.entry(DeviceId::new(&format!("d{}", number % DEVICES))).or_default().push(number));
    all
}

fn loaded(outbox: &Outbox) -> usize {
    outbox.lock().entries.len()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[tokio::test]
async fn what_memory_has_no_room_for_waits_on_the_disk_and_goes_in_its_order() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = outbox(folder.path());
    append_many(&outbox, 0..20_000);
    assert!(loaded(&outbox) < 1000, "{}", loaded(&outbox));
    assert_eq!(outbox.stats().waiting, 20_000);
    // What is appended meanwhile comes after it, an answer before.
    append(&outbox, 20_000, Class::Answer);
    append_many(&outbox, 20_001..30_000);
    let first = outbox.take(tokio::time::Instant::now());
    let second = outbox.take(tokio::time::Instant::now());
    let third = outbox.take(tokio::time::Instant::now());
    let taken = [first, second, third].map(|batch| number_of(&batch.unwrap().parts[0].1));
    assert!(taken.contains(&20_000), "{taken:?}");
    // Their connection is gone.
    outbox.rewind();
    let mut all = drain(&outbox, 30_000).await;
    let answered = all.get_mut(&DeviceId::new(&format!("d{}", 20_000 % DEVICES))).unwrap();
    let place = answered.iter().position(|number| *number == 20_000).unwrap();
    assert_eq!(answered.remove(place), 20_000);
    assert!(place < 10, "{place}");
    assert_eq!(all, expected((0..20_000).chain(20_001..30_000)));
}

#[tokio::test]
async fn a_start_takes_over_what_waits_without_loading_it() {
    let folder = tempfile::tempdir().unwrap();
    let before = outbox(folder.path());
    append_many(&before, 0..20_000);
    append(&before, 20_000, Class::Answer);
    for _ in 0..30 {
        let batch = before.take(tokio::time::Instant::now()).unwrap();
        before.acknowledge(batch.parts[0].0);
    }
    before.flush().await.unwrap();
    drop(before);
    let after = outbox(folder.path());
    assert_eq!(after.stats().waiting, 20_001 - 30);
    assert!(loaded(&after) < 1000, "{}", loaded(&after));
    append_many(&after, 20_001..21_000);
    let all = drain(&after, 21_000 - 30).await;
    let sent: usize = all.values().map(Vec::len).sum();
    assert_eq!(sent, 21_000 - 30);
    for (device, numbers) in all {
        let numbers: Vec<usize> = numbers.into_iter().filter(|number| *number != 20_000).collect();
        assert!(numbers.is_sorted(), "{device}");
    }
    after.flush().await.unwrap();
}

#[tokio::test]
async fn a_batch_is_put_together_of_what_was_stored() {
    let folder = tempfile::tempdir().unwrap();
    let batching = crate::outbox::Batching { count: 10, bytes: 4000, age: Duration::from_millis(100) };
    let age = Duration::from_secs(3600);
    let outbox = Arc::new(Outbox::new(Bounds { bytes: 64 << 20, memory: MEMORY, age, batching, backfill: None }));
    outbox.keep_in(folder.path(), Duration::from_millis(5)).unwrap();
    let device = DeviceId::new("a");
    for _ in 0..5000 {
        let publication = Publication { topic: "t".into(), payload: "1".into(), joins: true, stamp: None };
        outbox.append(&device, Class::Telemetry, Moment::now(), publication);
    }
    let (mut messages, mut batches) = (0, 0);
    while messages < 5000 {
        let Some(batch) = outbox.take(tokio::time::Instant::now()) else {
            // The last few wait for company.
            let _ = tokio::time::timeout(Duration::from_millis(100), outbox.changed()).await;
            continue;
        };
        (messages, batches) = (messages + batch.parts.len(), batches + 1);
        batch.parts.iter().for_each(|(sequence, _)| outbox.acknowledge(*sequence));
    }
    assert!(batches < 1000, "{batches}");
}

#[tokio::test]
async fn what_the_disk_does_not_give_back_is_counted_and_the_rest_goes() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = outbox(folder.path());
    append_many(&outbox, 0..20_000);
    outbox.flush().await.unwrap();
    let file = files(folder.path()).remove(0);
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 8;
    bytes[middle..middle + 1000].fill(0xff);
    // In the same file, as a disk would damage it.
    std::os::unix::fs::FileExt::write_all_at(
        &std::fs::OpenOptions::new().write(true).open(&file).unwrap(),
        &bytes[middle..middle + 1000],
        middle as u64,
    )
    .unwrap();
    let mut sent = 0;
    while outbox.stats().waiting > 0 {
        let Some(batch) = outbox.take(tokio::time::Instant::now()) else {
            outbox.changed().await;
            continue;
        };
        outbox.acknowledge(batch.parts[0].0);
        sent += 1;
    }
    let Stats { dropped, delivered, .. } = outbox.stats();
    let damaged: u64 = outbox.take_drops().values().map(|Drops { damaged, .. }| damaged).sum();
    assert_eq!((delivered, dropped), (sent, damaged));
    assert!((1..20).contains(&damaged) && delivered + dropped == 20_000, "{damaged}");
}

#[tokio::test]
async fn a_folder_that_is_removed_costs_nothing_that_waits() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("outbox");
    let before = outbox(&place);
    append_many(&before, 0..20_000);
    before.flush().await.unwrap();
    std::fs::remove_dir_all(&place).unwrap();
    // Noticed with the next group.
    append_many(&before, 20_000..20_010);
    while before.flush().await.is_err() || !place.exists() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(before.stats().waiting, 20_010);
    drop(before);
    let after = outbox(&place);
    assert_eq!(drain(&after, 20_010).await, expected(0..20_010));
}

#[tokio::test]
async fn what_is_live_passes_by_what_is_stored() {
    let folder = tempfile::tempdir().unwrap();
    let age = Duration::from_secs(3600);
    let bounds = Bounds { bytes: 64 << 20, memory: MEMORY, age, backfill: Some(50), ..Bounds::default() };
    let outbox = Arc::new(Outbox::new(bounds));
    outbox.keep_in(folder.path(), Duration::from_millis(5)).unwrap();
    append_many(&outbox, 0..6000);
    outbox.connected();
    // Some go, so that there is room in memory.
    let early = drain_some(&outbox, 300).await;
    append_many(&outbox, 6000..6030);
    let mixed = drain_some(&outbox, 120).await;
    let live = |numbers: &[usize]| numbers.iter().filter(|number| **number >= 6000).copied().collect::<Vec<_>>();
    let mut seen: Vec<usize> = mixed.values().flat_map(|numbers| live(numbers)).collect();
    seen.sort_unstable();
    assert_eq!(seen, (6000..6030).collect::<Vec<_>>());
    // So many that not all of them fit into memory.
    append_many(&outbox, 6030..12_000);
    let late = drain(&outbox, 12_000 - 420).await;
    for device in early.keys() {
        let all = [&early[device][..], &mixed[device], &late[device]].concat();
        let (live, waited): (Vec<usize>, Vec<usize>) = all.iter().partition(|number| **number >= 6000);
        assert!(live.is_sorted() && waited.is_sorted(), "{device}");
        assert_eq!(all.len(), 4000);
    }
}

#[tokio::test]
async fn properties_on_the_disk_are_replaced_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = outbox(folder.path());
    append_many(&outbox, 0..1000);
    let device = DeviceId::new("d0");
    for number in 1000..1010 {
        let payload = format!("{{\"n\":{number}}}").into();
        let publication = Publication { topic: "p".into(), payload, joins: false, stamp: None };
        outbox.append_properties(&device, 1, Moment::now(), publication);
    }
    assert_eq!((outbox.stats().replaced, outbox.stats().waiting), (9, 1001));
    let all = drain(&outbox, 1001).await;
    assert_eq!(all[&device].last(), Some(&1009));
    outbox.flush().await.unwrap();
    drop(outbox);
    assert_eq!(self::outbox(folder.path()).stats().waiting, 0);
}

#[test]
fn without_a_disk_memory_is_the_bound() {
    let (bytes, age) = (64 << 20, Duration::from_secs(3600));
    let outbox = Outbox::new(Bounds { bytes, memory: MEMORY, age, ..Bounds::default() });
    append(&outbox, 0, Class::Answer);
    append_many(&outbox, 1..5000);
    let stats = outbox.stats();
    assert!(stats.bytes <= MEMORY && stats.bytes > MEMORY * 9 / 10, "{}", stats.bytes);
    assert_eq!(stats.dropped + stats.waiting as u64, 5000);
    let first = outbox.take(tokio::time::Instant::now()).unwrap();
    let second = outbox.take(tokio::time::Instant::now()).unwrap();
    let third = outbox.take(tokio::time::Instant::now()).unwrap();
    assert!([first, second, third].iter().any(|batch| number_of(&batch.parts[0].1) == 0), "the answer is kept");
}

#[tokio::test]
async fn room_on_the_disk_is_fair_and_age_counts_there_too() {
    let folder = tempfile::tempdir().unwrap();
    let age = Duration::from_secs(3600);
    let outbox = Arc::new(Outbox::new(Bounds { bytes: 1 << 20, memory: MEMORY, age, ..Bounds::default() }));
    outbox.keep_in(folder.path(), Duration::from_millis(5)).unwrap();
    let text = |number: usize| format!("{{\"n\":{number}}}");
    let send = |device: &str, number: usize, moment: Moment| {
        let publication = Publication { topic: "t".into(), payload: text(number).into(), joins: false, stamp: None };
        outbox.append(&DeviceId::new(device), Class::Telemetry, moment, publication);
    };
    let now = Moment::now();
    let old = Moment { steady: now.steady - 3_599_000, ..now };
    (0..100).for_each(|number| send("quiet", number, old));
    (0..20_000).for_each(|number| send("loud", number, now));
    let drops = |device: &str| outbox.state().dropped.get(device).copied().unwrap_or_default();
    assert_eq!((outbox.count(&DeviceId::new("quiet")), drops("quiet")), (100, Drops::default()));
    assert!(drops("loud").thinned > 5000 && outbox.stats().bytes <= 1 << 20, "{:?}", drops("loud"));
    // Later the old ones are too old; the device learns it when it sends something.
    send("quiet", 100, Moment { steady: now.steady + 60_000, ..now });
    assert_eq!((outbox.count(&DeviceId::new("quiet")), drops("quiet").for_age), (1, 100));
    assert_eq!(outbox.discard(&DeviceId::new("loud")) as u64 + drops("loud").total(), 20_000);
    assert_eq!(outbox.stats().waiting, 1);
}

/// A disk that does not answer, as far as who appends can see, or does again.
fn stall(outbox: &Outbox, does: bool) {
    let mut inner = outbox.inner();
    let keeping = inner.keeping.as_mut().unwrap();
    keeping.syncing = does.then(|| Instant::now() - 2 * STALLED);
}

/// Whatever happens in whatever order: all arrives, in its order, and nothing is counted wrong.
async fn live_at_random(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let folder = tempfile::tempdir().unwrap();
    let age = Duration::from_secs(3600);
    let backfill = random.bool().then_some(30);
    // So little in some lives that much is dropped.
    let bytes = if random.u8(..3) == 0 { 128 << 10 } else { 64 << 20 };
    let bounds = Bounds { bytes, memory: 32 << 10, age, backfill, ..Bounds::default() };
    let outbox = Arc::new(Outbox::new(bounds));
    outbox.keep_in(folder.path(), Duration::from_millis(1)).unwrap();
    let (mut number, mut on_the_way) = (0, Vec::new());
    let mut arrived = BTreeMap::<(DeviceId, String), Vec<usize>>::new();
    let mut note = |device: &DeviceId, publication: &Publication| {
        let numbers = arrived.entry((device.clone(), publication.topic.to_string())).or_default();
        let number = number_of(publication);
        // What had no proof goes again.
        if !numbers.contains(&number) {
            numbers.push(number);
        }
    };
    for _ in 0..400 {
        match random.u32(..100) {
            0..50 => {
                for _ in 0..random.usize(..30) {
                    append(&outbox, number, class_of(number));
                    number += 1;
                }
            }
            50..75 => {
                for _ in 0..random.usize(..40) {
                    let Some(batch) = outbox.take(tokio::time::Instant::now()) else { break };
                    for (sequence, publication) in batch.parts {
                        note(&batch.device, &publication);
                        on_the_way.push(sequence);
                    }
                }
            }
            75..88 => on_the_way.drain(..).for_each(|sequence| outbox.acknowledge(sequence)),
            88..91 => {
                on_the_way.clear();
                outbox.rewind();
                outbox.connected();
            }
            91..94 => outbox.send_again(&std::mem::take(&mut on_the_way), random.bool()),
            94..98 => stall(&outbox, random.bool()),
            _ => {
                let admitted = (0..DEVICES).filter(|_| random.u32(..4) > 0);
                outbox.admit(admitted.map(|device| DeviceId::new(&format!("d{device}"))).collect());
            }
        }
    }
    stall(&outbox, false);
    outbox.admit((0..DEVICES).map(|device| DeviceId::new(&format!("d{device}"))).collect());
    outbox.rewind();
    while outbox.stats().waiting > 0 {
        let Some(batch) = outbox.take(tokio::time::Instant::now()) else {
            let woken = tokio::time::timeout(Duration::from_secs(60), outbox.changed()).await;
            assert!(woken.is_ok(), "seed {seed}: {} wait and nothing goes", outbox.stats().waiting);
            continue;
        };
        for (sequence, publication) in batch.parts {
            note(&batch.device, &publication);
            outbox.acknowledge(sequence);
        }
    }
    let mut all: Vec<usize> = arrived.values().flatten().copied().collect();
    all.sort_unstable();
    all.dedup();
    // Where there is no room for all, there is none for what is on its way either.
    let stats = outbox.stats();
    assert!(all.len() as u64 + stats.dropped >= number as u64 && stats.rejected == 0, "seed {seed}: {stats:?}");
    assert_eq!(stats.delivered + stats.dropped, number as u64, "seed {seed}");
    if backfill.is_none() {
        arrived.iter().for_each(|(of, numbers)| assert!(numbers.is_sorted(), "seed {seed}, {of:?}: {numbers:?}"));
    }
    assert_eq!(outbox.stats().bytes, 0, "seed {seed}");
    outbox.inner().queue.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_all_arrives_in_its_order_and_nothing_is_counted_wrong() {
    // SANDGATE_LIVES sets another number.
    let lives = std::env::var("SANDGATE_LIVES").map_or(60, |text| text.parse().unwrap());
    for seed in 0..lives {
        live_at_random(seed).await;
    }
}

#[tokio::test]
async fn a_disk_that_does_not_give_a_message_is_asked_again_for_a_while_and_damage_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = outbox(folder.path());
    append_many(&outbox, 0..5000);
    let mut inner = outbox.inner();
    let device = DeviceId::new("d0");
    let last = |inner: &Inner| {
        let entry = *inner.queue.devices[&device].shelf.of(Class::Telemetry).back().unwrap();
        (device.clone(), Class::Telemetry, entry)
    };
    let eio = || Err(io::Error::from_raw_os_error(5));
    let entry = last(&inner);
    // It comes in time: all is forgotten.
    assert!((0..9).all(|_| inner.given(&entry, eio()).is_err()));
    let message = inner
        .keeping
        .as_ref()
        .unwrap()
        .log
        .reader(std::slice::from_ref(&entry))
        .read(std::slice::from_ref(&entry), Moment::now());
    assert!(inner.given(&entry, message.into_iter().next().unwrap()).unwrap().is_some());
    assert!((0..9).all(|_| inner.given(&entry, eio()).is_err()));
    assert_eq!(inner.queue.stats.dropped, 0);
    assert_eq!(inner.given(&entry, eio()).unwrap(), None);
    let entry = last(&inner);
    assert_eq!(inner.given(&entry, Err(io::ErrorKind::InvalidData.into())).unwrap(), None);
    assert_eq!((inner.queue.stats.dropped, inner.queue.drops[&device].damaged), (2, 2));
}
