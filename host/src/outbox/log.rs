//! What an outbox keeps on the disk: a log of entries and of those that are gone.
//!
//! Files are written one after another and removed whole, oldest first, when all
//! their entries are gone. What a few old entries hold back is written again at
//! the end. Of an entry the log gives where it lies (`Spot`); who holds that reads
//! it there when its turn comes. Plain state: the outbox's lock is around it, and
//! other threads do what takes long (`Work`, `Syncer`).

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use rustc_hash::FxHashSet;

use super::disk::{Disk, Syncer};
use super::record::{self, HEADER, Message, Record, Span, View};
use super::stored::{Found, Shelf, Stored};
use super::{Class, Sequence};
use crate::clock::Moment;
use crate::message::DeviceId;

/// The size of a file, unless a single record is larger, at least and at most.
pub(super) const FILE: usize = 4 << 20;
pub(super) const LARGEST_FILE: usize = 64 << 20;
/// Removals that wait for the next write, at most: after the death of the
/// process these entries are sent a second time.
pub(super) const MAX_PENDING: usize = 128;
/// Entries with no more bytes between them are read at once.
const CLOSE: u32 = 4 << 10;
/// Files beside twice the bytes of what waits.
const SPARE: usize = 4;

/// See the module documentation.
pub(super) struct Log<D: Disk> {
    disk: D,
    file_size: usize,
    boot: u64,
    active: Option<Active<D::File>>,
    /// All files that are there, the active one among them.
    files: BTreeMap<u64, Usage<D::File>>,
    /// Bytes of the entries that wait.
    live: u64,
    /// Entries that are gone, and of which the log does not know yet.
    pending: Vec<Sequence>,
    buffer: Vec<u8>,
    next_file: u64,
    /// Files of which nobody knows what is on the disk: it has failed.
    doubted: BTreeSet<u64>,
    /// Files with something that is not synced, by number.
    unsynced: BTreeMap<u64, D::File>,
    /// How many files were made, and up to which one the folder knows them.
    made: u64,
    known: u64,
    /// The highest number of an entry that the log has seen.
    highest: Option<Sequence>,
    /// Bytes that were written, and up to where they are on the disk.
    written: u64,
    synced: u64,
}

struct Active<F> {
    number: u64,
    file: F,
    size: usize,
}

struct Usage<F> {
    /// Open as long as it is used: to read from, whatever becomes of its name.
    file: F,
    /// The start of the machine in which it was written.
    boot: u64,
    /// Entries that wait.
    live: usize,
    bytes: u64,
    /// Up to where the log must be synced before the file may go.
    freed_at: u64,
}

/// Where an entry lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Spot {
    /// The number of the file.
    pub file: u64,
    /// Where in it its record begins.
    pub at: u32,
    /// The size of its record.
    pub size: u32,
}

/// An entry of a device that is on the disk only.
pub(super) type OnShelf = (DeviceId, Class, Stored);

/// The entries that wait, by device.
pub(super) type Waiting = Vec<(DeviceId, Shelf)>;

/// What a log had to say when it was opened.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Findings {
    /// Stretches of files that could not be read.
    pub damaged: usize,
    /// The files that have such.
    pub files: Vec<u64>,
}

/// What is to be brought to the disk.
pub(super) struct Work<F> {
    files: BTreeMap<u64, F>,
    /// The one of them that is written on meanwhile.
    active: Option<u64>,
    /// Up to which new file the folder is to know them, if it does not.
    folder: Option<u64>,
    upto: u64,
    remove: Vec<u64>,
}

/// Numbers of entries that are gone.
type Gone = FxHashSet<Sequence>;

impl<D: Disk> Log<D> {
    /// Opens what is there, and gives the entries that wait. `boot` stands for
    /// this start of the machine, `now` is now.
    pub(super) fn open(mut disk: D, boot: u64, now: Moment, file_size: usize) -> io::Result<(Self, Waiting, Findings)> {
        let numbers = disk.list()?;
        let mut log = Log {
            disk,
            file_size,
            boot,
            active: None,
            files: BTreeMap::new(),
            live: 0,
            pending: Vec::new(),
            buffer: Vec::new(),
            next_file: numbers.last().map_or(0, |last| last + 1),
            doubted: BTreeSet::new(),
            unsynced: BTreeMap::new(),
            made: 0,
            known: 0,
            highest: None,
            written: 0,
            synced: 0,
        };
        let (mut found, mut gone, mut findings) = (Found::default(), Gone::default(), Findings::default());
        // The last file first: what it says is gone is not even looked at in those before.
        for number in numbers.into_iter().rev() {
            log.read(number, now, &mut found, &mut gone, &mut findings);
        }
        findings.files.reverse();
        let mut waiting = Vec::with_capacity(found.devices.len());
        // The process before may have left what it could not bring to the disk.
        let marked = log.disk.doubted()?;
        log.doubted.extend(marked.into_iter().filter(|number| log.files.contains_key(number)));
        for (device, classes) in found.devices {
            let (shelf, copies) = Shelf::from_unsorted(classes);
            copies.iter().for_each(|copy| log.leave(copy.spot));
            waiting.push((device, shelf));
        }
        // What the process before has written may not be on the disk yet.
        log.made = log.unsynced.len() as u64;
        log.written = log.made;
        Ok((log, waiting, findings))
    }

