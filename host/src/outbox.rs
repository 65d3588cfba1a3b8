//! The queue between devices and one session: bounded, fair, in order for each
//! device, released only on proof of delivery. Where a cloud takes several
//! messages as one, it puts them together.
//!
//! The answers to a device's commands go before what else it has to say:
//! someone waits for them, and there may be hours of samples.
//!
//! Devices append, one session takes and acknowledges. It never blocks: when
//! it is full, the device that holds the most loses its oldest telemetry or log
//! lines first, and that is counted.

mod queue;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::message::{DeviceId, Publication, Time};
use queue::{Entry, Queue};

/// What may happen to a message when there is no room or no hurry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
#[derive(Debug, Clone, Copy, Default)]
pub struct Bounds {
    /// Bytes of topics and payloads, with a little for each entry.
    pub bytes: usize,
    /// The age at which an entry of class `Stream` is worth nothing.
    pub age: Duration,
    /// How messages of a device are put together.
    pub batching: Batching,
}

/// When messages of one device that may join go as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batching {
    /// At most so many.
    pub count: usize,
    /// At most so many bytes of payload, unless one alone has more.
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
pub struct Parcel {
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
    /// Dropped for lack of room or for age.
    pub dropped: u64,
    /// Refused by the cloud for good.
    pub rejected: u64,
    /// Waiting, sent ones without proof included.
    pub waiting: usize,
    /// Their size in bytes.
    pub bytes: usize,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Outbox {
    queue: Mutex<Queue>,
    appended: Notify,
}

impl Outbox {
    /// An empty outbox.
    pub fn new(bounds: Bounds) -> Self {
        Outbox { queue: Mutex::new(Queue::new(bounds)), appended: Notify::new() }
    }

    /// Takes a message. `time` is now.
    pub fn append(&self, device: &DeviceId, class: Class, time: Time, publication: Publication) {
        let entry = Entry { device: device.clone(), class, time, sent: false, alone: false, publication };
        self.lock().append(entry);
        self.appended.notify_one();
    }

    /// Gives the next unsent message, or several as one, and marks them as
    /// sent: devices in turn, each in its order.
    pub fn take(&self, now: Instant) -> Option<Parcel> {
        self.lock().take(now)
    }

    /// When a message that waits for company, or for the end of a pause, is
    /// ready; none when nothing waits so.
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
        Some((entry.device, entry.publication))
    }

    /// Whether a message still waits, or is on its way.
    pub fn holds(&self, sequence: Sequence) -> bool {
        self.lock().entries.contains_key(&sequence)
    }

    /// Makes sent messages unsent: no proof came. With `alone`, each goes by
    /// itself from now on, so that one that is refused does not take others along.
    pub fn send_again(&self, sequences: &[Sequence], alone: bool) {
        self.lock().send_again(sequences.iter().copied(), alone);
        self.appended.notify_one();
    }

