//! When the sessions are told what has changed: at once, or what changes soon
//! after another change together.

use std::time::Duration;

use tokio::time::Instant;

/// How far two times of telling are apart at least.
const TOGETHER: Duration = Duration::from_millis(20);
/// And how many times as long as the last one took: with ten thousand devices a
/// change costs milliseconds, here and in each session.
const SHARE: u32 = 20;

/// See the module documentation. Time comes in.
#[derive(Debug)]
pub(super) struct Pace {
    /// When they are told; none when nothing has changed.
    due: Option<Instant>,
    /// From when they may be told again.
    not_before: Instant,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Pace {
        Pace { due: None, not_before: now }
    }

    /// Something has changed.
    pub(super) fn ask(&mut self) {
        self.due.get_or_insert(self.not_before);
    }

    /// When they are told.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// They were told, from one time to another.
    pub(super) fn told(&mut self, begin: Instant, end: Instant) {
        self.due = None;
        self.not_before = end + (end.duration_since(begin) * SHARE).max(TOGETHER);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_change_is_told_at_once_and_telling_takes_a_twentieth_of_the_time_at_most() {
        let begin = Instant::now();
        let after = |milliseconds| begin + Duration::from_millis(milliseconds);
        let mut pace = Pace::new(begin);
        assert_eq!(pace.due(), None);
        pace.ask();
        assert_eq!(pace.due(), Some(begin));
        pace.told(begin, after(1));
        assert_eq!(pace.due(), None);
        pace.ask();
        assert_eq!(pace.due(), Some(after(21)));
        pace.told(after(21), after(121));
        pace.ask();
        assert_eq!(pace.due(), Some(after(2121)));
    }
}