    fn read(&mut self, number: u64, now: Moment, found: &mut Found, gone: &mut Gone, findings: &mut Findings) {
        // A larger one was not written here.
        let (bytes, is_whole) = self.disk.read(number, 2 * LARGEST_FILE + record::MAX_BODY);
        let boot = record::read_header(&bytes);
        // A file that was made just before the power went has nothing in it.
        let is_empty = bytes.iter().all(|byte| *byte == 0);
        let reading = record::read(&bytes, |record, _| {
            if let Record::Removal(numbers) = record {
                self.highest = self.highest.max(numbers.iter().copied().max());
                gone.extend(numbers);
            }
        });
        let damaged = reading.damaged + usize::from(boot.is_none() && !is_empty) + usize::from(!is_whole);
        if damaged > 0 {
            findings.damaged += damaged;
            findings.files.push(number);
            // Without it there is less to look at, and nothing else is lost.
            let _ = self.disk.keep_aside(number);
        }
        let Ok(file) = self.disk.open(number) else { return };
        let boot = boot.unwrap_or_default();
        self.unsynced.insert(number, file.clone());
        self.files.insert(number, Usage { file, boot, live: 0, bytes: reading.bytes as u64, freed_at: 0 });
        if !is_whole {
            // What can be read of it moves to another one, the rest was kept aside.
            self.doubted.insert(number);
        }
        record::read(&bytes, |record, span| {
            let Record::Entry(view) = record else { return };
            self.highest = self.highest.max(Some(view.sequence));
            if gone.contains(&view.sequence) {
                return;
            }
            let accepted = if boot == self.boot { view.moment } else { now.as_old_as(view.moment.wall) };
            let spot = spot(number, span);
            let entry = Stored::new(view.sequence, spot, view.topic.len() + view.payload.len(), accepted);
            found.add(view.device, view.class, entry);
            self.enter(spot);
        });
    }

    /// A number that no entry of the log has.
    pub(super) fn next_sequence(&self) -> Sequence {
        self.highest.map_or(0, |highest| highest + 1)
    }

