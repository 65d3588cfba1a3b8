//! The log on a simulated disk whose power is cut, and whose process is killed,
//! at any moment: what must be there is there, whatever is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use fastrand::Rng;

use super::*;
use crate::clock::Moment;
use crate::message::{DeviceId, Publication};
use crate::outbox::Class;

/// Small, so that much happens between few entries.
const SMALL: usize = 16 << 10;
/// Where a removal was written that a failed sync may have lost: nowhere that is ever synced.
const NEVER: u64 = u64::MAX;
/// A power cut tears writes between two of these.
const SECTOR: usize = 512;

/// A disk in memory; clones share it.
#[derive(Clone, Default)]
struct Simulated(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    files: BTreeMap<u64, FileState>,
    /// What the folder knows for sure.
    known: BTreeSet<u64>,
    /// Writes and makings of files that go well before one fails.
    fails_after: Option<u32>,
    sync_fails: bool,
    /// The marks of files whose sync has failed.
    doubted: BTreeSet<u64>,
}

#[derive(Clone, Default)]
struct FileState {
    /// What is in the page cache.
    bytes: Vec<u8>,
    /// What is on the disk.
    synced: Vec<u8>,
    end: usize,
    /// The names of removed files come back until the folder is synced.
    is_removed: bool,
    /// A sync has failed: what was written is lost, and later syncs say that all is well.
    is_broken: bool,
}

impl Simulated {
    fn fail(&self) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        match &mut state.fails_after {
            Some(0) => Err(io::ErrorKind::StorageFull.into()),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// The process dies: nothing that was written is lost.
    fn kill(&self) {
        let mut state = self.0.lock().unwrap();
        state.files.retain(|_, file| !file.is_removed);
        (state.fails_after, state.sync_fails) = (None, false);
    }

    /// The power goes: each sector that was not synced is there or not, each
    /// name that the folder did not know for sure too.
    fn cut(&self, random: &mut Rng) {
        let mut state = self.0.lock().unwrap();
        let known = state.known.clone();
        state.files.retain(|number, file| match (known.contains(number), file.is_removed) {
            (true, false) => true,
            (true, true) | (false, false) => random.bool(),
            (false, true) => false,
        });
        for file in state.files.values_mut() {
            file.is_removed = false;
            let sectors = file.bytes.len().div_ceil(SECTOR);
            for sector in 0..sectors {
                let range = sector * SECTOR..((sector + 1) * SECTOR).min(file.bytes.len());
                if random.bool() {
                    let synced = file.synced[range.clone()].to_vec();
                    file.bytes[range].copy_from_slice(&synced);
                }
            }
            file.synced.clone_from(&file.bytes);
        }
        state.known = state.files.keys().copied().collect();
        state.doubted.retain(|_| random.bool());
        (state.fails_after, state.sync_fails) = (None, false);
    }
}

impl Disk for Simulated {
    type File = u64;

    fn list(&mut self) -> io::Result<Vec<u64>> {
        Ok(self.0.lock().unwrap().files.keys().copied().collect())
    }

    fn read(&mut self, number: u64, limit: usize) -> (Vec<u8>, bool) {
        let state = self.0.lock().unwrap();
        let bytes = state.files.get(&number).map(|file| file.bytes[..file.bytes.len().min(limit)].to_vec());
        (bytes.clone().unwrap_or_default(), bytes.is_some())
    }

    fn open(&mut self, number: u64) -> io::Result<u64> {
        Ok(number)
    }

    fn create(&mut self, number: u64, size: u64) -> io::Result<u64> {
        self.fail()?;
        let zeros = vec![0; size as usize];
        let file = FileState { bytes: zeros.clone(), synced: zeros, ..FileState::default() };
        assert!(self.0.lock().unwrap().files.insert(number, file).is_none(), "no file is made twice");
        Ok(number)
    }

