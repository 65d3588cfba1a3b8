//! Time: the wall clock, which may be wrong and may be set, and a steady one,
//! which only goes on. What is measured in one is corrected by the other.

use std::cell::Cell;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rustix::time::{ClockId, clock_gettime};
use serde::Deserialize;

/// Milliseconds since the Unix epoch.
pub type Time = u64;

/// A wall clock that runs differently from the steady one by less was not set:
/// it is only inexact.
const TOLERANCE: u64 = 2_000;

/// Where the steady clock begins: this long before the machine has started.
const BEFORE_START: u64 = 10 * 365 * 24 * 3600 * 1000;

/// A wall clock that says less, the year 2020, was not set.
const EARLIEST: Time = 1_577_836_800_000;

thread_local! {
    /// What the wall clock of this thread said at which point of its runtime's time; none where
    /// it is the machine's.
    static SIMULATED: Cell<Option<(Time, tokio::time::Instant)>> = const { Cell::new(None) };
}

/// As long as this lives, the clocks of this thread follow the time of its
/// runtime, which may be paused.
#[must_use]
pub struct SimulatedClock(());

impl SimulatedClock {
    /// Lets the wall clock say this now.
    pub fn begin(wall: Time) -> SimulatedClock {
        SIMULATED.set(Some((wall, tokio::time::Instant::now())));
        SimulatedClock(())
    }
}

impl Drop for SimulatedClock {
    fn drop(&mut self) {
        SIMULATED.set(None);
    }
}

/// What a simulated clock says.
fn simulated() -> Option<Time> {
    let (wall, since) = SIMULATED.get()?;
    Some(wall.saturating_add(u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)))
}

/// The present time.
pub fn now() -> Time {
    if let Some(time) = simulated() {
        return time;
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time::try_from(since.as_millis()).unwrap_or(Time::MAX)
}

/// One point in time, by both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moment {
    /// By the wall clock.
    pub wall: Time,
    /// Milliseconds since ten years before the machine started, so that what is
    /// older has a time as well; it goes on while the machine sleeps.
    pub steady: u64,
}

impl Moment {
    /// The present.
    pub fn now() -> Moment {
        if let Some(wall) = simulated() {
            return Moment { wall, steady: wall };
        }
        let time = clock_gettime(ClockId::Boottime);
        let since = Duration::new(
            u64::try_from(time.tv_sec).unwrap_or_default(),
            u32::try_from(time.tv_nsec).unwrap_or_default(),
        );
        let steady = u64::try_from(since.as_millis()).unwrap_or(u64::MAX).saturating_add(BEFORE_START);
        Moment { wall: now(), steady }
    }

    /// Whether its wall clock had been set.
    pub fn is_set(self) -> bool {
        self.wall >= EARLIEST
    }

    /// The moment of an earlier start of the machine at which the wall clock
    /// said this; as long ago as the wall clock says now. A clock that was not
    /// set yet tells nothing: that counts as now.
    pub fn as_old_as(self, wall: Time) -> Moment {
        let age = if !(Moment { wall, ..self }).is_set() { 0 } else { self.wall.saturating_sub(wall) };
        Moment { wall, steady: self.steady.saturating_sub(age) }
    }

    /// How long ago another moment was, whatever the wall clock says.
    pub fn since(self, earlier: Moment) -> Duration {
        Duration::from_millis(self.steady.saturating_sub(earlier.steady))
    }

    /// By how many milliseconds the wall clock was set forward since an
    /// earlier moment; negative for backward, none when it was not set.
    pub fn set_since(self, earlier: Moment) -> Option<i64> {
        let offset = |moment: Moment| i128::from(moment.wall) - i128::from(moment.steady);
        let shift = offset(self) - offset(earlier);
        (shift.unsigned_abs() > u128::from(TOLERANCE)).then(|| i64::try_from(shift).unwrap_or_default())
    }
}

