//! When a crashed driver is started again. Pure: time comes in.

use std::time::Duration;

/// Crashes in a row, without a healthy minute between them, that end it.
const CRASH_LOOP: u32 = 10;
const HEALTHY: Duration = Duration::from_secs(60);
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);

/// Counts failures of one device.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    crashes: u32,
    refusals: u32,
}

/// What to do after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Start again after this time.
    RestartIn(Duration),
    /// Stop trying: it crashes again and again.
    GiveUp,
}

impl Backoff {
    /// The driver crashed after it had run for `healthy`. The first crash is
    /// answered at once, later ones with growing delays; `jitter` is 0 to 1.
    pub(super) fn crashed(&mut self, healthy: Duration, jitter: f64) -> Verdict {
        if healthy >= HEALTHY {
            self.crashes = 0;
        }
        self.crashes += 1;
        if self.crashes >= CRASH_LOOP {
            return Verdict::GiveUp;
        }
        Verdict::RestartIn(delay(self.crashes, jitter))
    }

    /// The driver refused to start, probably because its device is away: it is
    /// tried for ever.
    pub(super) fn refused(&mut self, jitter: f64) -> Duration {
        self.refusals = self.refusals.saturating_add(1);
        delay(self.refusals.saturating_add(1), jitter)
    }

    /// It started: earlier refusals are forgotten, crashes are not.
    pub(super) fn started(&mut self) {
        self.refusals = 0;
    }

    /// Someone restarted it by hand.
    pub(super) fn reset(&mut self) {
        *self = Backoff::default();
    }
}

/// 0, 1 s, 2 s, 4 s, … 5 min, each with up to a quarter more or less.
fn delay(failures: u32, jitter: f64) -> Duration {
    let Some(doublings) = failures.checked_sub(2) else { return Duration::ZERO };
    let delay = FIRST.saturating_mul(1 << doublings.min(16)).min(LONGEST);
    delay.mul_f64(0.75 + jitter / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_loop_slows_down_and_ends() {
        let mut backoff = Backoff::default();
        let verdicts: Vec<_> = (0..10).map(|_| backoff.crashed(Duration::ZERO, 0.5)).collect();
        let seconds = [0, 1, 2, 4, 8, 16, 32, 64, 128].map(|s| Verdict::RestartIn(Duration::from_secs(s)));
        assert_eq!(verdicts[..9], seconds);
        assert_eq!(verdicts[9], Verdict::GiveUp);
    }

    #[test]
    fn a_healthy_minute_or_a_hand_forgives() {
        let mut backoff = Backoff::default();
        for _ in 0..100 {
            assert_eq!(backoff.crashed(HEALTHY, 0.5), Verdict::RestartIn(Duration::ZERO));
        }
        backoff.crashed(Duration::ZERO, 0.5);
        backoff.reset();
        assert_eq!(backoff.crashed(Duration::ZERO, 0.5), Verdict::RestartIn(Duration::ZERO));
    }

    #[test]
    fn a_device_that_was_away_is_not_near_its_end_when_it_comes_back() {
        let mut backoff = Backoff::default();
        for _ in 0..50 {
            backoff.refused(0.5);
        }
        backoff.started();
        assert_eq!(backoff.crashed(Duration::ZERO, 0.5), Verdict::RestartIn(Duration::ZERO));
        assert_eq!(backoff.refused(0.5), FIRST);
    }

    #[test]
    fn a_driver_that_refuses_to_start_is_tried_for_ever() {
        let mut backoff = Backoff::default();
        let longest = (0..100).map(|_| backoff.refused(1.0)).max().unwrap();
        assert!(longest <= LONGEST.mul_f64(1.25));
        assert_eq!(Backoff::default().refused(0.5), FIRST);
    }
}