    fn append(&mut self, file: &u64, bytes: &[u8]) -> io::Result<()> {
        let failed = self.fail();
        let mut state = self.0.lock().unwrap();
        let file = state.files.get_mut(file).unwrap();
        // A write that fails may have written a part.
        let bytes = if failed.is_err() { &bytes[..bytes.len() / 2] } else { bytes };
        file.bytes[file.end..file.end + bytes.len()].copy_from_slice(bytes);
        file.end += bytes.len();
        failed
    }

    fn is_there(&self, number: u64, _: &u64) -> bool {
        self.0.lock().unwrap().files.contains_key(&number)
    }

    fn keep_aside(&mut self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn doubted(&mut self) -> io::Result<Vec<u64>> {
        Ok(self.0.lock().unwrap().doubted.iter().copied().collect())
    }

    fn syncer(&self) -> Box<dyn Syncer<u64>> {
        Box::new(self.clone())
    }
}

impl Syncer<u64> for Simulated {
    fn sync(&mut self, file: &u64) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        if state.sync_fails {
            state.files.get_mut(file).into_iter().for_each(|file| file.is_broken = true);
            return Err(io::Error::from_raw_os_error(5));
        }
        if let Some(file) = state.files.get_mut(file).filter(|file| !file.is_broken) {
            file.synced.clone_from(&file.bytes);
        }
        Ok(())
    }

    fn sync_folder(&mut self) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.files.retain(|_, file| !file.is_removed);
        state.known = state.files.keys().copied().collect();
        Ok(())
    }

    fn doubt(&mut self, number: u64) -> io::Result<()> {
        self.0.lock().unwrap().doubted.insert(number);
        Ok(())
    }

