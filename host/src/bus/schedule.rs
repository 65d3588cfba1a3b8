//! Whose transaction a line carries out next. Plain state; time comes in.
//!
//! A line is shared by the time that it is used: who has used more than a fair
//! part while others were there waits for them. Commands go before polls. What
//! has not answered lately gets a small part of the line only, so that absent
//! units, however patiently they are asked, do not take it from those that answer.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::message::DeviceId;

/// Seconds of the line that a device may use at once.
const BURST: f64 = 1.0;
/// How long a device counts after it asked for something.
const ACTIVE: Duration = Duration::from_secs(10);
/// Seconds of the line that doubtful transactions may use at once, and in each second.
const DOUBTFUL_BURST: f64 = 2.0;
const DOUBTFUL_SHARE: f64 = 0.25;

/// What is known about a transaction that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub device: DeviceId,
    /// Somebody waits for a command.
    pub is_urgent: bool,
    /// Its unit did not answer the last time, or was never asked.
    pub is_doubtful: bool,
}

/// What may be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// The transaction at this place.
    Now(usize),
    /// None before then.
    At(Instant),
    /// None at all.
    Nothing,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Schedule {
    devices: HashMap<DeviceId, Account>,
    doubtful: f64,
    since: Instant,
}

/// What a device has left of its part.
#[derive(Debug, Clone, Copy)]
struct Account {
    /// Seconds of the line; negative: it has used more than its part.
    left: f64,
    asked: Instant,
}

impl Schedule {
    pub(super) fn new(now: Instant) -> Self {
        Schedule { devices: HashMap::new(), doubtful: DOUBTFUL_BURST, since: now }
    }

    /// A device has asked for a transaction.
    pub(super) fn asked(&mut self, device: &DeviceId, now: Instant) {
        self.refill(now);
        let account = self.devices.entry(device.clone()).or_insert(Account { left: BURST, asked: now });
        account.asked = now;
    }

    /// Chooses among the transactions that wait, in the order in which they came.
    pub(super) fn next(&mut self, waiting: &[Wanted], now: Instant) -> Next {
        self.refill(now);
        let left = |wanted: &Wanted| self.devices.get(&wanted.device).map_or(BURST, |account| account.left);
        let may_go = |wanted: &Wanted| {
            let is_alone = self.devices.len() <= 1;
            is_alone || wanted.is_urgent || (left(wanted) > 0.0 && (!wanted.is_doubtful || self.doubtful > 0.0))
        };
        let rank = |(place, wanted): &(usize, &Wanted)| {
            #[allow(clippy::cast_possible_truncation)] // some seconds
            let used = -(left(wanted) * 1000.0) as i64;
            (!wanted.is_urgent, used.max(0), wanted.is_doubtful, *place)
        };
        if let Some((place, _)) = waiting.iter().enumerate().filter(|(_, wanted)| may_go(wanted)).min_by_key(rank) {
            return Next::Now(place);
        }
        let until = |wanted: &Wanted| {
            let own = (-left(wanted)).max(0.0) / self.rate();
            let doubtful = if wanted.is_doubtful { (-self.doubtful).max(0.0) / DOUBTFUL_SHARE } else { 0.0 };
            now + Duration::from_secs_f64(own.max(doubtful).clamp(0.001, ACTIVE.as_secs_f64()))
        };
        waiting.iter().map(until).min().map_or(Next::Nothing, Next::At)
    }

    /// A device has used the line.
    pub(super) fn used(&mut self, wanted: &Wanted, time: Duration, now: Instant) {
        self.refill(now);
        if let Some(account) = self.devices.get_mut(&wanted.device) {
            account.left -= time.as_secs_f64();
            account.asked = now;
        }
        if wanted.is_doubtful {
            self.doubtful -= time.as_secs_f64();
        }
    }

