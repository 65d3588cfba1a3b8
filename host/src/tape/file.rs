//! A tape as a file.
//!
//! It begins with `SANDGATE TAPE 1` and a line end. Blocks follow: a letter, the
//! number of bytes that are stored, their number before they were compressed,
//! and the CRC-32 of all that and of what is stored (4 bytes each, lowest first),
//! then what is stored, compressed as deflate. `H` is the header, JSON; `D` the component,
//! where it was put there; `C` a chunk: its start in µs (varint) and its events;
//! `E` the end, empty.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::time::Duration;

use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use serde::{Deserialize, Serialize};

use super::event::{self, read_varint, write_varint};
use super::{Chunk, Event, Kind, Moment, Recorder};
use crate::clock::Time;
use crate::files;

const MAGIC: &[u8] = b"SANDGATE TAPE 1\n";
/// A block that says that it is larger is damaged, or a trap for whoever reads it.
const MOST_IN_BLOCK: usize = 64 << 20;
/// In ms since the Unix epoch.
const YEAR_9999: Time = 253_370_764_800_000;
/// The same for all of a file.
const MOST: usize = 512 << 20;

/// What is known of a tape without playing it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// The version of the host that recorded it.
    pub host: String,
    /// The device.
    pub device: String,
    /// The driver.
    pub driver: DriverOnTape,
    /// When the life of the driver began, in ms since the Unix epoch.
    pub began: Time,
    /// Whether the tape begins with that, so that it can be replayed.
    pub is_whole: bool,
    /// The configuration that counted last, without secrets.
    pub configuration: serde_json::Value,
    /// The limits of the device that a driver can meet.
    pub limits: Limits,
    /// Bytes of memory that the driver had at the end.
    #[serde(default)]
    pub memory: u64,
    /// What handles stood for at the begin of the tape: a unit on a line, or a peer.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub handles: BTreeMap<u32, String>,
    /// Why the driver died, for a post-mortem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A driver by its names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverOnTape {
    /// From its manifest.
    pub name: String,
    /// The same.
    pub version: String,
    /// The SHA-256 of its file.
    pub digest: String,
}

/// Limits that a driver can meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of memory.
    pub memory: u64,
    /// CPU time of a call in ms.
    pub cpu_ms: u64,
    /// Time of a call in ms.
    pub call_ms: u64,
}

/// See the module documentation.
#[derive(Debug, Clone, PartialEq)]
pub struct Tape {
    /// What is known of it.
    pub header: Header,
    /// What happened.
    pub chunks: Vec<Chunk>,
    /// The driver, where it is on the tape.
    pub component: Option<Vec<u8>>,
    /// What is wrong with the file; what is here was whole.
    pub damage: Option<String>,
}

impl Tape {
    /// A tape of what a recorder holds.
    pub fn new(mut header: Header, recorder: &Recorder) -> Tape {
        header.began = recorder.began;
        header.is_whole = recorder.is_whole;
        if let Some(problem) = header.problem.take() {
            let mut bytes = problem.into_bytes();
            recorder.redactor.hide(&mut bytes, 0);
            header.problem = Some(String::from_utf8_lossy(&bytes).into_owned());
        }
        header.handles = recorder.handles();
        header.configuration = serde_json::from_str(&recorder.configuration).unwrap_or_default();
        Tape { header, chunks: recorder.chunks(), component: None, damage: None }
    }

