//! Keeps an outbox on the disk: what it accepts survives the death of the
//! process, and soon after a power cut as well.
//!
//! Whoever appends writes to the log; a thread brings it to the disk in groups,
//! and another one loads what was left there and goes soon. When the disk fails or
//! stalls, the outbox goes on in memory and says so once; as soon as the disk takes
//! it, what is not there is written.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::Thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::disk::Folder;
use super::log::{FILE, LARGEST_FILE, Log, OnShelf, Spot, Work};
use super::queue::Entry;
use super::record::Message;
use super::{Inner, Outbox, Sequence, load};
use crate::clock::{Moment, boot};

/// How long the disk is left alone after it has failed, at first and at most.
pub(super) const AGAIN: Duration = Duration::from_secs(1);
pub(super) const LONGEST_AGAIN: Duration = Duration::from_secs(30);
/// A disk that takes longer for a sync stalls: nothing is written to it meanwhile.
const STALLED: Duration = Duration::from_secs(1);
/// Entries that are written again while others wait.
const SLICE: usize = 256;
/// The lags of this number of groups are remembered.
const GROUPS: usize = 1000;
/// How many files what waits takes, if they need not be larger or smaller for that.
const FILES: usize = 64;

/// An outbox's way to the disk.
pub(super) struct Keeping {
    pub(super) log: Log<Folder>,
    /// Whether what is appended is written. Not after an error, until all that
    /// waits is written again.
    is_writing: bool,
    /// Why what was accepted may be lost; none again after a sync went well.
    problem: Option<String>,
    /// When the oldest entry that is not synced was written.
    since: Option<Instant>,
    /// When the thread began to sync, while it does.
    syncing: Option<Instant>,
    /// Whether something was accepted and not written: the disk stalled.
    is_behind: bool,
    lags: VecDeque<Duration>,
    worst: Duration,
    /// How often entries were read that the disk did not give.
    pub(super) unread: HashMap<Sequence, u32>,
    /// Wakes the thread that syncs.
    signal: Arc<Signal>,
    /// Wakes the thread that loads.
    pub(super) loader: Arc<Signal>,
}

/// Wakes a thread.
#[derive(Default)]
pub(super) struct Signal {
    pub(super) is_set: AtomicBool,
    /// Whether somebody waits, so that the thread does not wait for others to come along.
    is_urgent: AtomicBool,
    thread: OnceLock<Thread>,
}

impl Signal {
    fn set(&self) {
        if !self.is_set.swap(true, Ordering::AcqRel)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }

    fn hurry(&self) {
        self.is_urgent.store(true, Ordering::Release);
        self.set();
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

/// How an outbox is kept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Durability {
    /// Whether what is accepted survives the death of the process.
    pub kept: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Bytes on the disk.
    pub disk_bytes: u64,
    /// Milliseconds from accepted to durable: half of the last groups took no longer.
    pub lag_p50_ms: f64,
    /// The same for 99 of 100 groups.
    pub lag_p99_ms: f64,
    /// The longest since the start.
    pub lag_worst_ms: f64,
}

/// What became of what an earlier life of the gateway had accepted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Messages that wait again.
    pub entries: usize,
    /// Stretches of files that could not be read.
    pub damaged: usize,
}

impl Outbox {
    /// Keeps the outbox in a folder from now on, and takes over what is there.
    pub fn keep_in(self: &Arc<Self>, folder: &Path, every: Duration) -> io::Result<Recovered> {
        let now = Moment::now();
        let bytes = self.inner().queue.bounds.bytes;
        let file = (bytes / FILES).clamp(FILE, LARGEST_FILE);
        let (log, waiting, findings) = Log::open(Folder::new(folder), boot(), now, file)?;
        let is_behind = log.is_doubted();
        let recovered =
            Recovered { entries: waiting.iter().map(|(_, shelf)| shelf.len()).sum(), damaged: findings.damaged };
        let (signal, loader) = (Arc::<Signal>::default(), Arc::<Signal>::default());
        {
            let mut inner = self.inner();
            inner.queue.next = inner.queue.next.max(log.next_sequence());
            for (device, shelf) in waiting {
                inner.queue.restore(&device, shelf);
            }
            inner.queue.drop_all_old(now);
            inner.queue.drop_for_room();
            inner.keeping = Some(Box::new(Keeping {
                log,
                is_writing: true,
                problem: None,
                since: None,
                syncing: None,
                // What is doubted is written again before anything counts as durable.
                is_behind,
                lags: VecDeque::new(),
                worst: Duration::ZERO,
                unread: HashMap::new(),
                signal: Arc::clone(&signal),
                loader: Arc::clone(&loader),
            }));
            inner.settle();
        }
        let outbox = Arc::downgrade(self);
        let thread = std::thread::Builder::new().name("outbox".into()).spawn(move || keep(&outbox, every))?;
        let _ = signal.thread.set(thread.thread().clone());
        let outbox = Arc::downgrade(self);
        let thread = std::thread::Builder::new().name("outbox-load".into()).spawn(move || load::run(&outbox))?;
        let _ = loader.thread.set(thread.thread().clone());
        signal.set();
        loader.set();
        Ok(recovered)
    }

