//! One direction of a TCP connection: its bytes in their order, and the frames
//! of Modbus TCP in them.

use std::collections::BTreeMap;
use std::time::Duration;

/// Segments that came too early and wait. Where more do, one was not captured.
const WAITING: usize = 32;
/// Of a frame: transaction, protocol, length, unit.
const HEAD: usize = 7;
/// The longest frame from the unit on.
const LONGEST: usize = 254;

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Flow {
    /// The number of the byte that comes next; none before the first.
    next: Option<u32>,
    /// Bytes that are no whole frame yet.
    bytes: Vec<u8>,
    /// Those that came too early, with their times, by the number of their first byte.
    waiting: BTreeMap<u32, (Duration, Vec<u8>)>,
}

/// One frame.
pub(super) struct Frame {
    pub transaction: u16,
    pub unit: u8,
    /// Function code and data.
    pub data: Vec<u8>,
}

impl Flow {
    /// A connection is opened, whose first byte has this number.
    pub(super) fn begin(&mut self, number: u32) {
        *self = Flow { next: Some(number), ..Flow::default() };
    }

    /// Takes a segment; gives the frames that are whole with it, and when they were.
    pub(super) fn take(&mut self, number: u32, at: Duration, payload: &[u8]) -> Vec<(Duration, Frame)> {
        if payload.is_empty() {
            return Vec::new();
        }
        let next = *self.next.get_or_insert(number);
        self.waiting.insert(number, (at, payload.to_vec()));
        let mut frames = self.catch_up(next);
        if self.waiting.len() > WAITING {
            frames.extend(self.skip());
        }
        frames
    }

    /// The other side has got all up to this number: what of it is not here was not captured.
    pub(super) fn acknowledged(&mut self, number: u32) -> Vec<(Duration, Frame)> {
        match self.next {
            Some(next) if !self.waiting.is_empty() && is_due(next, number) && next != number => self.skip(),
            _ => Vec::new(),
        }
    }

    /// Nothing comes any more.
    pub(super) fn end(&mut self) -> Vec<(Duration, Frame)> {
        let mut frames = Vec::new();
        while !self.waiting.is_empty() {
            frames.extend(self.skip());
        }
        frames
    }

    /// Goes on with the first one that waits.
    fn skip(&mut self) -> Vec<(Duration, Frame)> {
        let Some(next) = self.next else { return Vec::new() };
        self.bytes.clear();
        let first = self.waiting.keys().min_by_key(|number| number.wrapping_sub(next)).copied();
        self.catch_up(first.unwrap_or(next))
    }

    /// Takes what comes next, and what was there before and comes again, perhaps with more.
    fn catch_up(&mut self, mut next: u32) -> Vec<(Duration, Frame)> {
        let mut frames = Vec::new();
        while let Some(number) = self.waiting.keys().copied().find(|number| is_due(*number, next)) {
            let (at, payload) = self.waiting.remove(&number).unwrap_or_default();
            let known = usize::try_from(next.wrapping_sub(number)).unwrap_or(usize::MAX);
            let new = payload.get(known..).unwrap_or_default();
            self.bytes.extend_from_slice(new);
            next = next.wrapping_add(u32::try_from(new.len()).unwrap_or_default());
            frames.extend(self.frames().into_iter().map(|frame| (at, frame)));
        }
        self.next = Some(next);
        frames
    }

    fn frames(&mut self) -> Vec<Frame> {
        let (mut frames, mut taken) = (Vec::new(), 0);
        while let Some([transaction, protocol, length]) = self.head(taken) {
            let length = usize::from(length);
            if protocol != 0 || !(2..=LONGEST).contains(&length) {
                // No Modbus, or in the middle of something.
                taken = self.bytes.len();
                break;
            }
            let Some(frame) = self.bytes.get(taken + HEAD - 1..taken + HEAD - 1 + length) else { break };
            if let Some((unit, data)) = frame.split_first() {
                frames.push(Frame { transaction, unit: *unit, data: data.to_vec() });
            }
            taken += HEAD - 1 + length;
        }
        self.bytes.drain(..taken);
        frames
    }

    /// The first three words from a place on.
    fn head(&self, from: usize) -> Option<[u16; 3]> {
        let word = |place: usize| Some(u16::from_be_bytes(self.bytes.get(place..place + 2)?.try_into().ok()?));
        Some([word(from)?, word(from + 2)?, word(from + 4)?])
    }
}

/// Whether a byte comes no later than another; numbers begin again after the last one.
fn is_due(number: u32, next: u32) -> bool {
    next.wrapping_sub(number) < 1 << 31
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame whose data is its transaction.
    fn frame(transaction: u8) -> Vec<u8> {
        vec![0, transaction, 0, 0, 0, 3, 1, 3, transaction]
    }

    #[test]
    fn frames_are_found_however_their_bytes_are_cut_repeated_and_mixed_up() {
        let stream: Vec<u8> = (0..50).flat_map(frame).collect();
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let first = random.u32(..);
            let mut parts: Vec<(usize, usize)> = Vec::new();
            let mut place = 0;
            while place < stream.len() {
                let size = random.usize(1..25).min(stream.len() - place);
                parts.push((place, size));
                if random.u8(..) < 50 {
                    parts.push((place, size));
                }
                place += size;
            }
            for place in 1..parts.len() {
                if random.u8(..) < 80 {
                    parts.swap(place - 1, place);
                }
            }
            let mut flow = Flow::default();
            flow.begin(first);
            let number = |place: usize| first.wrapping_add(u32::try_from(place).unwrap());
            let at = Duration::ZERO;
            let take = |(place, size): &(usize, usize)| flow.take(number(*place), at, &stream[*place..place + size]);
            let found: Vec<u16> = parts.iter().flat_map(take).map(|(_, frame)| frame.transaction).collect();
            assert_eq!(found, (0..50).collect::<Vec<u16>>(), "seed {seed}");
        }
    }

    #[test]
    fn what_was_not_captured_costs_no_more_than_itself() {
        let here = |transaction: &u8| ![5, 50, 97].contains(transaction);
        let transactions = |frames: Vec<(Duration, Frame)>| frames.into_iter().map(|(_, frame)| frame.transaction);
        let take = |flow: &mut Flow, transaction: u8| {
            let at = Duration::from_secs(transaction.into());
            flow.take(9 * u32::from(transaction), at, &frame(transaction))
        };
        let expected: Vec<u16> = (0..100).filter(here).map(u16::from).collect();
        // Told by the other side, or by nobody.
        for is_acknowledged in [true, false] {
            let mut flow = Flow::default();
            let mut found = Vec::new();
            for transaction in (0..100).filter(here) {
                let frames = take(&mut flow, transaction);
                let acknowledged =
                    if is_acknowledged { flow.acknowledged(9 * u32::from(transaction) + 9) } else { Vec::new() };
                for (at, _) in acknowledged.iter().filter(|_| is_acknowledged) {
                    assert_eq!(at.as_secs(), u64::from(transaction));
                }
                found.extend(transactions(frames).chain(transactions(acknowledged)));
            }
            found.extend(transactions(flow.end()));
            assert_eq!(found, expected, "{is_acknowledged}");
        }
        // What is no Modbus is no frame.
        assert!(Flow::default().take(900, Duration::ZERO, b"GET / HTTP/1.1\r\n").is_empty());
    }
}
