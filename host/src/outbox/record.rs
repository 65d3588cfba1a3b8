//! The format of an outbox's log.
//!
//! A file begins with a header of 32 bytes: the text `SANDGATE-OUTBOX\n`, the
//! format's number (u32, 2), four bytes of zero, and a number that stands for
//! the machine's last start (u64). Records follow, each at a multiple of 8 bytes:
//!
//! | bytes | what |
//! |---|---|
//! | 4 | length of the body, never zero |
//! | 4 | CRC-32 (IEEE) of the body |
//! | … | the body, then zeros up to the next multiple of 8 |
//!
//! Zeros where a record should begin are the end. The body of an entry: `1`,
//! its class (0: telemetry, 1: what is kept, 2: answer, 3: log line), flags (1: joins others, 2: goes alone, 4: has a stamp), the length
//! of the device's id (u8) and of the topic (u16), its number, the wall clock and
//! the steady clock when it was accepted (u64 each, milliseconds), the stamp, the
//! id, the topic, the payload. A stamp is a time in the payload that this machine's
//! clock gave: at which byte (u32), the time (u64), how it is written (0: ms, 1: s,
//! 2: ISO 8601). The body of a removal: `2` and seven zeros, then the numbers of
//! entries that are gone (u64 each). All numbers are little-endian. Format 1 was
//! the same without stamps.

use bytes::Bytes;

use super::{Class, Sequence};
use crate::clock::{Moment, Stamp, TimeFormat};
use crate::message::{DeviceId, Publication};

/// The bytes of a header.
pub(super) const HEADER: usize = 32;
/// What a record begins with.
const FRAME: usize = 8;
const MAGIC: &[u8; 16] = b"SANDGATE-OUTBOX\n";
const FORMAT: u32 = 2;
const ENTRY: u8 = 1;
const REMOVAL: u8 = 2;
/// An entry's body without its stamp and its texts.
const FIXED: usize = 30;
const STAMP: usize = 13;
const JOINS: u8 = 1;
const ALONE: u8 = 2;
const STAMPED: u8 = 4;
/// Numbers beyond are damage: no outbox has counted so far.
const MAX_SEQUENCE: Sequence = 1 << 62;
/// Longer bodies are damage: the router lets no payload pass that is so large.
pub(super) const MAX_BODY: usize = 2 << 20;

/// A message as it was accepted.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Message {
    pub device: DeviceId,
    pub class: Class,
    pub moment: Moment,
    /// Goes without a batch: in one, it was refused.
    pub alone: bool,
    pub publication: Publication,
}

/// What a log says, in order.
#[derive(Debug, PartialEq)]
pub(super) enum Record<'a> {
    /// An entry was accepted, or was written again.
    Entry(View<'a>),
    /// Entries are gone.
    Removal(Vec<Sequence>),
}

/// An entry in the bytes of its record.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct View<'a> {
    pub sequence: Sequence,
    pub device: &'a str,
    pub class: Class,
    pub moment: Moment,
    pub topic: &'a str,
    pub payload: &'a [u8],
    flags: u8,
    stamp: Option<Stamp>,
}

impl View<'_> {
    /// The message, for a device whose id this is.
    pub(super) fn message(&self, device: &DeviceId) -> Message {
        let publication = Publication {
            topic: self.topic.into(),
            payload: Bytes::copy_from_slice(self.payload),
            joins: self.flags & JOINS > 0,
            stamp: self.stamp,
        };
        let (device, alone) = (device.clone(), self.flags & ALONE > 0);
        Message { device, class: self.class, moment: self.moment, alone, publication }
    }
}

/// Where a record lies in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub at: usize,
    pub size: usize,
}

/// Appends a file's header.
pub(super) fn write_header(out: &mut Vec<u8>, boot: u64) {
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&FORMAT.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&boot.to_le_bytes());
}

/// Reads a file's header: which start of the machine wrote it; none when it is
/// damaged, or of another format.
pub(super) fn read_header(bytes: &[u8]) -> Option<u64> {
    let rest = bytes.strip_prefix(MAGIC)?;
    (1..=FORMAT).contains(&u32_at(rest, 0)?).then(|| u64_at(rest, 8)).flatten()
}

/// Appends an entry. One whose texts are too long for the format is not written.
pub(super) fn write_entry(out: &mut Vec<u8>, sequence: Sequence, message: &Message) -> bool {
    let Message { device, class, moment, alone, publication } = message;
    let (Ok(id), Ok(topic)) = (u8::try_from(device.as_str().len()), u16::try_from(publication.topic.len())) else {
        return false;
    };
    if FIXED + STAMP + usize::from(id) + usize::from(topic) + publication.payload.len() > MAX_BODY {
        return false;
    }
    frame(out, |out| {
        let class = match class {
            Class::Telemetry => 0,
            Class::Keep => 1,
            Class::Answer => 2,
            Class::Log => 3,
        };
        let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
        let stamp = publication.stamp.and_then(stamp_bytes);
        let flags = flag(publication.joins, JOINS) | flag(*alone, ALONE) | flag(stamp.is_some(), STAMPED);
        out.extend_from_slice(&[ENTRY, class, flags, id]);
        out.extend_from_slice(&topic.to_le_bytes());
        for number in [sequence, moment.wall, moment.steady] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(stamp.as_ref().map_or(&[], |stamp| &stamp[..]));
        out.extend_from_slice(device.as_str().as_bytes());
        out.extend_from_slice(publication.topic.as_bytes());
        out.extend_from_slice(&publication.payload);
    });
    true
}

