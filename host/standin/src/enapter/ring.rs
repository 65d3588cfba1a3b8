//! A store of the newest items, bounded by count and bytes.
//!
//! Every item has a number, so that readers go on where they were and learn
//! how many items they missed.

use std::collections::VecDeque;

/// The newest items of an endless row.
#[derive(Debug)]
pub struct Ring<T> {
    items: VecDeque<(T, usize)>,
    /// The number of the oldest item that is kept.
    first: u64,
    bytes: usize,
    most: usize,
    most_bytes: usize,
}

impl<T> Ring<T> {
    /// Makes an empty ring with these bounds.
    pub fn new(most: usize, most_bytes: usize) -> Self {
        Ring { items: VecDeque::new(), first: 0, bytes: 0, most, most_bytes }
    }

    /// Adds an item of about this size; the oldest make room.
    pub fn push(&mut self, item: T, size: usize) {
        self.items.push_back((item, size));
        self.bytes += size;
        while self.items.len() > self.most || (self.bytes > self.most_bytes && self.items.len() > 1) {
            self.drop_oldest();
        }
    }

    /// Forgets the oldest item and returns its size.
    pub fn drop_oldest(&mut self) -> usize {
        let Some((_, size)) = self.items.pop_front() else { return 0 };
        self.first += 1;
        self.bytes -= size;
        size
    }

    /// About how many bytes are kept.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The number that the next item will have.
    pub fn end(&self) -> u64 {
        self.first + self.items.len() as u64
    }

    /// The number from which on there are this many items at most.
    pub fn newest(&self, count: u64) -> u64 {
        self.end().saturating_sub(count).max(self.first)
    }

    /// The items from a number on.
    pub fn from(&self, number: u64) -> impl DoubleEndedIterator<Item = &T> {
        let skip = usize::try_from(number.saturating_sub(self.first)).unwrap_or(usize::MAX);
        self.items.iter().skip(skip).map(|(item, _)| item)
    }

    /// How many items from a number on are forgotten.
    pub fn missed(&self, number: u64) -> u64 {
        self.first.saturating_sub(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_make_room_and_readers_learn_what_they_missed() {
        let mut ring = Ring::new(3, 100);
        for number in 0..5 {
            ring.push(number, 10);
        }
        assert_eq!(ring.from(0).copied().collect::<Vec<_>>(), [2, 3, 4]);
        assert_eq!((ring.missed(0), ring.missed(4), ring.end(), ring.newest(2), ring.newest(9)), (2, 0, 5, 3, 2));
        assert_eq!(ring.from(4).copied().collect::<Vec<_>>(), [4]);
        assert_eq!(ring.from(99).count(), 0);
        ring.push(5, 95);
        assert_eq!((ring.from(0).copied().collect::<Vec<_>>(), ring.bytes()), (vec![5], 95));
        ring.push(6, 1000);
        assert_eq!((ring.from(0).copied().collect::<Vec<_>>(), ring.bytes()), (vec![6], 1000));
    }
}
