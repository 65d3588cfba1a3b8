//! The queue between devices and one session: bounded, fair, in order for each
//! device, released only on proof of delivery. Where a cloud takes several
//! messages as one, it puts them together.
//!
//! The answers to a device's commands go before what else it has to say:
//! someone waits for them, and there may be hours of samples.
//!
//! Devices append, one session takes and acknowledges. When it is full, the
//! device that holds the most loses its oldest telemetry or log lines first, and
//! that is counted. What is appended is written to a log (`keep_in`), so that
//! it survives the process; when the disk fails, the outbox goes on without it.
//! When more waits than memory is for, the rest is on the disk only.

mod disk;
mod keep;
mod log;
mod pace;
mod queue;
mod record;
mod stored;

use std::collections::{BTreeMap, HashSet};
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::clock::Moment;
use crate::message::{DeviceId, Publication};
use keep::Keeping;
pub use keep::{Durability, Recovered};
use queue::{Place, Queue};
use record::Message;

/// What may happen to a message when there is no room or no hurry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Measurements and logs: the oldest are dropped when there is no room.
    Stream,
    /// Properties and the like: dropped only when nothing else is left.
    Keep,
    /// The same, and sent first.
    Answer,
}

/// The number of an entry; rises with every append.
pub type Sequence = u64;

/// Bounds.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Bytes of topics and payloads, with a little for each entry.
    pub bytes: usize,
    /// How much of that may be in memory.
    pub memory: usize,
    /// The age at which an entry of class `Stream` is worth nothing.
    pub age: Duration,
    /// How messages of a device are put together.
    pub batching: Batching,
    /// How many of a hundred messages of a device are of those that waited when
    /// the connection was made, the others being newer; none: all go in their order.
    pub backfill: Option<u8>,
}

impl Default for Bounds {
    /// No room at all, as far as nothing else is said; what is there is in memory.
    fn default() -> Self {
        let batching = Batching::default();
        Bounds { bytes: 0, memory: usize::MAX, age: Duration::ZERO, batching, backfill: None }
    }
}

impl Bounds {
    /// With so much in memory, what comes stays on the disk.
    fn enough(&self) -> usize {
        self.memory / 2
    }

    /// With so much in memory, nothing else is loaded.
    fn full(&self) -> usize {
        self.memory - self.memory / 4
    }

    /// How much of what is on the disk is loaded, so that what goes next is at hand.
    fn ahead(&self) -> usize {
        self.memory / 16
    }
}

/// When messages of one device that may join go as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batching {
    /// Maximum messages.
    pub count: usize,
    /// Maximum bytes of payload, unless one message alone has more.
    pub bytes: usize,
    /// A measurement waits for company no longer than this; zero means not at all.
    pub age: Duration,
}

impl Default for Batching {
    /// Each message by itself, at once.
    fn default() -> Self {
        Batching { count: 1, bytes: usize::MAX, age: Duration::ZERO }
    }
}

/// Messages of one device on one topic that go together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The device.
    pub device: DeviceId,
    /// At least one.
    pub parts: Vec<(Sequence, Publication)>,
}

/// Counts since the start, and what waits now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Appended.
    pub appended: u64,
    /// Delivered, as far as the protocol can prove it.
    pub delivered: u64,
    /// Dropped for lack of room, for age, or with their device.
    pub dropped: u64,
    /// Refused by the cloud for good.
    pub rejected: u64,
    /// Properties that newer ones have replaced before they went.
    pub replaced: u64,
    /// Waiting, sent ones without proof included.
    pub waiting: usize,
    /// Their size in bytes.
    pub bytes: usize,
}

/// What was dropped of one device, by cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Drops {
    /// There was no room.
    pub for_room: u64,
    /// It was too old.
    pub for_age: u64,
    /// It could not be read from the disk.
    #[serde(default)]
    pub damaged: u64,
}

impl Drops {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.for_room + self.for_age + self.damaged
    }
}

/// An outbox as people see it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The bytes that may wait.
    pub max_bytes: usize,
    /// How long ago the oldest message that waits was accepted.
    pub oldest_s: Option<u64>,
    /// For how many hours the room that is left takes what comes, at the rate of
    /// the last day or since the start, when nothing goes.
    #[serde(default)]
    pub hours_left: Option<f64>,
    /// What was dropped since the start, by device.
    pub dropped: BTreeMap<String, Drops>,
    /// How it is kept.
    pub disk: Durability,
}

