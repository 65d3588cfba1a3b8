//! How fast an outbox was filled during the last day, or since the start.

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::Moment;

/// How often the sum is noted, and for how long.
const EVERY: Duration = Duration::from_secs(3600);
const FOR: Duration = Duration::from_secs(24 * 3600);
/// Less says nothing about a rate.
const LEAST: Duration = Duration::from_secs(60);

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Bytes accepted since the start.
    bytes: u64,
    /// What that was at earlier times, oldest first.
    marks: VecDeque<(Moment, u64)>,
}

impl Pace {
    /// Bytes were accepted.
    pub(super) fn note(&mut self, now: Moment, bytes: usize) {
        if self.marks.back().is_none_or(|(moment, _)| now.since(*moment) >= EVERY) {
            self.marks.retain(|(moment, _)| now.since(*moment) < FOR);
            self.marks.push_back((now, self.bytes));
        }
        self.bytes += bytes as u64;
    }

    /// Bytes a second, once there is something to say.
    #[allow(clippy::cast_precision_loss)] // for people
    pub(super) fn rate(&self, now: Moment) -> Option<f64> {
        let (moment, bytes) = self.marks.iter().find(|(moment, _)| now.since(*moment) <= FOR + EVERY)?;
        let time = now.since(*moment);
        (time >= LEAST).then(|| (self.bytes - bytes) as f64 / time.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_day_and_not_of_a_minute() {
        let mut pace = Pace::default();
        let at = |hours: u64| Moment { wall: 0, steady: hours * 3_600_000 };
        assert_eq!(pace.rate(at(0)), None);
        pace.note(at(0), 500);
        assert_eq!(pace.rate(Moment { wall: 0, steady: 1000 }), None);
        // A hundred bytes a second for two days, then three hours of nothing.
        (0..48).for_each(|hour| pace.note(at(hour), 360_000));
        assert_eq!(pace.rate(at(48)).map(f64::round), Some(100.0));
        assert!(pace.marks.len() <= 25);
        assert_eq!(pace.rate(at(51)).map(f64::round), Some(88.0));
        assert_eq!(pace.rate(at(480)), None);
    }
}