    /// Waits until all that was accepted so far survives a power cut. An error
    /// says why it does not.
    pub async fn flush(&self) -> Result<(), String> {
        self.durable(true).await
    }

    /// The same, with the next group.
    pub async fn settle(&self) -> Result<(), String> {
        self.durable(false).await
    }

    async fn durable(&self, in_a_hurry: bool) -> Result<(), String> {
        let (mut synced, mut target) = (self.synced.subscribe(), None);
        loop {
            {
                let mut inner = self.inner();
                let Some(keeping) = &mut inner.keeping else { return Err("the outbox is in memory only".into()) };
                if let Some(problem) = &keeping.problem {
                    return Err(problem.clone());
                }
                if keeping.is_writing && !keeping.is_stalled() {
                    // What is gone counts as well: after a stop it is not sent again.
                    if let Err(error) = keeping.log.write_removals() {
                        keeping.write_failed(&error);
                        continue;
                    }
                    let is_all = !keeping.is_behind;
                    let target = is_all.then(|| *target.get_or_insert(keeping.log.written()));
                    if target.is_some_and(|target| keeping.log.synced() >= target) {
                        return Ok(());
                    }
                }
                if in_a_hurry {
                    keeping.signal.hurry();
                } else {
                    keeping.signal.set();
                }
            }
            // The sender lives as long as the outbox.
            let _ = synced.changed().await;
        }
    }

    /// How it is kept.
    pub fn durability(&self) -> Durability {
        let inner = self.inner();
        let Some(keeping) = &inner.keeping else { return Durability::default() };
        let mut lags: Vec<Duration> = keeping.lags.iter().copied().collect();
        lags.sort_unstable();
        let at = |part: usize| lags.get((lags.len() * part / 100).min(lags.len().saturating_sub(1)));
        let ms = |lag: Option<&Duration>| lag.map_or(0.0, |lag| (lag.as_secs_f64() * 10_000.0).round() / 10.0);
        Durability {
            kept: keeping.problem.is_none(),
            problem: keeping.problem.clone(),
            disk_bytes: keeping.log.bytes(),
            lag_p50_ms: ms(at(50)),
            lag_p99_ms: ms(at(99)),
            lag_worst_ms: ms(Some(&keeping.worst)),
        }
    }
}

impl Inner {
    /// Takes a message: into the log, if there is one, and into the queue.
    pub(super) fn accept(&mut self, message: Message, set: Option<u64>) {
        let sequence = self.queue.number();
        let spot = self.keeping.as_mut().and_then(|keeping| keeping.write(sequence, &message));
        self.queue.append(sequence, message, spot, set);
        self.settle();
    }

    /// Tells the log what has left the queue, and its threads what there is to do.
    pub(super) fn settle(&mut self) {
        let Some(keeping) = &mut self.keeping else { return };
        if self.queue.wants_to_load() {
            keeping.loader.set();
        }
        if self.queue.gone.is_empty() {
            return;
        }
        for (sequence, spot) in self.queue.gone.drain(..) {
            if keeping.log.remove(sequence, spot)
                && keeping.is_writing
                && !keeping.is_stalled()
                && let Err(error) = keeping.log.write_removals()
            {
                keeping.write_failed(&error);
            }
        }
        keeping.signal.set();
    }

