//! The import `timers`: when the device task calls `on-timer`.

use std::time::Duration;

use tokio::time::Instant;

use super::contract::sandgate::driver::timers::{TimerError, TimerId};
use super::state::State;

/// A driver polls a few blocks at a few rates.
const MAX_TIMERS: usize = 64;
const MAX_MILLISECONDS: f64 = 365.0 * 24.0 * 3600.0 * 1000.0;

/// The timers of one instance.
#[derive(Debug, Default)]
pub(super) struct Timers {
    set: Vec<Timer>,
    last: TimerId,
    /// The repeating timers of the driver before, whose beat goes on: interval and next time.
    before: Beat,
}

/// Repeating timers: interval and next time.
pub(super) type Beat = Vec<(Duration, Instant)>;

#[derive(Debug)]
struct Timer {
    id: TimerId,
    due: Instant,
    interval: Option<Duration>,
}

impl Timers {
    fn add(&mut self, now: Instant, delay: f64, repeats: bool) -> Result<TimerId, TimerError> {
        if !(1.0..=MAX_MILLISECONDS).contains(&delay) {
            return Err(TimerError::InvalidTime);
        }
        if self.set.len() >= MAX_TIMERS {
            return Err(TimerError::TooMany(u32::try_from(MAX_TIMERS).unwrap_or(u32::MAX)));
        }
        let delay = Duration::from_secs_f64(delay / 1000.0);
        self.last = self.last.wrapping_add(1);
        let place = self.before.iter().position(|(interval, _)| repeats && *interval == delay);
        let due = place.map_or(now + delay, |place| self.before.swap_remove(place).1);
        self.set.push(Timer { id: self.last, due, interval: repeats.then_some(delay) });
        Ok(self.last)
    }

    /// The repeating timers.
    pub(super) fn beat(&self) -> Beat {
        self.set.iter().filter_map(|timer| Some((timer.interval?, timer.due))).collect()
    }

    /// New timers of the same intervals go on with this beat. An empty one ends that.
    pub(super) fn keep_beat(&mut self, beat: Beat) {
        self.before = beat;
    }

    /// When the next timer is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.set.iter().map(|timer| timer.due).min()
    }

    /// Takes the timer that is due first, if any is, and sets it for its next
    /// time on its grid.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<TimerId> {
        let (index, timer) =
            self.set.iter_mut().enumerate().filter(|(_, timer)| timer.due <= now).min_by_key(|(_, timer)| timer.due)?;
        let id = timer.id;
        match timer.interval {
            Some(interval) => {
                let missed = now.duration_since(timer.due).as_nanos() / interval.as_nanos().max(1);
                let steps = u32::try_from(missed + 1).unwrap_or(u32::MAX);
                timer.due = timer.due.checked_add(interval.saturating_mul(steps)).unwrap_or(now + interval);
            }
            None => {
                self.set.remove(index);
            }
        }
        Some(id)
    }
}

impl State {
    pub(super) fn set_timer_every(&mut self, interval: f64) -> Result<TimerId, TimerError> {
        self.timers.add(Instant::now(), interval, true)
    }

    pub(super) fn set_timer_after(&mut self, delay: f64) -> Result<TimerId, TimerError> {
        self.timers.add(Instant::now(), delay, false)
    }

    pub(super) fn cancel_timer(&mut self, id: TimerId) {
        self.timers.set.retain(|timer| timer.id != id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_call_keeps_the_grid_and_skips_what_was_missed() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut timers = Timers::default();
        let id = timers.add(start, 100.0, true).unwrap();
        assert_eq!(timers.next_due(), Some(at(100)));
        assert_eq!(timers.take_due(at(350)), Some(id));
        assert_eq!(timers.next_due(), Some(at(400)));
        assert_eq!(timers.take_due(at(399)), None);
        assert_eq!(timers.take_due(at(400)), Some(id));
        assert_eq!(timers.next_due(), Some(at(500)));
    }

    #[test]
    fn a_new_driver_goes_on_with_the_beat_of_the_one_before() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut old = Timers::default();
        old.add(start, 100.0, true).unwrap();
        old.add(start, 30.0, false).unwrap();
        let mut new = Timers::default();
        new.keep_beat(old.beat());
        // The time that passed during the switch is not lost.
        let kept = new.add(at(120), 100.0, true).unwrap();
        let second = new.add(at(120), 100.0, true).unwrap();
        assert_eq!(new.take_due(at(120)), Some(kept));
        assert_eq!(new.take_due(at(120)), None);
        assert_eq!(new.take_due(at(200)), Some(kept));
        assert_eq!(new.take_due(at(220)), Some(second));
        new.keep_beat(Vec::new());
        new.add(at(220), 30.0, true).unwrap();
        assert_eq!(new.next_due(), Some(at(250)));
    }

    #[test]
    fn a_single_timer_comes_once_and_the_earliest_comes_first() {
        let start = Instant::now();
        let mut timers = Timers::default();
        let late = timers.add(start, 20.0, false).unwrap();
        let early = timers.add(start, 10.0, false).unwrap();
        let now = start + Duration::from_millis(30);
        assert_eq!(timers.take_due(now), Some(early));
        assert_eq!(timers.take_due(now), Some(late));
        assert_eq!(timers.take_due(now), None);
    }

    #[test]
    fn times_out_of_range_and_too_many_timers_are_refused() {
        let mut timers = Timers::default();
        for time in [0.0, 0.5, -1.0, f64::NAN, f64::INFINITY, MAX_MILLISECONDS + 1.0] {
            assert!(matches!(timers.add(Instant::now(), time, true), Err(TimerError::InvalidTime)), "{time}");
        }
        for _ in 0..MAX_TIMERS {
            timers.add(Instant::now(), 1.0, true).unwrap();
        }
        assert!(matches!(timers.add(Instant::now(), 1.0, true), Err(TimerError::TooMany(64))));
    }
}
