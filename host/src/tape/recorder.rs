//! Records one life of a driver into memory, bounded: a ring of chunks.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::event::{self, Kind};
use super::redactor::Redactor;
use crate::clock::{Time, now};

/// What is given up at once when there is no more room.
const CHUNK: usize = 16 << 10;
/// A chunk holds no more than this part of the longest time.
const AGES: u32 = 8;
/// One call does not take more, however much room there is.
const MOST_IN_CALL: usize = 32 << 20;
/// Less than this is of no use to anybody.
const LEAST: usize = 2 * CHUNK;

/// Memory for the tapes of all devices, which they share in equal parts.
#[derive(Debug, Clone)]
pub struct Room(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    bytes: usize,
    age: Duration,
    recorders: AtomicUsize,
}

impl Room {
    /// So many bytes in all, and no tape longer than so.
    pub fn new(bytes: usize, age: Duration) -> Room {
        Room(Arc::new(Shared { bytes, age, recorders: AtomicUsize::new(0) }))
    }

    /// A recorder, when there is room for one more.
    pub fn recorder(&self) -> Option<Box<Recorder>> {
        let place = Seat(Arc::clone(&self.0));
        self.0.recorders.fetch_add(1, Relaxed);
        (self.0.part() >= LEAST).then(|| Box::new(Recorder::new(place)))
    }

    /// A recorder for what is asked for, room or not.
    pub(super) fn asked_recorder(&self) -> Box<Recorder> {
        self.0.recorders.fetch_add(1, Relaxed);
        Box::new(Recorder::new(Seat(Arc::clone(&self.0))))
    }
}

impl Shared {
    /// What each has.
    fn part(&self) -> usize {
        self.bytes / self.recorders.load(Relaxed).max(1)
    }
}

/// Counts as one recorder for as long as it lives.
#[derive(Debug)]
struct Seat(Arc<Shared>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.recorders.fetch_sub(1, Relaxed);
    }
}

/// Events that lie and are given up together; the first one is a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Since the begin of the life.
    pub start: Duration,
    /// The events.
    pub events: Arc<[u8]>,
}

/// What handles of a driver stand for.
type Handles = BTreeMap<u32, String>;

/// See the module documentation.
#[derive(Debug)]
pub struct Recorder {
    /// When the life began, for people.
    pub(super) began: Time,
    /// Whether nothing was given up.
    pub(super) is_whole: bool,
    /// The configuration that counts, without secrets.
    pub(super) configuration: String,
    pub(super) redactor: Redactor,
    begin: Instant,
    chunks: VecDeque<(Chunk, Arc<Handles>)>,
    /// What handles stand for now, and stood for at the begin of what is being written.
    handles: Arc<Handles>,
    handles_before: Arc<Handles>,
    /// Bytes of them.
    size: usize,
    /// What is being written, and when its first call was.
    current: Vec<u8>,
    start: Duration,
    last_call: Duration,
    /// When what is being called, or asked, began.
    since: Instant,
    asked: Instant,
    /// A larger bound, until a time.
    extended: Option<(usize, Instant)>,
    /// What one call may take; it is left out when it takes more.
    most: usize,
    /// Whether the call under way is left out.
    skips: bool,
    seat: Seat,
}

impl Recorder {
    fn new(seat: Seat) -> Recorder {
        let begin = Instant::now();
        Recorder {
            began: now(),
            is_whole: true,
            configuration: "{}".into(),
            redactor: Redactor::default(),
            begin,
            chunks: VecDeque::new(),
            handles: Arc::default(),
            handles_before: Arc::default(),
            size: 0,
            current: Vec::new(),
            start: Duration::ZERO,
            last_call: Duration::ZERO,
            since: begin,
            asked: begin,
            extended: None,
            most: seat.0.part(),
            skips: false,
            seat,
        }
    }

    /// It begins in the middle of a life.
    pub(super) fn begins_late(&mut self) {
        self.is_whole = false;
    }

    /// Whether what was asked for is over.
    pub(super) fn is_over(&self) -> bool {
        self.extended.is_none_or(|(_, until)| Instant::now() >= until)
    }

    /// Keeps more for a time.
    pub fn extend(&mut self, bytes: usize, until: Instant) {
        self.most = self.most.max(bytes);
        self.extended = Some((bytes, until));
    }

    pub(super) fn call(&mut self, number: u8, arguments: &impl Serialize) {
        self.since = Instant::now();
        // As exact as it is kept.
        let at = Duration::from_micros(event::micros(self.since.duration_since(self.begin)));
        self.skips = false;
        let age = self.seat.0.age;
        if self.current.len() >= CHUNK || !self.current.is_empty() && at.saturating_sub(self.start) > age / AGES {
            self.seal();
        }
        self.give_up(at);
        if self.current.is_empty() {
            self.start = at;
            self.last_call = at;
            self.handles_before = Arc::clone(&self.handles);
        }
        self.write(Kind::Call, number, at.saturating_sub(self.last_call), arguments);
        self.last_call = at;
    }

    pub(super) fn returned(&mut self, result: &impl Serialize) {
        self.write(Kind::Return, 0, self.since.elapsed(), result);
    }

    pub(super) fn import(&mut self, number: u8, waits: bool, arguments: &impl Serialize) {
        if waits {
            self.asked = Instant::now();
        }
        self.write(Kind::Import, number, Duration::ZERO, arguments);
    }

