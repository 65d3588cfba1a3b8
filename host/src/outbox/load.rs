//! Loads what an outbox has on the disk only, as its turn comes near, on a thread
//! of its own: nobody else waits for a disk to read.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::keep::{AGAIN, LONGEST_AGAIN};
use super::log::OnShelf;
use super::record::Message;
use super::{Inner, Outbox};
use crate::clock::Moment;

/// Entries that are loaded at once.
const LOADED: usize = 512;
/// How often an entry is read that the disk does not give.
const TRIES: u32 = 10;

/// Loads entries until the outbox is gone.
pub(super) fn run(outbox: &Weak<Outbox>) {
    let mut pause = AGAIN;
    loop {
        let Some(outbox) = outbox.upgrade() else { return };
        let Some(signal) = outbox.inner().keeping.as_ref().map(|keeping| Arc::clone(&keeping.loader)) else { return };
        signal.is_set.store(false, Ordering::Release);
        let result = loop {
            match some(&outbox) {
                Ok(true) => pause = AGAIN,
                done => break done,
            }
        };
        drop(outbox);
        match result {
            Err(error) => {
                tracing::error!("what waits in the outbox cannot be read from the disk: {error}; trying again");
                std::thread::sleep(pause);
                pause = (pause * 2).min(LONGEST_AGAIN);
            }
            Ok(_) if !signal.is_set.load(Ordering::Acquire) => {
                // Now and then it is looked whether the outbox still is.
                std::thread::park_timeout(Duration::from_secs(5));
            }
            Ok(_) => {}
        }
    }
}

/// Loads the entries that go next; false when there are enough. An error is one
/// of a disk that may give them later.
fn some(outbox: &Outbox) -> io::Result<bool> {
    let (next, reader) = {
        let mut inner = outbox.inner();
        let next = inner.queue.next_to_load(LOADED);
        let reader = inner.keeping.as_ref().map(|keeping| keeping.log.reader(&next));
        (next, reader)
    };
    let Some(mut reader) = reader.filter(|_| !next.is_empty()) else { return Ok(false) };
    let messages = reader.read(&next, Moment::now());
    let mut unread = None;
    {
        let mut inner = outbox.inner();
        for (entry, message) in next.iter().zip(messages) {
            match inner.given(entry, message) {
                Ok(Some(message)) => inner.queue.load(entry, Some(message)),
                Ok(None) => {}
                Err(error) => unread = Some(error),
            }
        }
        for run in next.chunk_by(|(first, ..), (second, ..)| first == second) {
            run.first().into_iter().for_each(|(device, ..)| inner.queue.loaded(device));
        }
        inner.settle();
    }
    outbox.appended.notify_one();
    unread.map_or(Ok(true), Err)
}

impl Inner {
    /// What was read of a stored entry. None of one that is damaged, or that the
    /// disk has not given for long: it is dropped, and counted. An error of one
    /// that is to be read again.
    pub(super) fn given(&mut self, stored: &OnShelf, read: io::Result<Message>) -> io::Result<Option<Message>> {
        let (device, _, entry) = stored;
        let Some(keeping) = &mut self.keeping else { return Ok(None) };
        let error = match read {
            Ok(message) => {
                keeping.unread.remove(&entry.sequence);
                return Ok(Some(message));
            }
            Err(error) => error,
        };
        let times = keeping.unread.entry(entry.sequence).or_default();
        *times += 1;
        if !is_damage(&error) && *times < TRIES {
            return Err(error);
        }
        keeping.unread.remove(&entry.sequence);
        tracing::error!(%device, "a message that waited cannot be read from the disk: {error}");
        self.queue.load(stored, None);
        Ok(None)
    }
}

/// Whether trying again changes nothing.
fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::NotFound)
}