/// See the module documentation.
pub struct Outbox {
    inner: Mutex<Inner>,
    appended: Notify,
    /// Changes when the thread that syncs its log has done something, or could not.
    synced: watch::Sender<()>,
}

/// What the lock is around.
struct Inner {
    queue: Queue,
    /// The way to the disk, if there is one.
    keeping: Option<Box<Keeping>>,
}

impl Outbox {
    /// An empty outbox.
    pub fn new(bounds: Bounds) -> Self {
        let inner = Inner { queue: Queue::new(bounds), keeping: None };
        Outbox { inner: Mutex::new(inner), appended: Notify::new(), synced: watch::Sender::new(()) }
    }

    /// Takes a message. `moment` is now.
    pub fn append(&self, device: &DeviceId, class: Class, moment: Moment, publication: Publication) {
        self.accept(device, class, moment, publication, None);
    }

    /// Takes properties, of which earlier ones with the same names (`set` stands
    /// for those) are worth nothing any more: they go if they still wait.
    pub fn append_properties(&self, device: &DeviceId, set: u64, moment: Moment, publication: Publication) {
        self.accept(device, Class::Keep, moment, publication, Some(set));
    }

    fn accept(&self, device: &DeviceId, class: Class, moment: Moment, publication: Publication, set: Option<u64>) {
        let message = Message { device: device.clone(), class, moment, alone: false, publication };
        self.inner().accept(message, set);
        self.appended.notify_one();
    }

    /// Gives the next unsent message, or several as one, and marks them as
    /// sent: devices in turn, each in its order.
    pub fn take(&self, now: Instant) -> Option<Batch> {
        self.lock().take(now, Moment::now())
    }

    /// Sends messages of these devices only; those of others wait.
    pub fn admit(&self, devices: HashSet<DeviceId>) {
        self.lock().admit(devices);
        self.appended.notify_one();
    }

    /// How many messages of a device wait or are on their way.
    pub fn count(&self, device: &DeviceId) -> usize {
        self.lock().count(device)
    }

    /// The devices that have messages here.
    pub fn devices(&self) -> Vec<DeviceId> {
        self.lock().devices.keys().cloned().collect()
    }

    /// Drops the messages of a device that is gone, and says how many those were.
    pub fn discard(&self, device: &DeviceId) -> usize {
        self.lock().discard(device)
    }

    /// What was dropped since the last call, by device.
    pub fn take_drops(&self) -> BTreeMap<DeviceId, Drops> {
        std::mem::take(&mut self.lock().drops)
    }

    /// When a message that waits for others, or for the end of a pause, is
    /// ready; `None` if nothing waits so.
    pub fn next_wake(&self) -> Option<Instant> {
        self.lock().next_wake()
    }

    /// Forgets a message that was delivered.
    pub fn acknowledge(&self, sequence: Sequence) {
        let mut queue = self.lock();
        if queue.remove(sequence).is_some() {
            queue.stats.delivered += 1;
        }
    }

    /// The same for messages that were delivered together.
    pub fn acknowledge_all(&self, sequences: &[Sequence]) {
        let mut queue = self.lock();
        for sequence in sequences {
            if queue.remove(*sequence).is_some() {
                queue.stats.delivered += 1;
            }
        }
    }

    /// Forgets a message that the cloud refused for good, and gives it.
    pub fn reject(&self, sequence: Sequence) -> Option<(DeviceId, Publication)> {
        let mut queue = self.lock();
        let entry = queue.remove(sequence)?;
        queue.stats.rejected += 1;
        Some((entry.message.device, entry.message.publication))
    }

    /// Whether a message still waits, or is on its way.
    pub fn holds(&self, sequence: Sequence) -> bool {
        self.lock().entries.contains_key(&sequence)
    }

    /// Holds a message on its way back by itself: others do not wait for it, and
    /// a lost connection does not bring it back. `recall` does.
    pub fn set_aside(&self, sequence: Sequence) {
        self.lock().set_aside(sequence);
    }

    /// Lets messages go that were set aside.
    pub fn recall(&self, sequences: &[Sequence]) {
        self.lock().send_again(sequences.iter().copied(), Place::Aside, true);
        self.appended.notify_one();
    }

    /// The device and the topic of a message that still waits, or is on its way.
    pub fn look(&self, sequence: Sequence) -> Option<(DeviceId, Arc<str>)> {
        let queue = self.lock();
        let entry = queue.entries.get(&sequence)?;
        Some((entry.message.device.clone(), Arc::clone(&entry.message.publication.topic)))
    }