    /// What is to be written: loaded entries that are not in the log, or in a
    /// file of it that is to be emptied, in order; and stored ones in such files.
    fn to_write(&self) -> (Vec<Sequence>, Vec<OnShelf>) {
        let Some(keeping) = &self.keeping else { return Default::default() };
        // One at a time: there may be a million entries in all.
        let files: BTreeSet<u64> = keeping.log.to_empty().into_iter().take(1).collect();
        if files.is_empty() && keeping.is_writing && !keeping.is_behind {
            return Default::default();
        }
        let is_to_write = |entry: &Entry| entry.spot.is_none_or(|spot| files.contains(&spot.file));
        let loaded = self.queue.entries.iter().filter(|(_, entry)| is_to_write(entry));
        let mut loaded: Vec<Sequence> = loaded.map(|(sequence, _)| *sequence).collect();
        loaded.sort_unstable();
        let mut stored = Vec::new();
        for (device, queue) in self.queue.devices.iter().filter(|_| !files.is_empty()) {
            let own = queue.shelf.all().filter(|(_, entry)| files.contains(&entry.spot.file));
            stored.extend(own.map(|(class, entry)| (device.clone(), class, *entry)));
        }
        stored.sort_unstable_by_key(|(_, _, entry)| entry.spot);
        (loaded, stored)
    }

    /// Writes loaded entries that still wait.
    fn write(&mut self, sequences: &[Sequence]) -> io::Result<()> {
        let Inner { queue, keeping } = self;
        let Some(keeping) = keeping else { return Ok(()) };
        for sequence in sequences {
            let Some(entry) = queue.entries.get(sequence) else { continue };
            if let Some(spot) = keeping.log.append(*sequence, &entry.message)? {
                let old = queue.moved(*sequence, spot);
                old.into_iter().for_each(|old| keeping.log.leave(old));
                queue.store_again(*sequence);
            }
        }
        Ok(())
    }

    /// Writes a stored entry that was read to another file, if it still lies where it did.
    fn write_stored(&mut self, (device, class, read): &OnShelf, message: &Message) -> io::Result<()> {
        let Inner { queue, keeping } = self;
        let Some(keeping) = keeping else { return Ok(()) };
        let shelf = queue.devices.get_mut(device).map(|queue| &mut queue.shelf);
        let entry = shelf.and_then(|shelf| shelf.find(*class, read.sequence)).filter(|entry| entry.spot == read.spot);
        let Some(entry) = entry else { return Ok(()) };
        if let Some(spot) = keeping.log.append(read.sequence, message)? {
            keeping.log.leave(std::mem::replace(&mut entry.spot, spot));
        }
        Ok(())
    }
}

impl Keeping {
    /// Lets both threads look whether there is something to do.
    pub(super) fn wake_threads(&self) {
        self.signal.set();
        self.loader.set();
    }

    /// Writes a message to the log, and says where it lies there; nowhere when
    /// the disk does not take it now.
    fn write(&mut self, sequence: Sequence, message: &Message) -> Option<Spot> {
        self.since.get_or_insert_with(Instant::now);
        if !self.is_writing || self.is_stalled() {
            self.is_behind = true;
            return None;
        }
        match self.log.append(sequence, message) {
            Ok(spot) => {
                self.signal.set();
                spot
            }
            Err(error) => {
                self.write_failed(&error);
                None
            }
        }
    }

    /// Whether all is written as it comes; says so when it was not.
    fn is_well(&mut self) -> bool {
        if self.is_writing && self.problem.take().is_some() {
            tracing::info!("the outbox is on the disk again");
        }
        self.is_writing
    }

    fn is_stalled(&self) -> bool {
        self.syncing.is_some_and(|since| since.elapsed() > STALLED)
    }

    /// Nothing is appended until what is missing in the log is written.
    fn write_failed(&mut self, error: &io::Error) {
        if self.problem.is_none() {
            tracing::error!("the outbox cannot be written to the disk: {error}; it goes on in memory and tries again");
        }
        self.problem = Some(format!("the disk: {error}"));
        self.is_writing = false;
        self.signal.set();
    }

    /// The same, and what was written may be lost, whatever a later sync says.
    fn sync_failed(&mut self, error: &io::Error) {
        self.write_failed(error);
        self.log.doubt_unsynced();
    }

    /// Work was done that had begun with the oldest entry accepted then.
    fn done(&mut self, work: &Work<Arc<File>>, since: Option<Instant>) {
        self.log.done(work);
        if let Some(since) = since {
            let lag = since.elapsed();
            self.worst = self.worst.max(lag);
            if self.lags.len() >= GROUPS {
                self.lags.pop_front();
            }
            self.lags.push_back(lag);
        }
    }
}

