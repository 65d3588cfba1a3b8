//! Keeps an outbox on the disk: what it accepts survives the death of the
//! process, and soon after a power cut as well.
//!
//! Whoever appends writes to the log; a thread brings it to the disk in groups.
//! When the disk fails or stalls, the outbox goes on in memory and says so once;
//! as soon as the disk takes it, all that waits is written anew.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::Thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::disk::Folder;
use super::log::{FILE, Log, Work};
use super::queue::{Entry, Place, Queue};
use super::record::Kept;
use super::{Inner, Outbox, Sequence};
use crate::clock::{Moment, boot};

/// How long the disk is left alone after it has failed, at first and at most.
const AGAIN: Duration = Duration::from_secs(1);
const LONGEST_AGAIN: Duration = Duration::from_secs(30);
/// A disk that takes longer for a sync stalls: nothing is written to it meanwhile.
const STALLED: Duration = Duration::from_secs(1);
/// Entries that are written again while others wait.
const SLICE: usize = 256;
/// The lags of this number of groups are remembered.
const GROUPS: usize = 1000;

/// An outbox's way to the disk.
pub(super) struct Keeping {
    log: Log<Folder>,
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
    signal: Arc<Signal>,
}

/// Wakes the thread.
#[derive(Default)]
struct Signal {
    is_set: AtomicBool,
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
        let boot = boot();
        let (log, entries, findings) = Log::open(Folder::new(folder), boot, FILE)?;
        let recovered = Recovered { entries: entries.len(), damaged: findings.damaged };
        let signal = Arc::<Signal>::default();
        let now = Moment::now();
        {
            let mut inner = self.inner();
            inner.queue.keep_from(log.next_sequence());
            for (sequence, (kept, of)) in entries {
                let moment = if of == boot { kept.moment } else { now.as_old_as(kept.moment.wall) };
                inner.queue.restore(sequence, Entry { moment, ..Entry::of(kept) });
            }
            inner.queue.drop_all_old(now);
            inner.keeping = Some(Box::new(Keeping {
                log,
                is_writing: true,
                problem: None,
                since: None,
                syncing: None,
                is_behind: false,
                lags: VecDeque::new(),
                worst: Duration::ZERO,
                signal: Arc::clone(&signal),
            }));
            inner.settle();
            // What was read of a file that has more in it.
            let missing = inner.missing();
            if let Err(error) = inner.write(&missing)
                && let Some(keeping) = &mut inner.keeping
            {
                keeping.write_failed(&error);
            }
        }
        let outbox = Arc::downgrade(self);
        let thread = std::thread::Builder::new().name("outbox".into()).spawn(move || keep(&outbox, every))?;
        let _ = signal.thread.set(thread.thread().clone());
        signal.set();
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
    /// Writes an entry to the log.
    pub(super) fn keep(&mut self, sequence: Sequence) {
        let Inner { queue, keeping } = self;
        let Some(keeping) = keeping else { return };
        // It may have been dropped at once.
        let Some(entry) = queue.entries.get(&sequence) else { return };
        if !keeping.is_writing || keeping.is_stalled() {
            keeping.is_behind = true;
            keeping.since.get_or_insert_with(Instant::now);
            return;
        }
        if let Err(error) = keeping.log.append(sequence, &entry.kept()) {
            return keeping.write_failed(&error);
        }
        keeping.since.get_or_insert_with(Instant::now);
        keeping.signal.set();
    }

    /// Tells the log what has left the queue.
    pub(super) fn settle(&mut self) {
        let Some(keeping) = &mut self.keeping else { return };
        if self.queue.gone.is_empty() {
            return;
        }
        for sequence in self.queue.gone.drain(..) {
            if keeping.log.remove(sequence)
                && keeping.is_writing
                && !keeping.is_stalled()
                && let Err(error) = keeping.log.write_removals()
            {
                keeping.write_failed(&error);
            }
        }
        keeping.signal.set();
    }

    /// What waits and is not in the log, in order.
    fn missing(&self) -> Vec<Sequence> {
        let Some(keeping) = &self.keeping else { return Vec::new() };
        let keys = self.queue.entries.keys().copied();
        let mut missing: Vec<Sequence> = keys.filter(|sequence| !keeping.log.holds(*sequence)).collect();
        missing.sort_unstable();
        missing
    }

    /// What holds back the oldest file, in order, if that is to go.
    fn held_back(&self) -> Vec<Sequence> {
        let Some(keeping) = &self.keeping else { return Vec::new() };
        let Some(number) = keeping.log.to_make_free() else { return Vec::new() };
        let keys = self.queue.entries.keys().copied();
        let mut held: Vec<Sequence> = keys.filter(|sequence| keeping.log.is_in(*sequence, number)).collect();
        held.sort_unstable();
        held
    }

    /// Writes entries that still wait.
    fn write(&mut self, sequences: &[Sequence]) -> io::Result<()> {
        let Inner { queue, keeping } = self;
        let Some(keeping) = keeping else { return Ok(()) };
        for sequence in sequences {
            if let Some(entry) = queue.entries.get(sequence) {
                keeping.log.append(*sequence, &entry.kept())?;
            }
        }
        Ok(())
    }
}

impl Keeping {
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
        self.log.begin_anew();
    }

    /// Work was done that had begun with the oldest entry accepted then.
    fn done(&mut self, work: &Work<Arc<std::fs::File>>, since: Option<Instant>) {
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
fn write(outbox: &Outbox, sequences: &[Sequence]) -> io::Result<()> {
    sequences.chunks(SLICE).try_for_each(|slice| outbox.inner().write(slice))
}

/// Writes what is not in the log after an error, or holds back old files.
fn catch_up(outbox: &Outbox) -> io::Result<()> {
    let is_writing = outbox.inner().keeping.as_ref().is_none_or(|keeping| keeping.is_writing);
    if is_writing {
        let held = outbox.inner().held_back();
        return write(outbox, &held);
    }
    let missing = outbox.inner().missing();
    write(outbox, &missing)?;
    // What has come meanwhile; from here on each is written as it comes.
    let mut inner = outbox.inner();
    let missing = inner.missing();
    inner.write(&missing)?;
    if let Some(keeping) = &mut inner.keeping {
        (keeping.is_writing, keeping.is_behind) = (true, false);
    }
    Ok(())
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
        keeping.sync_failed(&io::Error::new(io::ErrorKind::NotFound, "its file is gone"));
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
    if !keeping.is_well() || !std::mem::take(&mut keeping.is_behind) {
        return keeping.is_writing;
    }
    // What was accepted while the disk stalled.
    let missing = inner.missing();
    let written = inner.write(&missing);
    let Some(keeping) = &mut inner.keeping else { return true };
    keeping.signal.set();
    if let Err(error) = &written {
        keeping.write_failed(error);
    }
    written.is_ok()
}

impl Entry {
    /// An entry that was kept.
    fn of(kept: Kept) -> Entry {
        let Kept { device, class, moment, alone, publication } = kept;
        Entry { device, class, moment, place: Place::Unsent, alone, publication }
    }

    /// What is kept of it.
    fn kept(&self) -> Kept {
        Kept {
            device: self.device.clone(),
            class: self.class,
            moment: self.moment,
            alone: self.alone,
            publication: self.publication.clone(),
        }
    }
}

impl Queue {
    /// Begins to number entries here, and to note which are gone.
    fn keep_from(&mut self, next: Sequence) {
        self.next = self.next.max(next);
        self.is_kept = true;
    }
}