    /// All events, oldest first.
    pub fn moments(&self) -> impl Iterator<Item = Moment<'_>> {
        let mut at = Duration::ZERO;
        self.chunks
            .iter()
            .flat_map(|chunk| {
                let mut rest = &*chunk.events;
                let mut is_first = true;
                std::iter::from_fn(move || event::read(&mut rest).map(|event| (std::mem::take(&mut is_first), event)))
                    .map(|(is_first, event)| (is_first.then_some(chunk.start), event))
            })
            .map(move |(start, event): (Option<Duration>, Event<'_>)| {
                match (start, event.kind) {
                    (Some(start), _) => at = start,
                    (None, Kind::Call) => at = at.saturating_add(event.time),
                    _ => {}
                }
                Moment { at, event }
            })
    }

    /// How many calls are on it, and from when to when they began.
    pub fn extent(&self) -> (u64, Duration, Duration) {
        let calls = self.moments().filter(|moment| moment.event.kind == Kind::Call);
        calls.fold((0, Duration::ZERO, Duration::ZERO), |(number, first, _), moment| {
            (number + 1, if number == 0 { moment.at } else { first }, moment.at)
        })
    }

    /// The bytes of a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        let header = serde_json::to_vec(&self.header).unwrap_or_default();
        write_block(&mut bytes, b'H', &header);
        if let Some(component) = &self.component {
            write_block(&mut bytes, b'D', component);
        }
        for chunk in &self.chunks {
            let mut raw = Vec::with_capacity(chunk.events.len() + 8);
            write_varint(&mut raw, event::micros(chunk.start));
            raw.extend_from_slice(&chunk.events);
            write_block(&mut bytes, b'C', &raw);
        }
        write_block(&mut bytes, b'E', &[]);
        bytes
    }

    /// Reads the file at a path, as `read` does.
    pub fn load(path: &Path) -> Result<Tape, String> {
        let bytes = files::read(path, MOST as u64).map_err(|error| error.to_string())?;
        Tape::read(&bytes.ok_or("there is no such file")?)
    }

    /// Reads a file. One that is damaged is read up to there; an error says why
    /// nothing can be read.
    pub fn read(bytes: &[u8]) -> Result<Tape, String> {
        let Some(mut rest) = bytes.strip_prefix(MAGIC) else {
            let begin = b"SANDGATE TAPE ";
            return Err(match bytes.strip_prefix(begin) {
                Some(_) => "it was recorded in a newer format; use a newer sandgate".into(),
                None => "expected a tape of Sandgate, found another file".into(),
            });
        };
        let header = read_block(&mut rest, &mut 0).map_err(|problem| format!("its header: {problem}"))?;
        if header.0 != b'H' {
            return Err("its header is missing".into());
        }
        let header = serde_json::from_slice(&header.1).map_err(|error| format!("its header: {error}"))?;
        let mut tape = Tape { header, chunks: Vec::new(), component: None, damage: None };
        if tape.header.began > YEAR_9999 {
            return Err("its header: expected a time before the year 9999".into());
        }
        let mut size = 0;
        loop {
            match read_block(&mut rest, &mut size) {
                Ok((b'E', _)) => return Ok(tape),
                Ok((b'D', component)) => tape.component = Some(component),
                Ok((b'C', raw)) => {
                    let mut events = raw.as_slice();
                    let start = read_varint(&mut events).map(Duration::from_micros);
                    match start.filter(|_| is_sound(events)) {
                        Some(start) => tape.chunks.push(Chunk { start, events: events.into() }),
                        None => return Ok(tape.damaged("a chunk holds no events".into())),
                    }
                }
                // Of a later version, to be gone over.
                Ok(_) => {}
                Err(problem) => return Ok(tape.damaged(problem)),
            }
        }
    }

    fn damaged(mut self, problem: String) -> Tape {
        self.damage = Some(format!("{problem}; {} chunks before it are whole", self.chunks.len()));
        self
    }
}

/// Whether there are events up to the end, and the first one is a call.
fn is_sound(mut events: &[u8]) -> bool {
    let mut is_first = true;
    while !events.is_empty() {
        match event::read(&mut events) {
            Some(event) if std::mem::take(&mut is_first) && event.kind != Kind::Call => return false,
            Some(_) => {}
            None => return false,
        }
    }
    true
}

fn write_block(to: &mut Vec<u8>, kind: u8, raw: &[u8]) {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    // Memory takes all that it is given.
    let stored = encoder.write_all(raw).and_then(|()| encoder.finish()).unwrap_or_default();
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes();
    let begin = to.len();
    to.push(kind);
    to.extend_from_slice(&length(&stored));
    to.extend_from_slice(&length(raw));
    let checksum = checksum(to.get(begin..).unwrap_or_default(), &stored);
    to.extend_from_slice(&checksum.to_le_bytes());
    to.extend_from_slice(&stored);
}

fn checksum(head: &[u8], stored: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(stored);
    hasher.finalize()
}

