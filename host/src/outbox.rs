//! The queue between devices and one session: bounded, fair, in order for each
//! device, released only on proof of delivery. Where a cloud takes several
//! messages as one, it puts them together.
//!
//! The answers to a device's commands go before what else it has to say:
//! someone waits for them, and there may be hours of samples.
//!
//! Devices append, one session takes and acknowledges. When it is full, the
//! device that holds the most gives way: log lines, then telemetry of its older
//! half, which gets thinner; and that is counted. What is appended is written to a log (`keep_in`), so that
//! it survives the process; when the disk fails, the outbox goes on without it.
//! When more waits than memory is for, the rest is on the disk only.

mod disk;
mod keep;
mod load;
mod log;
mod pace;
mod queue;
mod record;
mod stored;

use std::collections::{BTreeMap, HashMap, HashSet};
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
    /// Log lines: the oldest are dropped when there is no room.
    Log,
    /// Measurements: the older ones are thinned when there is no room.
    Telemetry,
    /// Properties, changes of alerts and the like: dropped only when nothing else is left.
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
    /// The age at which log lines and telemetry are worth nothing.
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

/// Bounds of one device within those of the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OwnBounds {
    /// Bytes; none: as many as there are.
    pub bytes: Option<usize>,
    /// The age at which its log lines and telemetry are worth nothing; none: that of the outbox.
    pub age: Option<Duration>,
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
    /// There was no room, and others of its time are left.
    #[serde(default)]
    pub thinned: u64,
    /// It was too old.
    pub for_age: u64,
    /// It could not be read from the disk.
    #[serde(default)]
    pub damaged: u64,
}

impl Drops {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.for_room + self.thinned + self.for_age + self.damaged
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

impl Drop for Outbox {
    /// Its threads end now.
    fn drop(&mut self) {
        if let Some(keeping) = &self.inner().keeping {
            keeping.wake_threads();
        }
    }
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

    /// Bounds of single devices, instead of those that were given before. `moment` is now.
    pub fn bound_devices(&self, bounds: HashMap<DeviceId, OwnBounds>, moment: Moment) {
        self.lock().bound_devices(bounds, moment);
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
mod tests;