    /// Makes sent messages unsent: no proof came. With `alone`, each goes by
    /// itself from now on, so that one that is refused does not take others along.
    pub fn send_again(&self, sequences: &[Sequence], alone: bool) {
        self.lock().send_again(sequences.iter().copied(), Place::Sent, alone);
        self.appended.notify_one();
    }

    /// Sends nothing of a device until then; with a topic, nothing on that.
    pub fn pause(&self, device: &DeviceId, topic: Option<&str>, until: Instant) {
        self.lock().pause(device, topic, until);
        self.appended.notify_one();
    }

    /// A connection with the cloud stands.
    pub fn connected(&self) {
        self.lock().connected();
    }

    /// Makes all sent messages unsent: their connection is gone.
    pub fn rewind(&self) {
        self.lock().rewind();
        self.appended.notify_one();
    }

    /// Waits until something was appended since the last call.
    pub async fn changed(&self) {
        self.appended.notified().await;
    }

    /// What people want to know of it, beside the counts.
    pub fn state(&self) -> State {
        let (oldest, hours_left, max_bytes, dropped) = {
            let (inner, now) = (self.inner(), Moment::now());
            let (queue, bounds) = (&inner.queue, &inner.queue.bounds);
            // Without a disk memory is all the room there is.
            let room = if inner.keeping.is_some() { bounds.bytes } else { bounds.bytes.min(bounds.memory) };
            (queue.oldest(now), queue.hours_left(room, now), room, queue.all_drops.clone())
        };
        State {
            max_bytes,
            oldest_s: oldest.map(|age| age.as_secs()),
            hours_left,
            dropped: dropped.into_iter().map(|(device, drops)| (device.to_string(), drops)).collect(),
            disk: self.durability(),
        }
    }

    /// Counts since the start.
    pub fn stats(&self) -> Stats {
        self.lock().stats
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The queue; what leaves it is told to the log at the end.
    fn lock(&self) -> Locked<'_> {
        Locked(self.inner())
    }
}

/// See `Outbox::lock`.
struct Locked<'a>(MutexGuard<'a, Inner>);

impl Deref for Locked<'_> {
    type Target = Queue;

    fn deref(&self) -> &Queue {
        &self.0.queue
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Queue {
        &mut self.0.queue
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.0.settle();
    }
}