/// Takes a block off the front; `size` counts what all of them hold.
fn read_block(from: &mut &[u8], size: &mut usize) -> Result<(u8, Vec<u8>), String> {
    let cut = || "it ends too early".to_owned();
    let (kind, rest) = from.split_first().ok_or_else(cut)?;
    let (numbers, rest) = rest.split_first_chunk::<12>().ok_or_else(cut)?;
    let number = |place: usize| {
        let bytes = numbers.get(place..place + 4).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default();
        u32::from_le_bytes(bytes)
    };
    let (stored, length) = (number(0) as usize, number(4) as usize);
    let (stored, rest) = rest.split_at_checked(stored).ok_or_else(cut)?;
    *from = rest;
    if checksum(&[&[*kind], numbers.get(..8).unwrap_or_default()].concat(), stored) != number(8) {
        return Err("a checksum does not fit".into());
    }
    *size += length;
    if length > MOST_IN_BLOCK || *size > MOST {
        return Err(format!("it holds more than a tape may hold, {} MiB", MOST >> 20));
    }
    let mut raw = Vec::new();
    let most = u64::try_from(length).unwrap_or(u64::MAX);
    DeflateDecoder::new(stored).take(most + 1).read_to_end(&mut raw).map_err(|error| format!("a block: {error}"))?;
    match raw.len() == length {
        true => Ok((*kind, raw)),
        false => Err("a block has another length than it says".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Deck, Room};
    use super::*;

    fn tape() -> Tape {
        let header = Header {
            host: "0.1.0".into(),
            device: "meter".into(),
            driver: DriverOnTape { name: "meter".into(), version: "1.0.0".into(), digest: "00".into() },
            began: 0,
            is_whole: false,
            configuration: serde_json::Value::Null,
            limits: Limits { memory: 1, cpu_ms: 2, call_ms: 3 },
            memory: 0,
            handles: BTreeMap::new(),
            problem: None,
        };
        let mut deck = Deck::Recording(Room::new(1 << 20, Duration::MAX).recorder().unwrap());
        for call in 0..2000_u32 {
            deck.call(2, &call);
            assert!(matches!(deck.import::<()>(10, false, &("telemetry", f64::from(call))), Ok(None)));
            deck.answered(false, &true);
            deck.returned(2, Ok(&()));
        }
        Tape::new(header, deck.recorder().unwrap())
    }

    #[test]
    fn a_file_holds_what_was_recorded_and_is_small() {
        let tape = tape();
        let bytes = tape.to_bytes();
        assert!(Tape::read(&bytes).unwrap() == tape);
        assert!(tape.chunks.len() > 2 && tape.header.is_whole);
        assert_eq!(tape.moments().count(), 8000);
        let (calls, first, last) = tape.extent();
        assert!(calls == 2000 && first <= last, "{calls}, {first:?}, {last:?}");
        let raw: usize = tape.chunks.iter().map(|chunk| chunk.events.len()).sum();
        assert!(bytes.len() * 3 < raw, "{} of {raw}", bytes.len());
    }

    #[test]
    fn a_file_that_is_cut_or_damaged_gives_what_is_whole_and_says_so() {
        let tape = tape();
        let bytes = tape.to_bytes();
        for cut in 0..bytes.len() {
            match Tape::read(&bytes[..cut]) {
                Err(problem) => assert!(cut < 400 && !problem.is_empty(), "{cut}: {problem}"),
                Ok(read) => {
                    assert!(read.damage.is_some() && tape.chunks.starts_with(&read.chunks), "{cut}");
                }
            }
        }
        for place in (0..bytes.len()).step_by(7) {
            let mut bytes = bytes.clone();
            bytes[place] ^= 0x10;
            if let Ok(read) = Tape::read(&bytes) {
                assert!(tape.chunks.starts_with(&read.chunks), "{place}");
            }
        }
        assert!(Tape::read(b"SANDGATE TAPE 2\n").unwrap_err().contains("newer"));
        assert!(Tape::read(b"\x7fELF").unwrap_err().contains("another file"));
    }

    #[test]
    fn a_player_gives_the_answers_and_names_the_first_difference() {
        use super::super::player::End;
        let tape = tape();
        let mut deck = Deck::Playing(Box::new(super::super::Player::new(tape.chunks.clone())));
        for call in 0..2000_u32 {
            deck.call(2, &call);
            let value = f64::from(call) + if call == 1500 { 1e-12 } else { 0.0 };
            let answer = deck.import::<bool>(10, false, &("telemetry", value));
            if call == 1500 {
                assert_eq!(answer, Err(End::Difference));
                break;
            }
            assert_eq!(answer, Ok(Some(true)));
            deck.returned(2, Ok(&()));
        }
        let player = deck.player().unwrap();
        let difference = player.difference().unwrap();
        assert_eq!((difference.calls, difference.found.number), (1501, 10));
        assert_ne!(Some(&difference.found), difference.expected.as_ref());
    }
}