    /// The part of the line that is each device's.
    #[allow(clippy::cast_precision_loss)] // some dozens
    fn rate(&self) -> f64 {
        1.0 / self.devices.len().max(1) as f64
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.since).as_secs_f64();
        self.since = now;
        self.devices.retain(|_, account| now.saturating_duration_since(account.asked) < ACTIVE);
        let gained = passed * self.rate();
        for account in self.devices.values_mut() {
            account.left = (account.left + gained).min(BURST);
        }
        self.doubtful = (self.doubtful + passed * DOUBTFUL_SHARE).min(DOUBTFUL_BURST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(device: &str, is_urgent: bool, is_doubtful: bool) -> Wanted {
        Wanted { device: DeviceId::new(device), is_urgent, is_doubtful }
    }

    /// Runs a line for ten minutes with these devices: how long a transaction
    /// takes, how long after it the next one comes, and whether it is answered.
    /// Gives the number of answered ones.
    fn run(devices: &[(Duration, Duration, bool)]) -> Vec<u32> {
        let begin = Instant::now();
        let mut schedule = Schedule::new(begin);
        let mut next_at = vec![begin; devices.len()];
        let mut done = vec![0; devices.len()];
        let mut now = begin;
        while now < begin + Duration::from_secs(600) {
            let due: Vec<usize> = (0..devices.len()).filter(|device| next_at[*device] <= now).collect();
            let waiting: Vec<Wanted> =
                due.iter().map(|device| wanted(&format!("d{device}"), false, !devices[*device].2)).collect();
            waiting.iter().for_each(|wanted| schedule.asked(&wanted.device, now));
            let soonest = *next_at.iter().filter(|time| **time > now).min().unwrap_or(&(now + Duration::from_secs(1)));
            match schedule.next(&waiting, now) {
                Next::Now(place) => {
                    let (takes, pause, is_answered) = devices[due[place]];
                    now += takes;
                    schedule.used(&waiting[place], takes, now);
                    next_at[due[place]] = now + pause;
                    done[due[place]] += u32::from(is_answered);
                }
                Next::At(time) => now = time.min(soonest),
                Next::Nothing => now = soonest,
            }
        }
        done
    }

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn a_neighbour_keeps_most_of_its_reads_beside_the_worst_user() {
        let good = (MS(10), MS(90), true);
        let undisturbed = run(&[good])[0];
        for worst in [
            // Absent units, asked with the longest patience; and with little.
            (MS(5000), MS(0), false),
            (MS(100), MS(0), false),
            // A unit that answers, slowly and all the time.
            (MS(900), MS(0), true),
            (MS(30), MS(0), true),
        ] {
            let reads = run(&[good, worst])[0];
            assert!(reads * 2 >= undisturbed, "{worst:?}: {reads} of {undisturbed}");
        }
        // Ten of them at once.
        let mut many = vec![good];
        many.extend([(MS(5000), MS(0), false); 10]);
        let reads = run(&many)[0];
        assert!(reads * 2 >= undisturbed, "{reads} of {undisturbed}");
    }

    #[test]
    fn devices_that_ask_alike_get_the_line_alike() {
        let reads = run(&[(MS(20), MS(0), true); 5]);
        let (least, most) = (reads.iter().min().unwrap(), reads.iter().max().unwrap());
        assert!(most - least <= most / 20, "{reads:?}");
        // Alone on a line nobody waits.
        assert!(run(&[(MS(5000), MS(0), true)])[0] >= 119);
    }

    #[test]
    fn commands_go_before_polls() {
        let now = Instant::now();
        let mut schedule = Schedule::new(now);
        let waiting = [wanted("a", false, false), wanted("b", false, false), wanted("a", true, true)];
        waiting.iter().for_each(|wanted| schedule.asked(&wanted.device, now));
        schedule.used(&waiting[0], Duration::from_secs(60), now);
        assert_eq!(schedule.next(&waiting, now), Next::Now(2));
        assert_eq!(schedule.next(&waiting[..2], now), Next::Now(1));
        assert!(matches!(schedule.next(&waiting[..1], now), Next::At(_)));
        assert_eq!(schedule.next(&[], now), Next::Nothing);
    }
}