/// Brings groups of entries to the disk until the outbox is gone.
fn keep(outbox: &Weak<Outbox>, every: Duration) {
    let mut pause = AGAIN;
    loop {
        let Some(signal) =
            outbox.upgrade().and_then(|outbox| Some(Arc::clone(&outbox.inner().keeping.as_ref()?.signal)))
        else {
            return;
        };
        if !signal.is_set.load(Ordering::Acquire) {
            // Now and then it is looked whether the outbox still is.
            std::thread::park_timeout(Duration::from_secs(5));
            continue;
        }
        // Others come along.
        let end = Instant::now() + every;
        while Instant::now() < end && !signal.is_urgent.swap(false, Ordering::AcqRel) {
            std::thread::park_timeout(end.saturating_duration_since(Instant::now()));
        }
        signal.is_set.store(false, Ordering::Release);
        let Some(outbox) = outbox.upgrade() else { return };
        if step(&outbox) {
            pause = AGAIN;
        } else {
            drop(outbox);
            // Each try may write all that waits.
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_AGAIN);
            signal.set();
        }
    }
}

/// Writes entries a few at a time, so that others get the lock in between.
fn write(outbox: &Outbox, loaded: &[Sequence], stored: &[OnShelf]) -> io::Result<()> {
    loaded.chunks(SLICE).try_for_each(|slice| outbox.inner().write(slice))?;
    let mut unread = None;
    for slice in stored.chunks(SLICE) {
        let reader = outbox.inner().keeping.as_ref().map(|keeping| keeping.log.reader(slice));
        let Some(mut reader) = reader else { return Ok(()) };
        let messages = reader.read(slice, Moment::now());
        let mut inner = outbox.inner();
        for (stored, message) in slice.iter().zip(messages) {
            match inner.given(stored, message) {
                Ok(Some(message)) => inner.write_stored(stored, &message)?,
                Ok(None) => {}
                Err(error) => unread = Some(error),
            }
        }
        inner.settle();
    }
    outbox.appended.notify_one();
    unread.map_or(Ok(()), Err)
}

/// Writes what is not in the log after an error or a stall, or lies in a file
/// that is to be emptied.
fn catch_up(outbox: &Outbox) -> io::Result<()> {
    loop {
        let (loaded, stored) = outbox.inner().to_write();
        write(outbox, &loaded, &stored)?;
        let mut inner = outbox.inner();
        let is_missing = |keeping: &Keeping| !keeping.is_writing || keeping.is_behind;
        if !inner.keeping.as_deref().is_some_and(is_missing) {
            return Ok(());
        }
        let (loaded, stored) = inner.to_write();
        if !stored.is_empty() || loaded.len() > SLICE {
            // There are more, or many have come meanwhile.
            continue;
        }
        inner.write(&loaded)?;
        // From here on each is written as it comes.
        if let Some(keeping) = &mut inner.keeping {
            (keeping.is_writing, keeping.is_behind) = (true, false);
        }
        return Ok(());
    }
}

/// One group; false when the disk is to be left alone for a while.
fn step(outbox: &Outbox) -> bool {
    let is_well = try_step(outbox);
    // Whoever waits looks again, also at what went wrong.
    outbox.synced.send_replace(());
    is_well
}

fn try_step(outbox: &Outbox) -> bool {
    if let Some(keeping) = &mut outbox.inner().keeping
        && !keeping.log.is_there()
    {
        keeping.write_failed(&io::Error::new(io::ErrorKind::NotFound, "its file is gone"));
        keeping.log.doubt_all();
    }
    let caught_up = catch_up(outbox);
    let (work, since, mut syncer) = {
        let mut inner = outbox.inner();
        let Some(keeping) = &mut inner.keeping else { return true };
        // On a full disk files are removed all the same: that makes room.
        if let Err(error) = caught_up.and_then(|()| keeping.log.write_removals()) {
            keeping.write_failed(&error);
        }
        let Some(work) = keeping.log.work() else { return keeping.is_well() };
        keeping.syncing = Some(Instant::now());
        (work, keeping.since.take(), keeping.log.syncer())
    };
    let result = work.carry_out(&mut *syncer);
    let mut inner = outbox.inner();
    let Some(keeping) = &mut inner.keeping else { return true };
    keeping.syncing = None;
    if let Err(error) = result {
        keeping.sync_failed(&error);
        return false;
    }
    keeping.done(&work, since);
    if keeping.is_behind {
        // What was accepted while the disk stalled is written next.
        keeping.signal.set();
    }
    keeping.is_well()
}

#[cfg(test)]
mod tests;