/// A stamp as it is written; none when its place is beyond what a payload may have.
fn stamp_bytes(stamp: Stamp) -> Option<[u8; STAMP]> {
    let place = u32::try_from(stamp.place).ok()?.to_le_bytes();
    let format = match stamp.format {
        TimeFormat::Milliseconds => 0,
        TimeFormat::Seconds => 1,
        TimeFormat::Iso8601 => 2,
    };
    let bytes = place.into_iter().chain(stamp.time.to_le_bytes()).chain([format]);
    bytes.collect::<Vec<u8>>().try_into().ok()
}

fn read_stamp(bytes: &[u8]) -> Option<Stamp> {
    let format = match bytes.get(12)? {
        0 => TimeFormat::Milliseconds,
        1 => TimeFormat::Seconds,
        2 => TimeFormat::Iso8601,
        _ => return None,
    };
    Some(Stamp { place: usize::try_from(u32_at(bytes, 0)?).ok()?, time: u64_at(bytes, 4)?, format })
}

/// Appends a removal.
pub(super) fn write_removal(out: &mut Vec<u8>, sequences: &[Sequence]) {
    frame(out, |out| {
        out.extend_from_slice(&[REMOVAL, 0, 0, 0, 0, 0, 0, 0]);
        sequences.iter().for_each(|sequence| out.extend_from_slice(&sequence.to_le_bytes()));
    });
}

/// Appends a record with the body that is written.
fn frame(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let begin = out.len();
    out.extend_from_slice(&[0; FRAME]);
    write(out);
    let body = out.get(begin + FRAME..).unwrap_or_default();
    let (length, crc) = (u32::try_from(body.len()).unwrap_or_default(), crc32fast::hash(body));
    let head = length.to_le_bytes().into_iter().chain(crc.to_le_bytes());
    out.iter_mut().skip(begin).zip(head).for_each(|(place, byte)| *place = byte);
    out.resize(out.len().next_multiple_of(8), 0);
}

/// What was read of a file.
#[derive(Debug, Default)]
pub(super) struct Reading {
    /// Stretches that are no records and are followed by some: damage, and not
    /// the end that a power cut has left.
    pub damaged: usize,
    /// Bytes up to the end of the last record.
    pub bytes: usize,
}

/// Gives the records behind a header, each with its place; what is damaged is passed over.
pub(super) fn read<'a>(bytes: &'a [u8], mut take: impl FnMut(Record<'a>, Span)) -> Reading {
    let mut reading = Reading { damaged: 0, bytes: HEADER };
    let (mut at, mut is_lost) = (HEADER, false);
    while at < bytes.len() {
        let Some((record, size)) = bytes.get(at..).and_then(record) else {
            is_lost = true;
            at += 8;
            continue;
        };
        reading.damaged += usize::from(std::mem::take(&mut is_lost));
        take(record, Span { at, size });
        at += size;
        reading.bytes = at;
    }
    reading
}

/// The entry in the bytes of one record, if they are whole.
pub(super) fn read_entry(bytes: &[u8]) -> Option<View<'_>> {
    match record(bytes)? {
        (Record::Entry(view), _) => Some(view),
        (Record::Removal(_), _) => None,
    }
}

/// The record at the beginning, and how much of it there is.
fn record(bytes: &[u8]) -> Option<(Record<'_>, usize)> {
    let length = usize::try_from(u32_at(bytes, 0)?).ok().filter(|length| (1..=MAX_BODY).contains(length))?;
    let body = bytes.get(FRAME..FRAME + length)?;
    if crc32fast::hash(body) != u32_at(bytes, 4)? {
        return None;
    }
    Some((read_body(body)?, (FRAME + length).next_multiple_of(8)))
}

