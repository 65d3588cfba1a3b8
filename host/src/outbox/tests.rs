//! The order, the bounds and the counts of an outbox in memory.

use super::stored::OVERHEAD;
use super::*;

fn outbox(bytes: usize) -> Outbox {
    Outbox::new(Bounds { bytes, age: Duration::from_secs(60), ..Bounds::default() })
}

fn batching() -> Outbox {
    let batching = Batching { count: 3, bytes: 1000, age: Duration::from_secs(1) };
    Outbox::new(Bounds { bytes: 1 << 20, age: Duration::from_secs(60), batching, ..Bounds::default() })
}

/// Appends a message that may join others on its topic.
fn join(outbox: &Outbox, device: &str, class: Class, topic: &str) -> Sequence {
    let publication =
        Publication { topic: topic.into(), payload: bytes::Bytes::from_static(b"1"), joins: true, stamp: None };
    outbox.append(&DeviceId::new(device), class, Moment::default(), publication);
    outbox.stats().appended - 1
}

/// The sequences of the next batch.
fn batch(outbox: &Outbox, now: Instant) -> Vec<Sequence> {
    let parts = outbox.take(now).map(|batch| batch.parts).unwrap_or_default();
    parts.into_iter().map(|(sequence, _)| sequence).collect()
}

fn append(outbox: &Outbox, device: &str, class: Class, steady: u64, text: &str) {
    let publication = Publication { topic: text.into(), payload: bytes::Bytes::new(), joins: false, stamp: None };
    let moment = Moment { wall: 0, steady };
    outbox.append(&DeviceId::new(device), class, moment, publication);
}

fn drain(outbox: &Outbox) -> Vec<String> {
    let batches = std::iter::from_fn(|| outbox.take(Instant::now()));
    batches.flat_map(|batch| batch.parts).map(|(_, publication)| publication.topic.to_string()).collect()
}

#[test]
fn devices_take_turns_and_each_keeps_its_order() {
    let outbox = outbox(1 << 20);
    for text in ["a1", "a2", "a3"] {
        append(&outbox, "a", Class::Telemetry, 0, text);
    }
    append(&outbox, "b", Class::Telemetry, 0, "b1");
    assert_eq!(drain(&outbox), ["a1", "b1", "a2", "a3"]);
}

#[test]
fn what_has_no_proof_is_sent_again_in_order_after_a_rewind() {
    let outbox = outbox(1 << 20);
    for text in ["a1", "a2", "a3"] {
        append(&outbox, "a", Class::Telemetry, 0, text);
    }
    let first = batch(&outbox, Instant::now());
    batch(&outbox, Instant::now());
    outbox.acknowledge(first[0]);
    outbox.rewind();
    append(&outbox, "a", Class::Telemetry, 0, "a4");
    assert_eq!(drain(&outbox), ["a2", "a3", "a4"]);
    assert_eq!(outbox.stats().delivered, 1);
}

#[test]
fn a_full_outbox_drops_the_oldest_stream_entries_and_keeps_results() {
    let outbox = outbox(3 * (OVERHEAD + 2));
    append(&outbox, "a", Class::Keep, 0, "r1");
    for text in ["a1", "a2", "a3", "a4"] {
        append(&outbox, "a", Class::Telemetry, 0, text);
    }
    assert_eq!(drain(&outbox), ["r1", "a3", "a4"]);
    assert_eq!((outbox.stats().dropped, outbox.stats().waiting), (2, 3));
}

#[test]
fn old_stream_entries_are_dropped_and_old_results_are_not() {
    let outbox = outbox(1 << 20);
    append(&outbox, "a", Class::Keep, 0, "r1");
    append(&outbox, "a", Class::Telemetry, 0, "a1");
    append(&outbox, "a", Class::Telemetry, 60_001, "a2");
    assert_eq!(drain(&outbox), ["r1", "a2"]);
}

