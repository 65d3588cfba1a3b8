//! One direction of a TCP connection: its bytes in their order, and the frames
//! of Modbus TCP in them.

use std::collections::BTreeMap;

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
    /// Those that came too early, by the number of their first byte.
    waiting: BTreeMap<u32, Vec<u8>>,
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

    /// Takes a segment; gives the frames that are whole with it.
    pub(super) fn take(&mut self, number: u32, payload: &[u8]) -> Vec<Frame> {
        if payload.is_empty() {
            return Vec::new();
        }
        let next = *self.next.get_or_insert(number);
        self.waiting.insert(number, payload.to_vec());
        self.catch_up(next);
        if self.waiting.len() > WAITING {
            // What is before the first one that waits was not captured.
            self.bytes.clear();
            let next = self.next.unwrap_or(next);
            self.next = self.waiting.keys().min_by_key(|number| number.wrapping_sub(next)).copied();
            self.catch_up(self.next.unwrap_or(next));
        }
        self.frames()
    }

    /// Takes what comes next, and what was there before and comes again, perhaps with more.
    fn catch_up(&mut self, mut next: u32) {
        let is_due = |number: &u32, next: u32| next.wrapping_sub(*number) < 1 << 31;
        while let Some(number) = self.waiting.keys().copied().find(|number| is_due(number, next)) {
            let payload = self.waiting.remove(&number).unwrap_or_default();
            let known = usize::try_from(next.wrapping_sub(number)).unwrap_or(usize::MAX);
            let new = payload.get(known..).unwrap_or_default();
            self.bytes.extend_from_slice(new);
            next = next.wrapping_add(u32::try_from(new.len()).unwrap_or_default());
        }
        self.next = Some(next);
    }

    fn frames(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        loop {
            let Some([transaction, protocol, length]) = self.head() else { return frames };
            let length = usize::from(length);
            if protocol != 0 || !(2..=LONGEST).contains(&length) {
                // No Modbus, or in the middle of something.
                self.bytes.clear();
                return frames;
            }
            if self.bytes.len() < HEAD - 1 + length {
                return frames;
            }
            let frame: Vec<u8> = self.bytes.drain(..HEAD - 1 + length).skip(HEAD - 1).collect();
            if let Some((unit, data)) = frame.split_first() {
                frames.push(Frame { transaction, unit: *unit, data: data.to_vec() });
            }
        }
    }

    /// The first three words.
    fn head(&self) -> Option<[u16; 3]> {
        let word = |place: usize| Some(u16::from_be_bytes(self.bytes.get(place..place + 2)?.try_into().ok()?));
        Some([word(0)?, word(2)?, word(4)?])
    }
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
            let take = |(place, size): &(usize, usize)| flow.take(number(*place), &stream[*place..place + size]);
            let found: Vec<u16> = parts.iter().flat_map(take).map(|frame| frame.transaction).collect();
            assert_eq!(found, (0..50).collect::<Vec<u16>>(), "seed {seed}");
        }
    }

    #[test]
    fn what_was_not_captured_costs_no_more_than_itself() {
        let mut flow = Flow::default();
        let mut found = Vec::new();
        for transaction in (0..100).filter(|transaction| *transaction != 5) {
            let number = 9 * u32::from(transaction);
            found.extend(flow.take(number, &frame(transaction)).into_iter().map(|frame| frame.transaction));
        }
        assert_eq!(found, (0..100).filter(|transaction| *transaction != 5).collect::<Vec<u16>>());
        // What is no Modbus is no frame.
        assert!(flow.take(900, b"GET / HTTP/1.1\r\n").is_empty());
    }
}