fn read_body(body: &[u8]) -> Option<Record<'_>> {
    if *body.first()? == REMOVAL {
        let numbers = body.get(8..)?.chunks_exact(8);
        return Some(Record::Removal(numbers.filter_map(|number| sequence_at(number, 0)).collect()));
    }
    let &[ENTRY, class, flags, id, ..] = body else { return None };
    let class = match class {
        0 => Class::Telemetry,
        1 => Class::Keep,
        2 => Class::Answer,
        3 => Class::Log,
        _ => return None,
    };
    let topic = usize::from(u16::from_le_bytes(body.get(4..6)?.try_into().ok()?));
    let rest = body.get(FIXED..)?;
    let (stamp, texts) = match flags & STAMPED > 0 {
        true => rest.split_at_checked(STAMP).and_then(|(stamp, texts)| Some((Some(read_stamp(stamp)?), texts)))?,
        false => (None, rest),
    };
    let (id, rest) = texts.split_at_checked(usize::from(id))?;
    let (topic, payload) = rest.split_at_checked(topic)?;
    Some(Record::Entry(View {
        sequence: sequence_at(body, 6)?,
        device: std::str::from_utf8(id).ok()?,
        class,
        moment: Moment { wall: u64_at(body, 14)?, steady: u64_at(body, 22)? },
        topic: std::str::from_utf8(topic).ok()?,
        payload,
        flags,
        stamp,
    }))
}

fn sequence_at(bytes: &[u8], place: usize) -> Option<Sequence> {
    u64_at(bytes, place).filter(|sequence| *sequence <= MAX_SEQUENCE)
}

fn u32_at(bytes: &[u8], place: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(place..place + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], place: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(place..place + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> Message {
        let publication =
            Publication { topic: "v1/a".into(), payload: text.to_owned().into(), joins: true, stamp: None };
        let moment = Moment { wall: 7, steady: 9 };
        Message { device: DeviceId::new("d"), class: Class::Keep, moment, alone: false, publication }
    }

    fn records(bytes: &[u8]) -> (Vec<Record<'_>>, Reading) {
        let mut all = Vec::new();
        let reading = read(bytes, |record, _| all.push(record));
        (all, reading)
    }

    #[test]
    fn what_is_written_is_read_and_zeros_are_the_end() {
        let mut bytes = Vec::new();
        write_header(&mut bytes, 42);
        assert_eq!((bytes.len(), read_header(&bytes)), (HEADER, Some(42)));
        let plain = message("{\"x\":1}");
        assert!(write_entry(&mut bytes, 3, &plain));
        let stamp = Stamp { place: 5, time: 1 << 40, format: TimeFormat::Iso8601 };
        let publication = Publication { stamp: Some(stamp), joins: false, ..plain.publication.clone() };
        let stamped = Message { publication, alone: true, class: Class::Answer, ..plain.clone() };
        assert!(write_entry(&mut bytes, 4, &stamped));
        write_removal(&mut bytes, &[3, 1 << 40]);
        let size = bytes.len();
        bytes.resize(4096, 0);
        let (all, reading) = records(&bytes);
        let [Record::Entry(first), Record::Entry(second), removal] = &all[..] else { panic!("{all:?}") };
        let device = DeviceId::new("d");
        assert_eq!((first.sequence, first.message(&device)), (3, plain));
        assert_eq!((second.sequence, second.message(&device)), (4, stamped));
        assert_eq!(*removal, Record::Removal(vec![3, 1 << 40]));
        assert_eq!((reading.damaged, reading.bytes), (0, size));
        let header = |format: u8| [b"SANDGATE-OUTBOX\n".as_slice(), &[format, 0, 0, 0], &[0; 12]].concat();
        // The format before has the same records.
        assert_eq!([1, 2, 3].map(|format| read_header(&header(format))), [Some(0), Some(0), None]);
    }

    #[test]
    fn every_single_flipped_bit_costs_one_record_at_most() {
        let mut bytes = Vec::new();
        write_header(&mut bytes, 0);
        for sequence in 0..4 {
            assert!(write_entry(&mut bytes, sequence, &message(&format!("{{\"x\":{sequence}}}"))));
        }
        for bit in HEADER * 8..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let (all, reading) = records(&damaged);
            assert!(all.len() >= 3, "bit {bit}: {}", all.len());
            // Damage of the last record looks like an end that was cut off, and in the padding like none.
            let is_last = all.iter().all(|record| !matches!(record, Record::Entry(view) if view.sequence == 3));
            assert!(reading.damaged == 1 || is_last || all.len() == 4, "bit {bit}");
        }
    }

    #[test]
    fn a_number_that_nobody_has_counted_to_is_damage() {
        let mut bytes = Vec::new();
        write_header(&mut bytes, 0);
        assert!(write_entry(&mut bytes, u64::MAX, &message("x")));
        write_removal(&mut bytes, &[7, u64::MAX]);
        assert_eq!(records(&bytes).0, [Record::Removal(vec![7])]);
    }

    #[test]
    fn what_does_not_fit_the_format_is_not_written() {
        let mut out = Vec::new();
        let mut long = message("x");
        long.publication.topic = "t".repeat(70_000).into();
        assert!(!write_entry(&mut out, 1, &long));
        assert!(!write_entry(&mut out, 1, &message(&"x".repeat(MAX_BODY))));
        assert!(out.is_empty());
    }
}