    /// Sends nothing of a device until then.
    pub fn pause(&self, device: &DeviceId, until: Instant) {
        self.lock().pause(device, until);
        self.appended.notify_one();
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

    /// Counts since the start.
    pub fn stats(&self) -> Stats {
        self.lock().stats
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::queue::OVERHEAD;
    use super::*;

    fn outbox(bytes: usize) -> Outbox {
        Outbox::new(Bounds { bytes, age: Duration::from_secs(60), ..Bounds::default() })
    }

    fn batching() -> Outbox {
        let batching = Batching { count: 3, bytes: 1000, age: Duration::from_secs(1) };
        Outbox::new(Bounds { bytes: 1 << 20, age: Duration::from_secs(60), batching })
    }

    /// Appends a message that may join others on its topic.
    fn join(outbox: &Outbox, device: &str, class: Class, topic: &str) -> Sequence {
        let publication = Publication { topic: topic.into(), payload: bytes::Bytes::from_static(b"1"), joins: true };
        outbox.append(&DeviceId::new(device), class, 0, publication);
        outbox.stats().appended - 1
    }

    /// The sequences of the next parcel.
    fn parcel(outbox: &Outbox, now: Instant) -> Vec<Sequence> {
        let parts = outbox.take(now).map(|parcel| parcel.parts).unwrap_or_default();
        parts.into_iter().map(|(sequence, _)| sequence).collect()
    }

    fn append(outbox: &Outbox, device: &str, class: Class, time: Time, text: &str) {
        let publication = Publication { topic: text.into(), payload: bytes::Bytes::new(), joins: false };
        outbox.append(&DeviceId::new(device), class, time, publication);
    }

    fn drain(outbox: &Outbox) -> Vec<String> {
        let parcels = std::iter::from_fn(|| outbox.take(Instant::now()));
        parcels.flat_map(|parcel| parcel.parts).map(|(_, publication)| publication.topic.to_string()).collect()
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
        let first = parcel(&outbox, Instant::now());
        parcel(&outbox, Instant::now());
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
        let held: usize = outbox.lock().shares.values().map(|share| share.held()).sum();
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
        let held: usize = outbox.lock().shares.values().map(|share| share.held()).sum();
        assert!(held < 300, "{held}");
        assert_eq!(drain(&outbox).len(), 20);
    }

    #[test]
    fn answers_do_not_postpone_what_waits_for_company() {
        let outbox = batching();
        join(&outbox, "a", Class::Stream, "t");
        let wake = outbox.next_wake().unwrap();
        join(&outbox, "a", Class::Answer, "r");
        assert_eq!(parcel(&outbox, Instant::now()), [1]);
        assert_eq!(outbox.next_wake(), Some(wake));
        assert_eq!(parcel(&outbox, wake), [0]);
    }

    #[test]
    fn an_acknowledged_entry_that_was_dropped_meanwhile_counts_once() {
        let outbox = outbox(OVERHEAD + 2);
        append(&outbox, "a", Class::Stream, 0, "a1");
        let sequence = parcel(&outbox, Instant::now())[0];
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
        assert_eq!(parcel(&outbox, now), [0, 1, 2]);
        // The fourth waits for company, but not for ever.
        assert!(parcel(&outbox, now).is_empty());
        let wake = outbox.next_wake().unwrap();
        assert!(wake > now && wake <= Instant::now() + Duration::from_secs(1));
        assert_eq!(parcel(&outbox, wake), [3]);
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
        assert_eq!(parcel(&outbox, now), [0, 1]);
        assert_eq!(parcel(&outbox, now), [2]);
        assert!(parcel(&outbox, now).is_empty());
    }

    #[test]
    fn answers_go_before_the_rest_in_their_own_order_also_when_they_go_again() {
        let outbox = outbox(1 << 20);
        append(&outbox, "a", Class::Stream, 0, "a1");
        append(&outbox, "a", Class::Keep, 0, "p1");
        append(&outbox, "a", Class::Answer, 0, "r1");
        append(&outbox, "a", Class::Answer, 0, "r2");
        let first = parcel(&outbox, Instant::now());
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
        let sent = parcel(&outbox, now);
        join(&outbox, "a", Class::Keep, "t");
        outbox.send_again(&sent, true);
        let order: Vec<Vec<Sequence>> =
            std::iter::from_fn(|| Some(parcel(&outbox, now)).filter(|parts| !parts.is_empty())).collect();
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
        outbox.pause(&DeviceId::new("a"), now + Duration::from_secs(5));
        join(&outbox, "a", Class::Keep, "t");
        join(&outbox, "b", Class::Keep, "t");
        assert_eq!(parcel(&outbox, now), [4]);
        assert!(parcel(&outbox, now).is_empty());
        assert_eq!(outbox.next_wake(), Some(now + Duration::from_secs(5)));
        assert_eq!(parcel(&outbox, now + Duration::from_secs(5)), [0, 1, 2]);
        assert_eq!(parcel(&outbox, now), [3]);
    }
}