#[cfg(test)]
mod tests {
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
            append(&outbox, "a", Class::Stream, 0, text);
        }
        append(&outbox, "b", Class::Stream, 0, "b1");
        assert_eq!(drain(&outbox), ["a1", "b1", "a2", "a3"]);
    }

    #[test]
    fn what_has_no_proof_is_sent_again_in_order_after_a_rewind() {
        let outbox = outbox(1 << 20);
        for text in ["a1", "a2", "a3"] {
            append(&outbox, "a", Class::Stream, 0, text);
        }
        let first = batch(&outbox, Instant::now());
        batch(&outbox, Instant::now());
        outbox.acknowledge(first[0]);
        outbox.rewind();
        append(&outbox, "a", Class::Stream, 0, "a4");
        assert_eq!(drain(&outbox), ["a2", "a3", "a4"]);
        assert_eq!(outbox.stats().delivered, 1);
    }

    #[test]
    fn a_full_outbox_drops_the_oldest_stream_entries_and_keeps_results() {
        let outbox = outbox(3 * (OVERHEAD + 2));
        append(&outbox, "a", Class::Keep, 0, "r1");
        for text in ["a1", "a2", "a3", "a4"] {
            append(&outbox, "a", Class::Stream, 0, text);
        }
        assert_eq!(drain(&outbox), ["r1", "a3", "a4"]);
        assert_eq!((outbox.stats().dropped, outbox.stats().waiting), (2, 3));
    }

    #[test]
    fn old_stream_entries_are_dropped_and_old_results_are_not() {
        let outbox = outbox(1 << 20);
        append(&outbox, "a", Class::Keep, 0, "r1");
        append(&outbox, "a", Class::Stream, 0, "a1");
        append(&outbox, "a", Class::Stream, 60_001, "a2");
        assert_eq!(drain(&outbox), ["r1", "a2"]);
    }

    #[test]
    fn a_device_that_floods_the_outbox_pays_for_it_itself() {
        let outbox = outbox(20 * (OVERHEAD + 2));
        append(&outbox, "b", Class::Stream, 0, "b1");
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
            append(&outbox, "a", Class::Stream, 0, "a1");
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
            append(&outbox, "a", Class::Stream, 0, "a1");
        }
        let held: usize = outbox.lock().devices.values().map(|queue| queue.held()).sum();
        assert!(held < 300, "{held}");
        assert_eq!(drain(&outbox).len(), 20);
    }

    #[test]
    fn answers_do_not_postpone_what_waits_for_a_batch() {
        let outbox = batching();
        join(&outbox, "a", Class::Stream, "t");
        let wake = outbox.next_wake().unwrap();
        join(&outbox, "a", Class::Answer, "r");
        assert_eq!(batch(&outbox, Instant::now()), [1]);
        assert_eq!(outbox.next_wake(), Some(wake));
        assert_eq!(batch(&outbox, wake), [0]);
    }

    #[test]
    fn an_acknowledged_entry_that_was_dropped_meanwhile_counts_once() {
        let outbox = outbox(OVERHEAD + 2);
        append(&outbox, "a", Class::Stream, 0, "a1");
        let sequence = batch(&outbox, Instant::now())[0];
        append(&outbox, "a", Class::Stream, 0, "a2");
        outbox.acknowledge(sequence);
        let stats = outbox.stats();
        assert_eq!((stats.dropped, stats.delivered, stats.waiting), (1, 0, 1));
    }

    #[test]
    fn messages_of_one_device_and_topic_go_together_within_bounds() {
        let outbox = batching();
        for _ in 0..4 {
            join(&outbox, "a", Class::Stream, "t");
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
        join(&outbox, "a", Class::Stream, "samples");
        join(&outbox, "a", Class::Stream, "samples");
        join(&outbox, "a", Class::Keep, "results");
        join(&outbox, "a", Class::Stream, "samples");
        let now = Instant::now();
        assert_eq!(batch(&outbox, now), [0, 1]);
        assert_eq!(batch(&outbox, now), [2]);
        assert!(batch(&outbox, now).is_empty());
    }

    #[test]
    fn answers_go_before_the_rest_in_their_own_order_also_when_they_go_again() {
        let outbox = outbox(1 << 20);
        append(&outbox, "a", Class::Stream, 0, "a1");
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
            join(&outbox, "a", Class::Stream, "t");
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
            join(&outbox, "a", Class::Stream, "t");
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
            append(&outbox, "a", Class::Stream, 0, text);
        }
        let until = now + Duration::from_secs(5);
        outbox.pause(&DeviceId::new("a"), Some("metadata"), until);
        assert_eq!((batch(&outbox, now), batch(&outbox, now)), (vec![1], vec![3]));
        assert!(batch(&outbox, now).is_empty());
        assert_eq!(outbox.next_wake(), Some(until));
        append(&outbox, "a", Class::Stream, 0, "samples");
        assert_eq!(batch(&outbox, now), [4]);
        assert_eq!((batch(&outbox, until), batch(&outbox, until)), (vec![0], vec![2]));
    }

    #[test]
    fn a_device_that_is_not_admitted_waits_and_one_that_is_gone_is_dropped() {
        let outbox = outbox(1 << 20);
        let (a, b) = (DeviceId::new("a"), DeviceId::new("b"));
        append(&outbox, "a", Class::Stream, 0, "a1");
        append(&outbox, "b", Class::Stream, 0, "b1");
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
            append(&outbox, "a", Class::Stream, 0, text);
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
        outbox.append(&DeviceId::new("a"), Class::Stream, early, publication.clone());
        outbox.append(&DeviceId::new("a"), Class::Stream, now, Publication { stamp: None, ..publication });
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
        (0..6).for_each(|number| append(&outbox, "a", Class::Stream, 0, &format!("old{number}")));
        let first = batch(&outbox, Instant::now());
        outbox.rewind();
        outbox.connected();
        (0..7).for_each(|number| append(&outbox, "a", Class::Stream, 0, &format!("new{number}")));
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
        append(&outbox, "a", Class::Stream, 0, "new7");
        let again = drain(&outbox);
        assert_eq!(again[..4], ["answer", "new7", "old1", "old2"]);
        assert_eq!(again.last().map(String::as_str), Some("new6"));
    }

    #[test]
    fn newer_properties_replace_those_of_the_same_names_that_still_wait() {
        let outbox = outbox(1 << 20);
        let properties = |device: &str, set, text: &str| {
            let publication =
                Publication { topic: text.into(), payload: bytes::Bytes::new(), joins: false, stamp: None };
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
            append(&outbox, "a", Class::Stream, steady, text);
        }
        assert_eq!(outbox.take_drops(), [(DeviceId::new("a"), Drops { for_room: 1, for_age: 1, damaged: 0 })].into());
        assert!(outbox.take_drops().is_empty());
    }
}
