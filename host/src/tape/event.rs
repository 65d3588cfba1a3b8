//! Writing and reading single events.

use std::time::Duration;

use serde::Serialize;

/// What an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The host calls an export.
    Call,
    /// The export returns.
    Return,
    /// The driver asks an import.
    Import,
    /// The host answers.
    Answer,
}

/// One event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event<'a> {
    /// What it is.
    pub kind: Kind,
    /// Which export or import; those of returns and answers stand in the event before.
    pub number: u8,
    /// Since the call before, or how long it took.
    pub time: Duration,
    /// Arguments, result or answer.
    pub bytes: &'a [u8],
}

/// An event and when it happened, since the begin of the life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment<'a> {
    /// When.
    pub at: Duration,
    /// What.
    pub event: Event<'a>,
}

/// Adds an event. A value that cannot be encoded is left out with all that was
/// written before; none of ours is like that.
pub(super) fn write(to: &mut Vec<u8>, kind: Kind, number: u8, time: Duration, value: &impl Serialize) -> Place {
    to.push(kind as u8 + 1);
    match kind {
        Kind::Call => {
            to.push(number);
            write_varint(to, micros(time));
        }
        Kind::Import => to.push(number),
        Kind::Return | Kind::Answer => write_varint(to, micros(time)),
    }
    to.extend_from_slice(&[0; LENGTH]);
    let begin = to.len();
    *to = postcard::to_extend(value, std::mem::take(to)).unwrap_or_default();
    let length = u32::try_from(to.len().saturating_sub(begin)).unwrap_or(u32::MAX);
    if let Some(place) = to.get_mut(begin - LENGTH..begin) {
        place.copy_from_slice(&length.to_le_bytes());
    }
    Place(begin)
}

/// Where the value of an event begins.
pub(super) struct Place(pub usize);

const LENGTH: usize = 4;

/// A time in whole µs.
pub(super) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

pub(super) fn write_varint(to: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        to.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

/// Takes a number off the front.
pub(super) fn read_varint(from: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = from.split_first()?;
        *from = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// Takes an event off the front; none at the end, or where it is damaged.
pub(super) fn read<'a>(from: &mut &'a [u8]) -> Option<Event<'a>> {
    let byte = take_byte(from)?;
    let kind =
        [Kind::Call, Kind::Return, Kind::Import, Kind::Answer].into_iter().find(|kind| *kind as u8 + 1 == byte)?;
    let number = if matches!(kind, Kind::Call | Kind::Import) { take_byte(from)? } else { 0 };
    let time = if kind == Kind::Import { 0 } else { read_varint(from)? };
    let (length, rest) = from.split_at_checked(LENGTH)?;
    let length = u32::from_le_bytes(length.try_into().ok()?);
    let (bytes, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    *from = rest;
    Some(Event { kind, number, time: Duration::from_micros(time), bytes })
}

fn take_byte(from: &mut &[u8]) -> Option<u8> {
    let (byte, rest) = from.split_first()?;
    *from = rest;
    Some(*byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_back_as_they_were_and_a_part_of_one_is_none() {
        let mut bytes = Vec::new();
        let at = Duration::from_micros(300);
        write(&mut bytes, Kind::Call, 2, at, &7_u32);
        write(&mut bytes, Kind::Import, 200, Duration::ZERO, &("text", f64::NAN, [1_u16, 65_535]));
        write(&mut bytes, Kind::Answer, 0, at, &Some(1.5));
        write(&mut bytes, Kind::Return, 0, Duration::MAX, &());
        let whole = bytes.clone();
        let mut rest = whole.as_slice();
        let call = read(&mut rest).unwrap();
        assert_eq!((call.kind, call.number, call.time, call.bytes), (Kind::Call, 2, at, [7].as_slice()));
        let import = read(&mut rest).unwrap();
        assert_eq!((import.kind, import.number), (Kind::Import, 200));
        let (text, number, words): (String, f64, [u16; 2]) = postcard::from_bytes(import.bytes).unwrap();
        assert_eq!((text.as_str(), number.to_bits(), words), ("text", f64::NAN.to_bits(), [1, 65_535]));
        assert_eq!(read(&mut rest).unwrap().time, at);
        assert_eq!(read(&mut rest).unwrap().time, Duration::from_micros(u64::MAX));
        assert!(rest.is_empty() && read(&mut rest).is_none());
        for length in 0..7 {
            assert_eq!(read(&mut whole.get(..length).unwrap()), None, "{length}");
        }
        assert_eq!(read(&mut [9, 0, 0, 0, 0].as_slice()), None);
        assert_eq!(read_varint(&mut [0xff; 11].as_slice()), None);
    }
}
