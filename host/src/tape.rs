//! Tapes: everything that crossed the boundary between a driver and the host, so
//! that the same component can be run again and has to meet every call and every
//! answer bit for bit.
//!
//! One tape is one life of a driver, from its instantiation on, or the newest
//! part of it. Between two crossings a driver computes the same from the same
//! on every machine: NaN and SIMD are made deterministic by the engine, clocks
//! and chance are crossings. This module knows bytes and numbers only; what the
//! numbers mean stands in `sandbox::boundary`.
//!
//! A life is a sequence of events, each a byte for its kind:
//!
//! | kind | what follows |
//! |---|---|
//! | 1, the host calls an export | number (a byte), µs since the call before (varint), arguments |
//! | 2, the export returns | µs that it took (varint), result: the value, or why there is none |
//! | 3, the driver asks an import | number (a byte), arguments |
//! | 4, the host answers | µs that it took (varint; 0 where nothing waits), answer |
//!
//! Arguments, results and answers are their length (4 bytes, lowest first) and so
//! many bytes of postcard. `file` says how it lies in a file.

mod calls;
mod deck;
mod event;
mod file;
mod player;
mod recorder;
mod redactor;
mod tapes;

pub use calls::{Call, Exchange};
pub use deck::{Deck, Ended};
pub use event::{Event, Kind, Moment};
pub use file::{DriverOnTape, Header, Limits, Tape};
pub use player::{Difference, End, Player, Side};
pub use recorder::{Chunk, Recorder, Room};
pub use redactor::hidden;
pub use tapes::{POST_MORTEMS, Tapes, post_mortems};
