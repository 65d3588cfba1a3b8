//! The format of an outbox's log.
//!
//! A file begins with a header of 32 bytes: the text `SANDGATE-OUTBOX\n`, the
//! format's number (u32), four bytes of zero, and a number that stands for the
//! machine's last start (u64). Records follow, each at a multiple of 8 bytes:
//!
//! | bytes | what |
//! |---|---|
//! | 4 | length of the body, never zero |
//! | 4 | CRC-32 (IEEE) of the body |
//! | … | the body, then zeros up to the next multiple of 8 |
//!
//! Zeros where a record should begin are the end. The body of an entry: `1`,
//! its class, flags (1: joins others, 2: goes alone), the length of the device's
//! id (u8) and of the topic (u16), its number, the wall clock and the steady
//! clock when it was accepted (u64 each, milliseconds), the id, the topic, the
//! payload. The body of a removal: `2` and seven zeros, then the numbers of
//! entries that are gone (u64 each). All numbers are little-endian.

use bytes::Bytes;

use super::{Class, Sequence};
use crate::clock::Moment;
use crate::message::{DeviceId, Publication};

/// The bytes of a header.
pub(super) const HEADER: usize = 32;
/// What a record begins with.
const FRAME: usize = 8;
const MAGIC: &[u8; 16] = b"SANDGATE-OUTBOX\n";
const FORMAT: u32 = 1;
const ENTRY: u8 = 1;
const REMOVAL: u8 = 2;
/// An entry's body without its texts.
const FIXED: usize = 30;
const JOINS: u8 = 1;
const ALONE: u8 = 2;
/// Longer bodies are damage: the router lets no payload pass that is so large.
pub(super) const MAX_BODY: usize = 2 << 20;

/// An entry as the log keeps it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Kept {
    pub device: DeviceId,
    pub class: Class,
    pub moment: Moment,
    pub alone: bool,
    pub publication: Publication,
}

/// What a log says, in order.
#[derive(Debug, PartialEq)]
pub(super) enum Record {
    /// An entry was accepted, or was written again.
    Entry(Sequence, Kept),
    /// Entries are gone.
    Removal(Vec<Sequence>),
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
    (u32_at(rest, 0)? == FORMAT).then(|| u64_at(rest, 8)).flatten()
}

