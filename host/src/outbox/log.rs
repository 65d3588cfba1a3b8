//! What an outbox keeps on the disk: a log of entries and of those that are gone.
//!
//! Files of a few MiB are written one after another and removed whole, oldest
//! first, when all their entries are gone. What a few old entries hold back is
//! written again at the end. Everything that waits is in memory as well, so the
//! log is read at the start only. Plain state: the outbox's lock is around it,
//! and another thread does what takes long (`Work`).

use std::collections::{BTreeMap, HashMap};
use std::io;

use super::Sequence;
use super::disk::{Disk, Syncer};
use super::record::{self, HEADER, Kept, Record};

/// The size of a file, unless a single record is larger.
pub(super) const FILE: usize = 4 << 20;
/// Removals that wait for the next write, at most: after the death of the
/// process these entries are sent a second time.
pub(super) const MAX_PENDING: usize = 128;
/// Files beside twice the bytes of what waits.
const SPARE: usize = 4;

/// See the module documentation.
pub(super) struct Log<D: Disk> {
    disk: D,
    file_size: usize,
    boot: u64,
    active: Option<Active<D::File>>,
    /// All files that are there, the active one among them.
    files: BTreeMap<u64, Usage>,
    /// In which file each entry lies, and its size there.
    places: HashMap<Sequence, (u64, u32)>,
    /// Bytes of the entries that wait.
    live: u64,
    /// Entries that are gone, and of which the log does not know yet.
    pending: Vec<Sequence>,
    buffer: Vec<u8>,
    next_file: u64,
    /// Entries in older files are not sure to be there: the disk has failed since.
    anew_from: u64,
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

#[derive(Default)]
struct Usage {
    /// Entries that wait.
    live: usize,
    bytes: u64,
    /// Up to where the log must be synced before the file may go.
    freed_at: u64,
}

/// The entries that wait, each with the start of the machine in which it was accepted.
pub(super) type Waiting = BTreeMap<Sequence, (Kept, u64)>;

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

impl<D: Disk> Log<D> {
    /// Opens what is there, and gives the entries that wait, in order, each with
    /// the start of the machine in which it was accepted.
    pub(super) fn open(mut disk: D, boot: u64, file_size: usize) -> io::Result<(Self, Waiting, Findings)> {
        let numbers = disk.list()?;
        let (mut entries, mut findings) = (BTreeMap::new(), Findings::default());
        let mut log = Log {
            disk,
            file_size,
            boot,
            active: None,
            files: BTreeMap::new(),
            places: HashMap::new(),
            live: 0,
            pending: Vec::new(),
            buffer: Vec::new(),
            next_file: numbers.last().map_or(0, |last| last + 1),
            anew_from: 0,
            unsynced: BTreeMap::new(),
            made: 0,
            known: 0,
            highest: None,
            written: 0,
            synced: 0,
        };
        for number in numbers {
            log.read(number, &mut entries, &mut findings);
        }
        for (place, size) in log.places.values() {
            log.live += u64::from(*size);
            if let Some(usage) = log.files.get_mut(place) {
                usage.live += 1;
            }
        }
        // What the process before has written may not be on the disk yet.
        log.made = log.unsynced.len() as u64;
        log.written = log.made;
        Ok((log, entries, findings))
    }

    fn read(&mut self, number: u64, entries: &mut Waiting, findings: &mut Findings) {
        // A larger one was not written here.
        let (bytes, is_whole) = self.disk.read(number, 2 * self.file_size + record::MAX_BODY);
        let boot = record::read_header(&bytes);
        // A file that was made just before the power went has nothing in it.
        let is_empty = bytes.iter().all(|byte| *byte == 0);
        let reading = record::read(&bytes, |record, size| match record {
            Record::Entry(sequence, kept) => {
                self.highest = self.highest.max(Some(sequence));
                self.places.insert(sequence, (number, u32::try_from(size).unwrap_or(u32::MAX)));
                entries.insert(sequence, (kept, boot.unwrap_or_default()));
            }
            Record::Removal(gone) => {
                for sequence in gone {
                    self.highest = self.highest.max(Some(sequence));
                    self.places.remove(&sequence);
                    entries.remove(&sequence);
                }
            }
        });
        let damaged = reading.damaged + usize::from(boot.is_none() && !is_empty) + usize::from(!is_whole);
        if damaged > 0 {
            findings.damaged += damaged;
            findings.files.push(number);
            // Without it there is less to look at, and nothing else is lost.
            let _ = self.disk.keep_aside(number);
        }
        match self.disk.open(number) {
            Ok(file) if is_whole => {
                self.unsynced.insert(number, file);
                self.files.insert(number, Usage { bytes: reading.bytes as u64, ..Usage::default() });
            }
            // There may be more in it. It stays, and what was read of it is written again.
            _ => self.places.retain(|_, (place, _)| *place != number),
        }
    }