    /// Writes an entry, and says where. When this returns well, it survives the
    /// death of the process. One that does not fit the format lies nowhere; the
    /// router lets nothing of this size pass.
    pub(super) fn append(&mut self, sequence: Sequence, message: &Message) -> io::Result<Option<Spot>> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        self.add_pending(&mut buffer);
        let begin = buffer.len();
        let fits = record::write_entry(&mut buffer, sequence, message);
        let written = if buffer.is_empty() { Ok((0, 0)) } else { self.write(&buffer) };
        let size = buffer.len() - begin;
        self.buffer = buffer;
        let (number, at) = written?;
        self.pending.clear();
        if !fits {
            return Ok(None);
        }
        let spot = spot(number, Span { at: at + begin, size });
        self.enter(spot);
        Ok(Some(spot))
    }

    fn enter(&mut self, spot: Spot) {
        self.live += u64::from(spot.size);
        if let Some(usage) = self.files.get_mut(&spot.file) {
            usage.live += 1;
        }
    }

    /// An entry does not lie there any more: it was written again elsewhere.
    pub(super) fn leave(&mut self, spot: Spot) {
        self.live -= u64::from(spot.size);
        if let Some(usage) = self.files.get_mut(&spot.file) {
            usage.live -= 1;
            usage.freed_at = self.written;
        }
    }

    /// Notes that an entry is gone. The log hears of it with the next write;
    /// true when there are so many that one is due.
    pub(super) fn remove(&mut self, sequence: Sequence, spot: Spot) -> bool {
        self.leave(spot);
        self.pending.push(sequence);
        self.pending.len() >= MAX_PENDING
    }

    /// Writes what is gone.
    pub(super) fn write_removals(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let mut buffer = Vec::new();
        self.add_pending(&mut buffer);
        self.write(&buffer)?;
        self.pending.clear();
        Ok(())
    }

    fn add_pending(&self, buffer: &mut Vec<u8>) {
        // A disk that failed for long has let many come together; a record has a longest size.
        self.pending.chunks(MAX_PENDING).for_each(|pending| record::write_removal(buffer, pending));
    }

    /// Writes records to the active file: which one, and where in it.
    fn write(&mut self, bytes: &[u8]) -> io::Result<(u64, usize)> {
        let is_full = self.active.as_ref().is_none_or(|active| active.size + bytes.len() > self.file_size);
        if is_full {
            self.begin_file(bytes.len())?;
        }
        let Some(active) = &mut self.active else { return Err(io::ErrorKind::NotFound.into()) };
        if let Err(error) = self.disk.append(&active.file, bytes) {
            // Nobody knows what is in it; the next write begins another one.
            self.active = None;
            return Err(error);
        }
        let at = active.size;
        active.size += bytes.len();
        self.written += bytes.len() as u64;
        if let Some(usage) = self.files.get_mut(&active.number) {
            usage.bytes += bytes.len() as u64;
        }
        Ok((active.number, at))
    }

    fn begin_file(&mut self, room: usize) -> io::Result<()> {
        self.active = None;
        let number = self.next_file;
        self.next_file += 1;
        let size = self.file_size.max(HEADER + room);
        let file = self.disk.create(number, size as u64)?;
        let usage = Usage { file: file.clone(), boot: self.boot, live: 0, bytes: HEADER as u64, freed_at: 0 };
        self.files.insert(number, usage);
        self.made += 1;
        let mut header = Vec::with_capacity(HEADER);
        record::write_header(&mut header, self.boot);
        self.disk.append(&file, &header)?;
        self.written += HEADER as u64;
        self.unsynced.insert(number, file.clone());
        self.active = Some(Active { number, file, size: HEADER });
        Ok(())
    }

    /// How far the log was written; it is durable when `synced` says as much.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// How far it is on the disk.
    pub(super) fn synced(&self) -> u64 {
        self.synced
    }

    /// Bytes on the disk.
    pub(super) fn bytes(&self) -> u64 {
        self.files.values().map(|usage| usage.bytes).sum()
    }

    /// The files that are to be made free: what waits in them is to be appended
    /// again. Those that are doubted, and the oldest when there is too much on the disk.
    pub(super) fn to_empty(&self) -> BTreeSet<u64> {
        let is_used = |number: &u64| self.files.get(number).is_some_and(|usage| usage.live > 0);
        let mut files: BTreeSet<u64> = self.doubted.iter().copied().filter(is_used).collect();
        if let Some(oldest) = self.files.keys().next() {
            let is_active = self.active.as_ref().is_some_and(|active| active.number == *oldest);
            let is_too_much = self.bytes() > 2 * self.live + (SPARE * self.file_size) as u64;
            files.extend((!is_active && is_too_much && is_used(oldest)).then_some(*oldest));
        }
        files
    }

    /// What reads these entries.
    pub(super) fn reader(&self, entries: &[OnShelf]) -> Reader<D::File> {
        let mut files = BTreeMap::new();
        for (_, _, entry) in entries {
            let number = entry.spot.file;
            if let Some(usage) = self.files.get(&number).filter(|_| !files.contains_key(&number)) {
                files.insert(number, (usage.file.clone(), usage.boot));
            }
        }
        Reader { files, boot: self.boot, syncer: self.disk.syncer() }
    }

    /// Whether the file that is written to is still there: somebody may have
    /// removed the folder.
    pub(super) fn is_there(&self) -> bool {
        self.active.as_ref().is_none_or(|active| self.disk.is_there(active.number, &active.file))
    }

    /// After a sync that failed: what it should have brought to the disk may be
    /// lost, whatever a later one says. The next write begins a file of its own,
    /// and what waits in those files is to be written again (`to_empty`).
    pub(super) fn doubt_unsynced(&mut self) {
        self.active = None;
        self.doubted.extend(std::mem::take(&mut self.unsynced).into_keys());
    }

    /// Whether some of what waits may not be on the disk, whatever a sync says.
    pub(super) fn is_doubted(&self) -> bool {
        self.doubted.iter().any(|number| self.files.get(number).is_some_and(|usage| usage.live > 0))
    }

    /// The same for all files.
    pub(super) fn doubt_all(&mut self) {
        self.doubt_unsynced();
        self.doubted.extend(self.files.keys());
    }

    /// What is to be done on the disk now, by a thread of its own; none when
    /// there is nothing.
    pub(super) fn work(&mut self) -> Option<Work<D::File>> {
        if self.unsynced.is_empty() && self.known == self.made {
            self.synced = self.written;
        }
        let files = if self.synced == self.written { BTreeMap::new() } else { self.unsynced.clone() };
        let active = self.active.as_ref().map(|active| active.number);
        let free = self
            .files
            .iter()
            .take_while(|(number, usage)| usage.live == 0 && usage.freed_at <= self.synced && Some(**number) != active);
        let remove: Vec<u64> = free.map(|(number, _)| *number).collect();
        let folder = (self.known < self.made).then_some(self.made);
        let work = Work { files, active, folder, upto: self.written, remove };
        let is_some = !work.files.is_empty() || work.folder.is_some() || !work.remove.is_empty();
        is_some.then_some(work)
    }

    /// Work was done: all that was written until it began is on the disk.
    pub(super) fn done(&mut self, work: &Work<D::File>) {
        self.synced = self.synced.max(work.upto);
        self.known = self.known.max(work.folder.unwrap_or_default());
        // One that was written on meanwhile has more to sync.
        self.unsynced.retain(|number, _| work.active == Some(*number) || !work.files.contains_key(number));
        for number in &work.remove {
            self.files.remove(number);
            self.doubted.remove(number);
        }
    }

    /// How to do work, and to read.
    pub(super) fn syncer(&self) -> Box<dyn Syncer<D::File>> {
        self.disk.syncer()
    }
}