/// A number that stands for the machine's last start.
pub fn boot() -> u64 {
    static BOOT: OnceLock<u64> = OnceLock::new();
    *BOOT.get_or_init(|| {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let digits: String = id.chars().filter(char::is_ascii_hexdigit).take(16).collect();
        u64::from_str_radix(&digits, 16).unwrap_or_default()
    })
}

/// How a time is written in a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeFormat {
    /// Milliseconds since 1970, a number.
    #[default]
    #[serde(rename = "ms")]
    Milliseconds,
    /// Seconds since 1970, a number.
    #[serde(rename = "s")]
    Seconds,
    /// `2026-01-31T12:00:00.000Z`, a text.
    Iso8601,
}

impl TimeFormat {
    /// A time as JSON.
    pub fn write(self, time: Time) -> String {
        match self {
            TimeFormat::Milliseconds => time.to_string(),
            TimeFormat::Seconds => (time / 1000).to_string(),
            TimeFormat::Iso8601 => {
                let time = UNIX_EPOCH + Duration::from_millis(time);
                format!("\"{}\"", humantime::format_rfc3339_millis(time))
            }
        }
    }
}

/// A time of this machine's clock inside of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The byte at which it begins.
    pub place: usize,
    /// The time.
    pub time: Time,
    /// How it is written.
    pub format: TimeFormat,
}

impl Stamp {
    /// The payload with the time as it would be if the clock had been right by
    /// `shift` milliseconds.
    pub fn corrected(self, payload: &Bytes, shift: i64) -> Bytes {
        let time = self.time.saturating_add_signed(shift);
        let old = self.format.write(self.time);
        let (Some(before), Some(after)) = (payload.get(..self.place), payload.get(self.place + old.len()..)) else {
            return payload.clone();
        };
        [before, self.format.write(time).as_bytes(), after].concat().into()
    }
}

/// A length of time as `0:00:05.250`.
pub fn hours(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}:{:02}:{:02}.{:03}", seconds / 3600, seconds / 60 % 60, seconds % 60, time.subsec_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_is_seen_and_one_that_drifts_is_not() {
        let at = |wall, steady| Moment { wall, steady };
        for (earlier, now, expected) in [
            (at(1_000_000, 0), at(1_060_000, 60_000), None),
            (at(1_000_000, 0), at(1_061_500, 60_000), None),
            (at(0, 0), at(1_700_000_060_000, 60_000), Some(1_700_000_000_000)),
            (at(1_000_000, 0), at(960_000, 60_000), Some(-100_000)),
        ] {
            assert_eq!(now.set_since(earlier), expected);
            assert_eq!(now.since(earlier), Duration::from_secs(60));
        }
        let now = Moment::now();
        assert!(now.wall > 1_700_000_000_000 && Moment::now().since(now) < Duration::from_secs(60));
    }

    #[test]
    fn a_time_in_a_payload_is_corrected_and_the_rest_stays() {
        for (format, payload, expected) in [
            (TimeFormat::Seconds, "{\"timestamp\":1,\"a\":1}", "{\"timestamp\":1700000001,\"a\":1}"),
            (TimeFormat::Milliseconds, "{\"timestamp\":1000}", "{\"timestamp\":1700000001000}"),
            (
                TimeFormat::Iso8601,
                "{\"timestamp\":\"1970-01-01T00:00:01.000Z\",\"b\":\"1\"}",
                "{\"timestamp\":\"2023-11-14T22:13:21.000Z\",\"b\":\"1\"}",
            ),
        ] {
            let stamp = Stamp { place: 13, time: 1000, format };
            assert_eq!(stamp.corrected(&Bytes::from(payload), 1_700_000_000_000), expected);
        }
        let stamp = Stamp { place: 99, time: 1000, format: TimeFormat::Seconds };
        assert_eq!(stamp.corrected(&Bytes::from_static(b"{}"), 1), "{}");
    }
}