#[test]
fn a_device_that_floods_the_outbox_pays_for_it_itself() {
    let outbox = outbox(20 * (OVERHEAD + 2));
    append(&outbox, "b", Class::Telemetry, 0, "b1");
    append(&outbox, "b", Class::Keep, 0, "b2");
    for _ in 0..1000 {
        append(&outbox, "a", Class::Keep, 0, "a1");
    }
    let sent = drain(&outbox);
    assert!(sent.contains(&"b1".to_owned()) && sent.contains(&"b2".to_owned()), "{sent:?}");
}

#[test]
fn an_unsent_result_does_not_make_the_rest_pile_up() {
    let outbox = outbox(20 * (OVERHEAD + 2));
    append(&outbox, "b", Class::Keep, 0, "r1");
    for _ in 0..10_000 {
        append(&outbox, "a", Class::Telemetry, 0, "a1");
    }
    assert!(outbox.lock().entries.len() <= 20);
    let held: usize = outbox.lock().devices.values().map(|queue| queue.held()).sum();
    assert!(held <= 40, "{held}");
    outbox.rewind();
    assert_eq!(drain(&outbox).len(), 20);
}

#[test]
fn what_stays_at_the_front_does_not_make_the_rest_of_its_device_pile_up() {
    let outbox = outbox(20 * (OVERHEAD + 2));
    append(&outbox, "a", Class::Keep, 0, "p1");
    for _ in 0..10_000 {
        append(&outbox, "a", Class::Telemetry, 0, "a1");
    }
    let held: usize = outbox.lock().devices.values().map(|queue| queue.held()).sum();
    assert!(held < 300, "{held}");
    assert_eq!(drain(&outbox).len(), 20);
}

#[test]
fn answers_do_not_postpone_what_waits_for_a_batch() {
    let outbox = batching();
    join(&outbox, "a", Class::Telemetry, "t");
    let wake = outbox.next_wake().unwrap();
    join(&outbox, "a", Class::Answer, "r");
    assert_eq!(batch(&outbox, Instant::now()), [1]);
    assert_eq!(outbox.next_wake(), Some(wake));
    assert_eq!(batch(&outbox, wake), [0]);
}

#[test]
fn an_acknowledged_entry_that_was_dropped_meanwhile_counts_once() {
    let outbox = outbox(OVERHEAD + 2);
    append(&outbox, "a", Class::Telemetry, 0, "a1");
    let sequence = batch(&outbox, Instant::now())[0];
    append(&outbox, "a", Class::Telemetry, 0, "a2");
    outbox.acknowledge(sequence);
    let stats = outbox.stats();
    assert_eq!((stats.dropped, stats.delivered, stats.waiting), (1, 0, 1));
}

#[test]
fn messages_of_one_device_and_topic_go_together_within_bounds() {
    let outbox = batching();
    for _ in 0..4 {
        join(&outbox, "a", Class::Telemetry, "t");
    }
    let now = Instant::now();
    assert_eq!(batch(&outbox, now), [0, 1, 2]);
    // The fourth waits for company, but not for ever.
    assert!(batch(&outbox, now).is_empty());
    let wake = outbox.next_wake().unwrap();
    assert!(wake > now && wake <= Instant::now() + Duration::from_secs(1));
    assert_eq!(batch(&outbox, wake), [3]);
    assert_eq!(outbox.next_wake(), None);
}

#[test]
fn a_result_does_not_wait_and_takes_earlier_messages_along_in_their_order() {
    let outbox = batching();
    join(&outbox, "a", Class::Telemetry, "samples");
    join(&outbox, "a", Class::Telemetry, "samples");
    join(&outbox, "a", Class::Keep, "results");
    join(&outbox, "a", Class::Telemetry, "samples");
    let now = Instant::now();
    assert_eq!(batch(&outbox, now), [0, 1]);
    assert_eq!(batch(&outbox, now), [2]);
    assert!(batch(&outbox, now).is_empty());
}

#[test]
fn answers_go_before_the_rest_in_their_own_order_also_when_they_go_again() {
    let outbox = outbox(1 << 20);
    append(&outbox, "a", Class::Telemetry, 0, "a1");
    append(&outbox, "a", Class::Keep, 0, "p1");
    append(&outbox, "a", Class::Answer, 0, "r1");
    append(&outbox, "a", Class::Answer, 0, "r2");
    let first = batch(&outbox, Instant::now());
    outbox.acknowledge(first[0]);
    assert_eq!(drain(&outbox), ["r2", "a1", "p1"]);
    outbox.rewind();
    append(&outbox, "a", Class::Answer, 0, "r3");
    assert_eq!(drain(&outbox), ["r2", "r3", "a1", "p1"]);
}