    fn remove(&mut self, number: u64) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.doubted.remove(&number);
        if let Some(file) = state.files.get_mut(&number) {
            file.is_removed = true;
        }
        Ok(())
    }

    fn read_at(&mut self, file: &u64, at: u64, size: usize) -> io::Result<Vec<u8>> {
        let state = self.0.lock().unwrap();
        let bytes = state.files.get(file).and_then(|file| file.bytes.get(at as usize..at as usize + size));
        bytes.map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

fn entry(sequence: Sequence, size: usize) -> Message {
    let payload = format!("{sequence}:").into_bytes().into_iter().chain(std::iter::repeat_n(b'x', size));
    let publication = Publication {
        topic: "v1/from/S/d/v1/telemetry".into(),
        payload: payload.collect::<Vec<u8>>().into(),
        joins: sequence.is_multiple_of(2),
        stamp: None,
    };
    let class = [Class::Log, Class::Telemetry, Class::Keep, Class::Answer][sequence as usize % 4];
    let moment = Moment { wall: sequence, steady: sequence };
    Message {
        device: DeviceId::new(&format!("d{}", sequence % 5)),
        class,
        moment,
        alone: sequence.is_multiple_of(7),
        publication,
    }
}

/// A log in use, with what must be true of it.
struct Model {
    disk: Simulated,
    log: Log<Simulated>,
    /// What waits: the entry, where it lies, and how far the log was written with it.
    waiting: BTreeMap<Sequence, (Message, Option<Spot>, u64)>,
    /// Entries that are gone, and how far the log was written when it knew; none
    /// when it does not, or when that may have been lost.
    gone: BTreeMap<Sequence, Option<u64>>,
    next: Sequence,
    work: Option<Work<u64>>,
}

/// Opens a log and reads all that waits in it.
fn open(disk: &Simulated, file: usize) -> (Log<Simulated>, BTreeMap<Sequence, (Message, Spot)>, Findings) {
    let now = Moment { wall: 0, steady: 0 };
    // A file that has lost its header is one of start 0: its moments are read as they are.
    let (log, waiting, findings) = Log::open(disk.clone(), 0, now, file).unwrap();
    let mut entries = BTreeMap::new();
    for (device, shelf) in &waiting {
        let all: Vec<OnShelf> = shelf.all().map(|(class, stored)| (device.clone(), class, *stored)).collect();
        let messages = log.reader(&all).read(&all, now);
        for ((_, class, stored), message) in all.into_iter().zip(messages) {
            let message = message.unwrap();
            assert_eq!((message.class, message.cost()), (class, stored.cost as usize));
            assert!(entries.insert(stored.sequence, (message, stored.spot)).is_none(), "no entry is there twice");
        }
    }
    (log, entries, findings)
}

impl Model {
    fn open(disk: Simulated) -> (Model, BTreeMap<Sequence, Message>) {
        let (log, entries, _) = open(&disk, SMALL);
        let (next, written) = (log.next_sequence(), log.written());
        let found = entries.iter().map(|(sequence, (message, _))| (*sequence, message.clone())).collect();
        // What lies in a doubted file is durable when it was written again.
        let durable = |spot: Spot| if log.doubted.contains(&spot.file) { NEVER } else { written };
        let waiting =
            entries.into_iter().map(|(sequence, (message, spot))| (sequence, (message, Some(spot), durable(spot))));
        let waiting = waiting.collect();
        (Model { disk, log, waiting, gone: BTreeMap::new(), next, work: None }, found)
    }

    /// Writes what waits and is in no file, or in one that is to be emptied. The
    /// outbox does it so.
    fn write_again(&mut self) -> io::Result<()> {
        let files = self.log.to_empty();
        for (sequence, (message, spot, written)) in &mut self.waiting {
            if spot.is_some_and(|spot| !files.contains(&spot.file)) {
                continue;
            }
            let new = self.log.append(*sequence, message)?;
            if let Some(old) = std::mem::replace(spot, new) {
                self.log.leave(old);
            }
            *written = self.log.written();
        }
        Ok(())
    }

    /// After an error of the disk.
    fn recover(&mut self, is_sync: bool) {
        self.disk.0.lock().unwrap().fails_after = None;
        self.disk.0.lock().unwrap().sync_fails = false;
        if is_sync {
            self.work = None;
            self.log.doubt_unsynced();
            // Who is gone may be forgotten, and come back.
            self.gone.values_mut().for_each(|known| *known = Some(NEVER));
        }
        self.write_again().unwrap();
    }

    fn step(&mut self, random: &mut Rng) {
        match random.u32(..100) {
            0..45 => {
                // Large ones now and then, so that files fill up.
                let size = if random.u32(..20) == 0 { random.usize(..20_000) } else { random.usize(..300) };
                let (sequence, message) = (self.next, entry(self.next, size));
                self.next += 1;
                match self.log.append(sequence, &message) {
                    Ok(spot) => drop(self.waiting.insert(sequence, (message, spot, self.log.written()))),
                    Err(_) => {
                        self.waiting.insert(sequence, (message, None, 0));
                        self.recover(false);
                    }
                }
            }
            45..85 => {
                // The oldest mostly, as a session acknowledges.
                let place = if random.u32(..4) == 0 { random.usize(..self.waiting.len().max(1)) } else { 0 };
                let Some(sequence) = self.waiting.keys().nth(place).copied() else { return };
                let Some((_, Some(spot), _)) = self.waiting.remove(&sequence) else { panic!("all are written") };
                self.gone.insert(sequence, None);
                if self.log.remove(sequence, spot) && self.log.write_removals().is_err() {
                    self.recover(false);
                }
            }
            85..92 => {
                if self.work.is_none() {
                    self.work = self.log.work();
                }
            }
            92..98 => {
                let Some(work) = self.work.take() else { return };
                match work.carry_out(&mut *self.log.syncer()) {
                    Ok(()) => self.log.done(&work),
                    Err(_) => self.recover(true),
                }
            }
            98 => {
                if self.write_again().is_err() {
                    self.recover(false);
                }
            }
            _ => {
                let mut state = self.disk.0.lock().unwrap();
                match random.bool() {
                    true => state.fails_after = Some(random.u32(..20)),
                    false => state.sync_fails = true,
                }
            }
        }
    }
}

/// One life after another on one disk, each with a death at a random moment.
fn lives(seed: u64, deaths: u32) {
    let mut random = Rng::with_seed(seed);
    let disk = Simulated::default();
    let (mut model, _) = Model::open(disk.clone());
    for death in 0..deaths {
        for _ in 0..random.u32(..60) {
            model.step(&mut random);
            let Model { log, gone, .. } = &mut model;
            let told = gone.iter_mut().filter(|(sequence, _)| !log.pending.contains(sequence));
            told.for_each(|(_, known)| *known = known.or(Some(log.written())));
        }
        let (synced, is_cut) = (model.log.synced(), random.bool());
        let Model { waiting, gone, log, .. } = model;
        let pending: BTreeSet<Sequence> = log.pending.iter().copied().collect();
        drop(log);
        if is_cut {
            disk.cut(&mut random)
        } else {
            disk.kill()
        }
        let place = format!("seed {seed}, death {death}, {}", if is_cut { "power cut" } else { "kill" });
        let (next, found) = Model::open(disk.clone());
        model = next;
        for (sequence, (kept, _, written)) in &waiting {
            let must_be = !is_cut || *written <= synced;
            assert!(!must_be || found.contains_key(sequence), "{place}: entry {sequence} is lost");
            assert!(found.get(sequence).is_none_or(|found| found == kept), "{place}: entry {sequence} is another");
        }
        for back in found.keys().filter(|sequence| !waiting.contains_key(sequence)) {
            let known = gone.get(back).unwrap_or_else(|| panic!("{place}: entry {back} comes from nowhere"));
            let may_be = if is_cut { known.is_none_or(|known| known > synced) } else { pending.contains(back) };
            assert!(may_be, "{place}: entry {back} is back");
        }
        // A later power cut may bring back what an earlier life was told of.
        let forgotten = gone.into_iter().filter(|(sequence, _)| !found.contains_key(sequence));
        let known = |known: Option<u64>| known.filter(|known| *known == NEVER);
        model.gone = forgotten.map(|(sequence, at)| (sequence, known(at))).collect();
    }
}

#[test]
fn what_was_accepted_survives_kills_and_what_is_durable_survives_power_cuts() {
    crate::ledger::power_cuts::many(lives);
}

/// A process dies after a sync has failed and before what was acknowledged is noted as gone: the
/// next one finds in memory what is not on the disk, and no sync tells it. Found among 10,000,000 deaths.
#[test]
fn what_a_process_before_could_not_sync_is_doubted() {
    lives(48435, 50);
}

#[test]
fn files_go_when_all_is_gone_and_what_a_few_hold_back_is_written_again() {
    let disk = Simulated::default();
    let (mut log, _, _) = open(&disk, FILE);
    let mut spots = BTreeMap::new();
    let files = || disk.0.lock().unwrap().files.len();
    let sync = |log: &mut Log<Simulated>| {
        while let Some(work) = log.work() {
            let is_idle = work.remove.is_empty();
            work.carry_out(&mut *log.syncer()).unwrap();
            log.done(&work);
            if is_idle {
                break;
            }
        }
    };
    for sequence in 0..100_000 {
        let spot = log.append(sequence, &entry(sequence, 100)).unwrap().unwrap();
        // One of a thousand stays.
        if sequence % 1000 == 0 {
            spots.insert(sequence, spot);
        } else if log.remove(sequence, spot) {
            log.write_removals().unwrap();
        }
        if sequence % 100 == 0 {
            sync(&mut log);
        }
    }
    assert!(files() > 4, "the few hold back all: {}", files());
    loop {
        let files = log.to_empty();
        if files.is_empty() {
            break;
        }
        for (sequence, spot) in spots.iter_mut().filter(|(_, spot)| files.contains(&spot.file)) {
            let new = log.append(*sequence, &entry(*sequence, 100)).unwrap().unwrap();
            log.leave(std::mem::replace(spot, new));
        }
        sync(&mut log);
    }
    sync(&mut log);
    assert!(log.bytes() <= (SPARE * FILE) as u64 + 2 * log.live, "{}", log.bytes());
    let (_, found, findings) = open(&disk, FILE);
    assert_eq!((found.len(), findings), (100, Findings::default()));
}