/// Appends an entry. One whose texts are too long for the format is not written.
pub(super) fn write_entry(out: &mut Vec<u8>, sequence: Sequence, entry: &Kept) -> bool {
    let Kept { device, class, moment, alone, publication } = entry;
    let (Ok(id), Ok(topic)) = (u8::try_from(device.as_str().len()), u16::try_from(publication.topic.len())) else {
        return false;
    };
    if FIXED + usize::from(id) + usize::from(topic) + publication.payload.len() > MAX_BODY {
        return false;
    }
    frame(out, |out| {
        let class = match class {
            Class::Stream => 0,
            Class::Keep => 1,
            Class::Answer => 2,
        };
        let flags = if publication.joins { JOINS } else { 0 } | if *alone { ALONE } else { 0 };
        out.extend_from_slice(&[ENTRY, class, flags, id]);
        out.extend_from_slice(&topic.to_le_bytes());
        for number in [sequence, moment.wall, moment.steady] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(device.as_str().as_bytes());
        out.extend_from_slice(publication.topic.as_bytes());
        out.extend_from_slice(&publication.payload);
    });
    true
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

/// Gives the records behind a header, each with its size; what is damaged is passed over.
pub(super) fn read(bytes: &[u8], mut take: impl FnMut(Record, usize)) -> Reading {
    let mut reading = Reading { damaged: 0, bytes: HEADER };
    let (mut place, mut is_lost) = (HEADER, false);
    while place < bytes.len() {
        let Some((record, size)) = bytes.get(place..).and_then(record) else {
            is_lost = true;
            place += 8;
            continue;
        };
        reading.damaged += usize::from(std::mem::take(&mut is_lost));
        take(record, size);
        place += size;
        reading.bytes = place;
    }
    reading
}

/// The record at the beginning, and how much of it there is.
fn record(bytes: &[u8]) -> Option<(Record, usize)> {
    let length = usize::try_from(u32_at(bytes, 0)?).ok().filter(|length| (1..=MAX_BODY).contains(length))?;
    let body = bytes.get(FRAME..FRAME + length)?;
    if crc32fast::hash(body) != u32_at(bytes, 4)? {
        return None;
    }
    Some((read_body(body)?, (FRAME + length).next_multiple_of(8)))
}

fn read_body(body: &[u8]) -> Option<Record> {
    if *body.first()? == REMOVAL {
        let numbers = body.get(8..)?.chunks_exact(8);
        return Some(Record::Removal(numbers.filter_map(|number| u64_at(number, 0)).collect()));
    }
    let &[ENTRY, class, flags, id, ..] = body else { return None };
    let class = match class {
        0 => Class::Stream,
        1 => Class::Keep,
        2 => Class::Answer,
        _ => return None,
    };
    let topic = usize::from(u16::from_le_bytes(body.get(4..6)?.try_into().ok()?));
    let texts = body.get(FIXED..)?;
    let (id, rest) = texts.split_at_checked(usize::from(id))?;
    let (topic, payload) = rest.split_at_checked(topic)?;
    let publication = Publication {
        topic: std::str::from_utf8(topic).ok()?.into(),
        payload: Bytes::copy_from_slice(payload),
        joins: flags & JOINS > 0,
        // The time in the payload stays as it is from now on.
        stamp: None,
    };
    let kept = Kept {
        device: DeviceId::new(std::str::from_utf8(id).ok()?),
        class,
        moment: Moment { wall: u64_at(body, 14)?, steady: u64_at(body, 22)? },
        alone: flags & ALONE > 0,
        publication,
    };
    Some(Record::Entry(u64_at(body, 6)?, kept))
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

    fn kept(text: &str) -> Kept {
        let publication =
            Publication { topic: "v1/a".into(), payload: text.to_owned().into(), joins: true, stamp: None };
        let moment = Moment { wall: 7, steady: 9 };
        Kept { device: DeviceId::new("d"), class: Class::Keep, moment, alone: false, publication }
    }

    fn records(bytes: &[u8]) -> (Vec<Record>, Reading) {
        let mut all = Vec::new();
        let reading = read(bytes, |record, _| all.push(record));
        (all, reading)
    }

    #[test]
    fn what_is_written_is_read_and_zeros_are_the_end() {
        let mut bytes = Vec::new();
        write_header(&mut bytes, 42);
        assert_eq!((bytes.len(), read_header(&bytes)), (HEADER, Some(42)));
        assert!(write_entry(&mut bytes, 3, &kept("{\"x\":1}")));
        write_removal(&mut bytes, &[3, 1 << 40]);
        let size = bytes.len();
        bytes.resize(4096, 0);
        let (all, reading) = records(&bytes);
        assert_eq!(all, [Record::Entry(3, kept("{\"x\":1}")), Record::Removal(vec![3, 1 << 40])]);
        assert_eq!((reading.damaged, reading.bytes), (0, size));
        assert_eq!(read_header(b"SANDGATE-OUTBOX\n\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"), None);
    }

    #[test]
    fn every_single_flipped_bit_costs_one_record_at_most() {
        let mut bytes = Vec::new();
        write_header(&mut bytes, 0);
        for sequence in 0..4 {
            assert!(write_entry(&mut bytes, sequence, &kept(&format!("{{\"x\":{sequence}}}"))));
        }
        for bit in HEADER * 8..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let (all, reading) = records(&damaged);
            assert!(all.len() >= 3, "bit {bit}: {}", all.len());
            // Damage of the last record looks like an end that was cut off, and in the padding like none.
            let is_last = all.iter().all(|record| !matches!(record, Record::Entry(3, _)));
            assert!(reading.damaged == 1 || is_last || all.len() == 4, "bit {bit}");
        }
    }

    #[test]
    fn what_does_not_fit_the_format_is_not_written() {
        let mut out = Vec::new();
        let mut long = kept("x");
        long.publication.topic = "t".repeat(70_000).into();
        assert!(!write_entry(&mut out, 1, &long));
        assert!(!write_entry(&mut out, 1, &kept(&"x".repeat(MAX_BODY))));
        assert!(out.is_empty());
    }
}