#[test]
fn what_had_no_proof_goes_again_in_order_and_alone_if_it_must() {
    let outbox = batching();
    for _ in 0..3 {
        join(&outbox, "a", Class::Telemetry, "t");
    }
    let now = Instant::now();
    let sent = batch(&outbox, now);
    join(&outbox, "a", Class::Keep, "t");
    outbox.send_again(&sent, true);
    let order: Vec<Vec<Sequence>> =
        std::iter::from_fn(|| Some(batch(&outbox, now)).filter(|parts| !parts.is_empty())).collect();
    assert_eq!(order, [vec![0], vec![1], vec![2], vec![3]]);
    outbox.reject(1);
    outbox.acknowledge(0);
    let stats = outbox.stats();
    assert_eq!((stats.rejected, stats.delivered, stats.waiting), (1, 1, 2));
}

#[test]
fn a_paused_device_waits_and_the_others_do_not() {
    let outbox = batching();
    let now = Instant::now();
    for _ in 0..3 {
        join(&outbox, "a", Class::Telemetry, "t");
    }
    outbox.pause(&DeviceId::new("a"), None, now + Duration::from_secs(5));
    join(&outbox, "a", Class::Keep, "t");
    join(&outbox, "b", Class::Keep, "t");
    assert_eq!(batch(&outbox, now), [4]);
    assert!(batch(&outbox, now).is_empty());
    assert_eq!(outbox.next_wake(), Some(now + Duration::from_secs(5)));
    assert_eq!(batch(&outbox, now + Duration::from_secs(5)), [0, 1, 2]);
    assert_eq!(batch(&outbox, now), [3]);
}

#[test]
fn a_paused_topic_waits_and_the_others_of_its_device_do_not() {
    let outbox = outbox(1 << 20);
    let now = Instant::now();
    for text in ["metadata", "samples", "metadata", "samples"] {
        append(&outbox, "a", Class::Telemetry, 0, text);
    }
    let until = now + Duration::from_secs(5);
    outbox.pause(&DeviceId::new("a"), Some("metadata"), until);
    assert_eq!((batch(&outbox, now), batch(&outbox, now)), (vec![1], vec![3]));
    assert!(batch(&outbox, now).is_empty());
    assert_eq!(outbox.next_wake(), Some(until));
    append(&outbox, "a", Class::Telemetry, 0, "samples");
    assert_eq!(batch(&outbox, now), [4]);
    assert_eq!((batch(&outbox, until), batch(&outbox, until)), (vec![0], vec![2]));
}

#[test]
fn a_device_that_is_not_admitted_waits_and_one_that_is_gone_is_dropped() {
    let outbox = outbox(1 << 20);
    let (a, b) = (DeviceId::new("a"), DeviceId::new("b"));
    append(&outbox, "a", Class::Telemetry, 0, "a1");
    append(&outbox, "b", Class::Telemetry, 0, "b1");
    outbox.admit([a.clone()].into());
    append(&outbox, "b", Class::Answer, 0, "b2");
    assert_eq!(drain(&outbox), ["a1"]);
    outbox.admit([a, b.clone()].into());
    assert_eq!(drain(&outbox), ["b2", "b1"]);
    outbox.admit(HashSet::new());
    outbox.rewind();
    assert!(drain(&outbox).is_empty());
    assert_eq!((outbox.count(&b), outbox.discard(&b), outbox.count(&b)), (2, 2, 0));
    assert_eq!((outbox.stats().waiting, outbox.stats().dropped), (1, 2));
}