    pub(super) fn answered(&mut self, waits: bool, answer: &impl Serialize) {
        let took = if waits { self.asked.elapsed() } else { Duration::ZERO };
        self.write(Kind::Answer, 0, took, answer);
    }

    fn write(&mut self, kind: Kind, number: u8, time: Duration, value: &impl Serialize) {
        if self.skips {
            return;
        }
        let event::Place(begin) = event::write(&mut self.current, kind, number, time, value);
        if self.current.len() > self.most.min(MOST_IN_CALL) {
            // A driver that asks and asks must not fill the memory.
            self.current = Vec::new();
            (self.skips, self.is_whole) = (true, false);
            return;
        }
        self.redactor.hide(&mut self.current, begin);
    }

    /// Ends a chunk.
    fn seal(&mut self) {
        let events: Arc<[u8]> = self.current.as_slice().into();
        self.current.clear();
        self.current.shrink_to(2 * CHUNK);
        self.size += events.len();
        self.chunks.push_back((Chunk { start: self.start, events }, Arc::clone(&self.handles_before)));
    }

    /// Gives up what there is no room for, or is too old.
    fn give_up(&mut self, at: Duration) {
        self.most = self.seat.0.part();
        let mut age = self.seat.0.age;
        if let Some((bytes, until)) = self.extended {
            match Instant::now() < until {
                true => (self.most, age) = (bytes.max(self.most), Duration::MAX),
                false => self.extended = None,
            }
        }
        if self.most < LEAST {
            // There are too many devices by now.
            self.chunks.clear();
            (self.size, self.current) = (0, Vec::new());
            (self.skips, self.is_whole) = (true, false);
            return;
        }
        // A chunk ends where the next one begins.
        let ends = |recorder: &Recorder| recorder.chunks.get(1).map_or(recorder.start, |(chunk, _)| chunk.start);
        while self.size + self.current.len() + CHUNK > self.most || at.saturating_sub(ends(self)) > age {
            let Some((chunk, _)) = self.chunks.pop_front() else { break };
            self.size -= chunk.events.len();
            self.is_whole = false;
        }
    }

    /// A handle stands for something from now on, or for nothing any more.
    pub(super) fn handle(&mut self, handle: u32, stands_for: Option<String>) {
        let handles = Arc::make_mut(&mut self.handles);
        match stands_for {
            Some(name) => handles.insert(handle, name),
            None => handles.remove(&handle),
        };
    }

    /// What handles stood for at the begin of the tape.
    pub(super) fn handles(&self) -> Handles {
        let first = self.chunks.front().map_or(&self.handles_before, |(_, handles)| handles);
        Handles::clone(first)
    }

    /// What there is now, oldest first; the last event may be a call under way.
    pub(super) fn chunks(&self) -> Vec<Chunk> {
        let current =
            (!self.current.is_empty()).then(|| Chunk { start: self.start, events: self.current.clone().into() });
        self.chunks.iter().map(|(chunk, _)| chunk.clone()).chain(current).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls with this many bytes, one a second.
    async fn calls(recorder: &mut Recorder, number: usize, size: usize) {
        for _ in 0..number {
            tokio::time::advance(Duration::from_secs(1)).await;
            recorder.call(2, &vec![7_u8; size]);
            recorder.returned(&());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_ring_keeps_the_newest_within_its_room_and_its_age() {
        let room = Room::new(256 << 10, Duration::from_secs(3600));
        let mut recorder = room.recorder().unwrap();
        calls(&mut recorder, 50, 1000).await;
        assert!(recorder.is_whole);
        calls(&mut recorder, 1000, 1000).await;
        let chunks = recorder.chunks();
        let size: usize = chunks.iter().map(|chunk| chunk.events.len()).sum();
        assert!(!recorder.is_whole && (200 << 10..=256 << 10).contains(&size), "{size}");
        assert!(chunks.is_sorted_by_key(|chunk| chunk.start) && chunks[0].start > Duration::from_secs(700));
        // Small calls fill no room; what is older than an hour goes all the same.
        calls(&mut recorder, 8000, 1).await;
        let oldest = recorder.chunks()[0].start;
        assert!(oldest >= Duration::from_secs(9050 - 3600 - 451), "{oldest:?}");
        // Others take their part of the room.
        let others: Vec<_> = (0..7).map(|_| room.recorder().unwrap()).collect();
        assert!(room.recorder().is_none());
        calls(&mut recorder, 40, 1000).await;
        let size: usize = recorder.chunks().iter().map(|chunk| chunk.events.len()).sum();
        assert!(size <= 48 << 10, "{size}");
        drop(others);
        // A call that takes more than all the room is left out, and the next one is not.
        recorder.call(3, &());
        (0..10_000).for_each(|_| recorder.import(1, false, &[7_u8; 32]));
        calls(&mut recorder, 1, 3).await;
        assert!(recorder.current.len() < 100 && recorder.current.capacity() < 64 << 10);
        recorder.extend(1 << 20, Instant::now() + Duration::from_secs(1000));
        calls(&mut recorder, 900, 1000).await;
        let size: usize = recorder.chunks().iter().map(|chunk| chunk.events.len()).sum();
        assert!(size > 900_000, "{size}");
        calls(&mut recorder, 200, 1000).await;
        let size: usize = recorder.chunks().iter().map(|chunk| chunk.events.len()).sum();
        assert!(size <= 256 << 10, "{size}");
    }
}