impl Spot {
    /// Where its record ends.
    fn end(&self) -> u32 {
        self.at.saturating_add(self.size)
    }
}

fn spot(file: u64, span: Span) -> Spot {
    // No file is so large, see `LARGEST_FILE`.
    let number = |size: usize| u32::try_from(size).unwrap_or(u32::MAX);
    Spot { file, at: number(span.at), size: number(span.size) }
}

/// Reads entries, while others have the lock.
pub(super) struct Reader<F> {
    /// Each with the start of the machine in which it was written.
    files: BTreeMap<u64, (F, u64)>,
    boot: u64,
    syncer: Box<dyn Syncer<F>>,
}

impl<F> Reader<F> {
    /// Reads entries, those that lie close together at once. An error for each
    /// that cannot be read.
    pub(super) fn read(&mut self, entries: &[OnShelf], now: Moment) -> Vec<io::Result<Message>> {
        let mut order: Vec<(usize, Spot)> = entries.iter().map(|(_, _, entry)| entry.spot).enumerate().collect();
        order.sort_unstable_by_key(|(_, spot)| *spot);
        let mut messages: Vec<io::Result<Message>> =
            entries.iter().map(|_| Err(io::ErrorKind::NotFound.into())).collect();
        let is_close = |(_, first): &(usize, Spot), (_, second): &(usize, Spot)| {
            first.file == second.file && second.at.saturating_sub(first.end()) <= CLOSE
        };
        for run in order.chunk_by(is_close) {
            let bytes = self.bytes(run);
            for (place, spot) in run {
                let (Some((device, _, entry)), Some(message)) = (entries.get(*place), messages.get_mut(*place)) else {
                    continue;
                };
                let own = bytes.as_ref().ok().and_then(|(start, bytes)| {
                    let begin = (spot.at - start) as usize;
                    bytes.get(begin..begin + spot.size as usize)
                });
                *message = match own {
                    Some(own) => self.message(own, device, entry, now),
                    // What lies beside it cannot be read.
                    None => self.bytes(&[(*place, *spot)]).and_then(|(_, own)| self.message(&own, device, entry, now)),
                };
            }
        }
        messages
    }

    /// The bytes of spots in one file, in order, and where they begin.
    fn bytes(&mut self, spots: &[(usize, Spot)]) -> io::Result<(u32, Vec<u8>)> {
        let (Some((_, first)), Some((_, last))) = (spots.first(), spots.last()) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let (file, _) = self.files.get(&first.file).ok_or(io::ErrorKind::NotFound)?;
        let bytes = self.syncer.read_at(file, u64::from(first.at), (last.end() - first.at) as usize)?;
        Ok((first.at, bytes))
    }

    fn message(&self, bytes: &[u8], device: &DeviceId, entry: &Stored, now: Moment) -> io::Result<Message> {
        let is_it = |view: &View<'_>| view.sequence == entry.sequence && view.device == device.as_str();
        let view = record::read_entry(bytes).filter(is_it);
        let view = view.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it is damaged"))?;
        let mut message = view.message(device);
        if self.files.get(&entry.spot.file).is_none_or(|(_, boot)| *boot != self.boot) {
            // A clock that was set in an earlier life of the machine was right then.
            if message.moment.is_set() {
                message.publication.stamp = None;
            }
            message.moment = now.as_old_as(message.moment.wall);
        }
        Ok(message)
    }
}

impl<F> Work<F> {
    /// Does it. What a file holds is on the disk before its name is, and a file
    /// is gone before the next one goes: a power cut finds either.
    pub(super) fn carry_out(&self, syncer: &mut dyn Syncer<F>) -> io::Result<()> {
        if let Err(error) = self.files.values().try_for_each(|file| syncer.sync(file)) {
            // For the next process. A disk that takes no mark either leaves it to this one to write them again.
            self.files.keys().for_each(|number| drop(syncer.doubt(*number)));
            return Err(error);
        }
        if self.folder.is_some() {
            syncer.sync_folder()?;
        }
        for number in &self.remove {
            syncer.remove(*number)?;
            syncer.sync_folder()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