#[test]
fn what_is_set_aside_holds_up_nobody_and_comes_back_when_asked() {
    let outbox = outbox(1 << 20);
    for text in ["a1", "a2"] {
        append(&outbox, "a", Class::Telemetry, 0, text);
    }
    let first = batch(&outbox, Instant::now());
    outbox.set_aside(first[0]);
    outbox.rewind();
    assert_eq!(drain(&outbox), ["a2"]);
    assert!(outbox.holds(first[0]));
    outbox.send_again(&first, true);
    assert!(drain(&outbox).is_empty());
    outbox.recall(&first);
    assert_eq!(drain(&outbox), ["a1"]);
}

#[test]
fn a_wrong_clock_neither_drops_what_waits_nor_stays_in_its_time() {
    let outbox = outbox(1 << 20);
    let now = Moment::now();
    let stamp = crate::clock::Stamp { place: 5, time: 1000, format: crate::clock::TimeFormat::Milliseconds };
    let payload = bytes::Bytes::from_static(b"{\"t\":1000}");
    let publication = Publication { topic: "t".into(), payload, joins: false, stamp: Some(stamp) };
    // Taken ten seconds ago, by a clock that had not been set.
    let early = Moment { wall: 1000, steady: now.steady - 10_000 };
    outbox.append(&DeviceId::new("a"), Class::Telemetry, early, publication.clone());
    outbox.append(&DeviceId::new("a"), Class::Telemetry, now, Publication { stamp: None, ..publication });
    let payloads: Vec<_> =
        std::iter::from_fn(|| outbox.take(Instant::now())).map(|b| b.parts[0].1.payload.clone()).collect();
    let corrected: serde_json::Value = serde_json::from_slice(&payloads[0]).unwrap();
    assert!(corrected["t"].as_u64().unwrap().abs_diff(now.wall - 10_000) < 1000, "{corrected}");
    assert_eq!(payloads[1], "{\"t\":1000}");
    assert_eq!(outbox.stats().dropped, 0);
}

#[test]
fn what_is_live_goes_first_and_what_has_waited_gets_its_share() {
    let age = Duration::from_secs(60);
    let outbox = Outbox::new(Bounds { bytes: 1 << 20, age, backfill: Some(25), ..Bounds::default() });
    (0..6).for_each(|number| append(&outbox, "a", Class::Telemetry, 0, &format!("old{number}")));
    let first = batch(&outbox, Instant::now());
    outbox.rewind();
    outbox.connected();
    (0..7).for_each(|number| append(&outbox, "a", Class::Telemetry, 0, &format!("new{number}")));
    append(&outbox, "a", Class::Answer, 0, "answer");
    let expected = [
        "answer", "new0", "new1", "new2", "new3", "old0", "new4", "new5", "new6", "old1", "old2", "old3", "old4",
        "old5",
    ];
    assert_eq!(drain(&outbox), expected);
    outbox.acknowledge(first[0]);
    // What has no proof at the next connection is not live any more.
    outbox.rewind();
    outbox.connected();
    append(&outbox, "a", Class::Telemetry, 0, "new7");
    let again = drain(&outbox);
    assert_eq!(again[..4], ["answer", "new7", "old1", "old2"]);
    assert_eq!(again.last().map(String::as_str), Some("new6"));
}

#[test]
fn newer_properties_replace_those_of_the_same_names_that_still_wait() {
    let outbox = outbox(1 << 20);
    let properties = |device: &str, set, text: &str| {
        let publication = Publication { topic: text.into(), payload: bytes::Bytes::new(), joins: false, stamp: None };
        outbox.append_properties(&DeviceId::new(device), set, Moment::default(), publication);
    };
    properties("a", 1, "on its way");
    let sent = batch(&outbox, Instant::now());
    properties("a", 1, "a1");
    properties("a", 2, "a2");
    properties("b", 1, "b1");
    properties("a", 1, "a3");
    assert_eq!((outbox.stats().replaced, outbox.stats().waiting), (1, 4));
    assert_eq!(drain(&outbox), ["a2", "b1", "a3"]);
    outbox.acknowledge(sent[0]);
    properties("a", 1, "a4");
    assert_eq!((outbox.stats().replaced, outbox.stats().dropped), (1, 0));
    assert!(outbox.take_drops().is_empty());
}

