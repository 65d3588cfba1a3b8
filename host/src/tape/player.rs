//! Plays a tape: gives the answers that the host gave, and finds the first
//! crossing that is another one.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::deck::is_cut;
use super::event::{self, Event, Kind, Moment};
use super::recorder::Chunk;
use super::redactor::Redactor;

/// Where a driver did something else than on the tape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// When, since the begin of the life.
    pub at: Duration,
    /// The number of calls before it.
    pub calls: u64,
    /// What is on the tape; none at its end.
    pub expected: Option<Side>,
    /// What the driver did.
    pub found: Side,
}

/// One side of a difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Side {
    /// What it is.
    pub kind: Kind,
    /// Which export or import.
    pub number: u8,
    /// Arguments, result or answer.
    pub bytes: Vec<u8>,
}

/// Why a driver gets no answer any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum End {
    /// It did something else than on the tape.
    #[error("the driver does something else than on the tape")]
    Difference,
    /// The recorded call ended here, by its budget, its limit or in the import itself.
    #[error("the call ended here on the tape")]
    Cut,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Player {
    chunks: Vec<Chunk>,
    chunk: usize,
    offset: usize,
    /// When the last call that was played began.
    at: Duration,
    calls: u64,
    /// The export, or import, that is under way.
    number: u8,
    difference: Option<Difference>,
    /// Whether the call under way goes no further, because it ended here on the tape.
    cut: bool,
    buffer: Vec<u8>,
    pub(super) redactor: Redactor,
}

impl Player {
    /// Plays chunks from their begin on.
    pub fn new(chunks: Vec<Chunk>) -> Player {
        Player {
            chunks,
            chunk: 0,
            offset: 0,
            at: Duration::ZERO,
            calls: 0,
            number: 0,
            difference: None,
            cut: false,
            buffer: Vec::new(),
            redactor: Redactor::default(),
        }
    }

    /// The first difference, if there was one.
    pub fn difference(&self) -> Option<&Difference> {
        self.difference.as_ref()
    }

    /// How many calls were played.
    pub fn calls(&self) -> u64 {
        self.calls
    }

    /// When the last call began.
    pub fn at(&self) -> Duration {
        self.at
    }

    /// The next event, without taking it.
    pub fn peek(&self) -> Option<Moment<'_>> {
        let (mut chunk, mut offset) = (self.chunk, self.offset);
        loop {
            let events = &self.chunks.get(chunk)?.events;
            let mut rest = events.get(offset..)?;
            if rest.is_empty() {
                (chunk, offset) = (chunk + 1, 0);
                continue;
            }
            let event = event::read(&mut rest)?;
            let at = match event.kind {
                // The first call of a chunk is at its start.
                Kind::Call if offset == 0 => self.chunks.get(chunk)?.start,
                Kind::Call => self.at.saturating_add(event.time),
                _ => self.at,
            };
            return Some(Moment { at, event });
        }
    }

    /// Goes over the next event.
    fn skip(&mut self) {
        loop {
            let Some(chunk) = self.chunks.get(self.chunk) else { return };
            let mut rest = chunk.events.get(self.offset..).unwrap_or_default();
            if rest.is_empty() {
                (self.chunk, self.offset) = (self.chunk + 1, 0);
                continue;
            }
            let before = rest.len();
            if event::read(&mut rest).is_some() {
                self.offset += before - rest.len();
            }
            return;
        }
    }

    pub(super) fn call(&mut self, number: u8, arguments: &impl Serialize) {
        let at = self.peek().map(|moment| moment.at);
        self.number = number;
        self.cut = false;
        if self.meet(Kind::Call, number, arguments) {
            self.at = at.unwrap_or(self.at);
            self.calls += 1;
        }
    }

    /// A call has returned. One that the host has ended on the tape ends here as well.
    pub(super) fn returned(&mut self, number: u8, result: &impl Serialize) {
        let is_cut = self.peek().is_some_and(|next| next.event.kind == Kind::Return && is_cut(next.event.bytes));
        if self.cut || is_cut {
            // How far it comes until the host ends it depends on the machine.
            return self.skip();
        }
        self.meet(Kind::Return, number, result);
    }

    pub(super) fn import<T: DeserializeOwned>(&mut self, number: u8, arguments: &impl Serialize) -> Result<T, End> {
        let is_cut = self.peek().is_none_or(|next| next.event.kind == Kind::Return && is_cut(next.event.bytes));
        if is_cut {
            self.cut = true;
            return Err(End::Cut);
        }
        if !self.meet(Kind::Import, number, arguments) {
            return Err(End::Difference);
        }
        let answer = self.peek().filter(|next| next.event.kind == Kind::Answer);
        let Some(answer) = answer else {
            // It was asked and had no answer any more.
            self.cut = true;
            return Err(End::Cut);
        };
        let answer = postcard::from_bytes(answer.event.bytes);
        self.skip();
        answer.map_err(|_| End::Difference)
    }

    /// Holds what happens against the tape, and goes on when it is the same.
    fn meet(&mut self, kind: Kind, number: u8, value: &impl Serialize) -> bool {
        if self.difference.is_some() {
            return false;
        }
        self.buffer.clear();
        self.buffer = postcard::to_extend(value, std::mem::take(&mut self.buffer)).unwrap_or_default();
        self.redactor.hide(&mut self.buffer, 0);
        let mut buffer = std::mem::take(&mut self.buffer);
        if let Some(next) = self.peek().filter(|next| next.event.bytes != buffer) {
            self.redactor.hide_like(next.event.bytes, &mut buffer);
        }
        self.buffer = buffer;
        let next = self.peek();
        let is_same = next.is_some_and(|Moment { event: Event { kind: other, number: its, bytes, .. }, .. }| {
            let same_number = its == number || !matches!(kind, Kind::Call | Kind::Import);
            other == kind && same_number && bytes == self.buffer
        });
        if !is_same {
            let side = |event: Event<'_>| {
                let number = if event.kind == Kind::Return { self.number } else { event.number };
                Side { kind: event.kind, number, bytes: event.bytes.to_vec() }
            };
            let expected = next.map(|next| side(next.event));
            let found = Side { kind, number, bytes: self.buffer.clone() };
            let (at, calls) = (self.at, self.calls);
            self.difference = Some(Difference { at, calls, expected, found });
            return false;
        }
        self.skip();
        true
    }
}