    /// A number that no entry of the log has.
    pub(super) fn next_sequence(&self) -> Sequence {
        self.highest.map_or(0, |highest| highest + 1)
    }

    /// Writes an entry. When this returns well, it survives the death of the process.
    pub(super) fn append(&mut self, sequence: Sequence, entry: &Kept) -> io::Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        self.add_pending(&mut buffer);
        let begin = buffer.len();
        // One that does not fit waits in memory only; the router lets nothing of this size pass.
        let fits = record::write_entry(&mut buffer, sequence, entry);
        let size = u32::try_from(buffer.len() - begin).unwrap_or(u32::MAX);
        let written = if buffer.is_empty() { Ok(0) } else { self.write(&buffer) };
        self.buffer = buffer;
        let number = written?;
        self.pending.clear();
        if fits {
            self.place(sequence, number, size);
        }
        Ok(())
    }

    fn place(&mut self, sequence: Sequence, number: u64, size: u32) {
        let before = self.places.insert(sequence, (number, size));
        if let Some((old, size)) = before {
            self.leave(old, size);
        }
        self.live += u64::from(size);
        if let Some(usage) = self.files.get_mut(&number) {
            usage.live += 1;
        }
    }

    fn leave(&mut self, number: u64, size: u32) {
        self.live -= u64::from(size);
        if let Some(usage) = self.files.get_mut(&number) {
            usage.live -= 1;
            usage.freed_at = self.written;
        }
    }

    /// Notes that an entry is gone. The log hears of it with the next write;
    /// true when there are so many that one is due.
    pub(super) fn remove(&mut self, sequence: Sequence) -> bool {
        if let Some((number, size)) = self.places.remove(&sequence) {
            self.leave(number, size);
            self.pending.push(sequence);
        }
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
        if !self.pending.is_empty() {
            record::write_removal(buffer, &self.pending);
        }
    }

    /// Writes records to the active file, which one is given.
    fn write(&mut self, bytes: &[u8]) -> io::Result<u64> {
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
        active.size += bytes.len();
        self.written += bytes.len() as u64;
        if let Some(usage) = self.files.get_mut(&active.number) {
            usage.bytes += bytes.len() as u64;
        }
        Ok(active.number)
    }

    fn begin_file(&mut self, room: usize) -> io::Result<()> {
        self.active = None;
        let number = self.next_file;
        self.next_file += 1;
        let size = self.file_size.max(HEADER + room);
        let file = self.disk.create(number, size as u64)?;
        self.files.insert(number, Usage { bytes: HEADER as u64, ..Usage::default() });
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

    /// The oldest file, if it is to be made free: what waits in it is to be
    /// appended again.
    pub(super) fn to_make_free(&self) -> Option<u64> {
        let oldest = *self.files.keys().next()?;
        let is_active = self.active.as_ref().is_some_and(|active| active.number == oldest);
        (!is_active && self.bytes() > 2 * self.live + (SPARE * self.file_size) as u64).then_some(oldest)
    }

    /// Whether an entry lies in a file.
    pub(super) fn is_in(&self, sequence: Sequence, number: u64) -> bool {
        self.places.get(&sequence).is_some_and(|(place, _)| *place == number)
    }

    /// Whether the file that is written to is still there: somebody may have
    /// removed the folder.
    pub(super) fn is_there(&self) -> bool {
        self.active.as_ref().is_none_or(|active| self.disk.is_there(active.number, &active.file))
    }

    /// After a sync that failed: what it should have brought to the disk may be
    /// lost, whatever a later one says. The next write begins a file of its own,
    /// and what waits is to be written again; nothing depends on the files before.
    pub(super) fn begin_anew(&mut self) {
        self.active = None;
        self.unsynced.clear();
        self.anew_from = self.next_file;
    }

    /// Whether an entry was written, and since `begin_anew`.
    pub(super) fn holds(&self, sequence: Sequence) -> bool {
        self.places.get(&sequence).is_some_and(|(number, _)| *number >= self.anew_from)
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
        self.files.retain(|number, _| !work.remove.contains(number));
    }

    /// How to do work.
    pub(super) fn syncer(&self) -> Box<dyn Syncer<D::File>> {
        self.disk.syncer()
    }
}

impl<F> Work<F> {
    /// Does it. What a file holds is on the disk before its name is, and a file
    /// is gone before the next one goes: a power cut finds either.
    pub(super) fn carry_out(&self, syncer: &mut dyn Syncer<F>) -> io::Result<()> {
        for file in self.files.values() {
            syncer.sync(file)?;
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