#[test]
fn drops_are_counted_by_device_and_cause() {
    let outbox = outbox(2 * (OVERHEAD + 2));
    for (steady, text) in [(0, "a1"), (1, "a2"), (2, "a3"), (60_002, "a4")] {
        append(&outbox, "a", Class::Telemetry, steady, text);
    }
    assert_eq!(
        outbox.take_drops(),
        [(DeviceId::new("a"), Drops { for_room: 1, for_age: 1, ..Drops::default() })].into()
    );
    assert!(outbox.take_drops().is_empty());
}

/// The numbers of what waits of a device.
fn numbers(outbox: &Outbox) -> Vec<usize> {
    drain(outbox).iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn a_full_outbox_thins_old_telemetry_and_keeps_the_newer_half() {
    let outbox = outbox(1000 * (OVERHEAD + 5));
    // Ten times of what there is room for, of two kinds in turn.
    (0..10_000).for_each(|number| append(&outbox, "a", Class::Telemetry, 0, &format!("{number:05}")));
    let drops = outbox.state().dropped["a"];
    let left = numbers(&outbox);
    assert!(left.is_sorted() && (900..=1000).contains(&left.len()), "{}", left.len());
    assert_eq!((drops.thinned, drops.for_room), (10_000 - left.len() as u64, 0));
    let between = |from: usize, to: usize| left.iter().filter(|number| (from..to).contains(*number)).count();
    assert_eq!(between(9600, 10_000), 400, "the newest are whole");
    // The old are not gone, and thinner the older they are.
    assert!(left[0] < 8500, "{}", left[0]);
    assert!(between(9200, 9500) > between(8800, 9100) && between(8800, 9100) > between(8000, 8300));
    let (even, odd) = left.iter().partition::<Vec<usize>, _>(|number| **number % 2 == 0);
    assert!(even.len() > left.len() / 3 && odd.len() > left.len() / 3, "{} and {}", even.len(), odd.len());
}

#[test]
fn log_lines_give_way_before_telemetry_and_a_few_stay() {
    let outbox = outbox(200 * (OVERHEAD + 2));
    (0..100).for_each(|_| append(&outbox, "a", Class::Log, 0, "l1"));
    append(&outbox, "a", Class::Keep, 0, "k1");
    (0..150).for_each(|_| append(&outbox, "a", Class::Telemetry, 0, "t1"));
    let count = |text: &str, all: &[String]| all.iter().filter(|other| *other == text).count();
    let drops = outbox.state().dropped["a"];
    assert!(drops.thinned == 0 && (51..53).contains(&drops.for_room), "{drops:?}");
    (0..1000).for_each(|_| append(&outbox, "a", Class::Telemetry, 0, "t1"));
    let all = drain(&outbox);
    assert!((1..=13).contains(&count("l1", &all)) && count("k1", &all) == 1, "{all:?}");
}

#[test]
fn a_device_may_have_bounds_of_its_own() {
    let outbox = outbox(1 << 20);
    let (a, b) = (DeviceId::new("a"), DeviceId::new("b"));
    for device in ["a", "b"] {
        append(&outbox, device, Class::Keep, 0, "k1");
        (0..10).for_each(|_| append(&outbox, device, Class::Telemetry, 0, "t1"));
    }
    let own = OwnBounds { bytes: Some(5 * (OVERHEAD + 2)), age: None };
    outbox.bound_devices([(a.clone(), own)].into(), Moment::default());
    assert_eq!((outbox.count(&a), outbox.count(&b)), (5, 11));
    append(&outbox, "a", Class::Answer, 0, "r1");
    assert_eq!((outbox.count(&a), outbox.state().dropped["a"].for_room), (5, 7));
    // It keeps what it has for a shorter time than the others, properties and answers excepted.
    let own = OwnBounds { bytes: None, age: Some(Duration::from_secs(1)) };
    outbox.bound_devices([(a.clone(), own)].into(), Moment::default());
    append(&outbox, "a", Class::Telemetry, 2000, "t2");
    append(&outbox, "b", Class::Telemetry, 2000, "t2");
    assert_eq!((outbox.count(&a), outbox.count(&b)), (3, 12));
}
