//! What may happen many times a second, and is told now and then: messages
//! that were dropped, and a clock that was set.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::Supervisor;
use crate::clock::Moment;
use crate::message::{DeviceId, SessionName, Severity, Uplink};
use crate::outbox::Drops;
use crate::text;

/// After a notice, further drops are only counted for this time.
const QUIET: Duration = Duration::from_secs(60);

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Notices {
    /// What is still to be told, by session.
    drops: BTreeMap<SessionName, BTreeMap<DeviceId, Drops>>,
    told: Option<Instant>,
    last: Moment,
}

impl Notices {
    pub(super) fn new() -> Notices {
        Notices { drops: BTreeMap::new(), told: None, last: Moment::now() }
    }

    fn note(&mut self, session: &SessionName, drops: BTreeMap<DeviceId, Drops>) {
        for (device, drops) in drops {
            let sum = self.drops.entry(session.clone()).or_default().entry(device).or_default();
            sum.for_room += drops.for_room;
            sum.thinned += drops.thinned;
            sum.for_age += drops.for_age;
            sum.damaged += drops.damaged;
        }
    }

    /// What is to be told now, by session.
    fn due(&mut self, now: Instant) -> Vec<(SessionName, String)> {
        if self.drops.is_empty() || self.told.is_some_and(|told| now.duration_since(told) < QUIET) {
            return Vec::new();
        }
        self.told = Some(now);
        std::mem::take(&mut self.drops).into_iter().map(|(session, drops)| (session, describe(&drops))).collect()
    }
}

/// One sentence about all that a session has dropped.
fn describe(drops: &BTreeMap<DeviceId, Drops>) -> String {
    let sum = |of: fn(&Drops) -> u64| drops.values().map(of).sum::<u64>();
    let causes = [
        (sum(|drops| drops.for_room), "for want of room (`outbox.max_size`, or the device's `limits.outbox_size`)"),
        (sum(|drops| drops.thinned), "to thin old telemetry for want of room (the same)"),
        (
            sum(|drops| drops.for_age),
            "because they were too old (`outbox.max_age`, or the device's `limits.outbox_age`)",
        ),
        (sum(|drops| drops.damaged), "because they could not be read from the disk"),
    ];
    let causes: Vec<String> =
        causes.iter().filter(|(count, _)| *count > 0).map(|(count, cause)| format!("{count} {cause}")).collect();
    let mut devices: Vec<(u64, &DeviceId)> = drops.iter().map(|(device, drops)| (drops.total(), device)).collect();
    devices.sort_unstable_by_key(|(count, device)| (std::cmp::Reverse(*count), *device));
    let devices = text::list(devices.iter().map(|(count, device)| format!("{device} {count}")));
    format!("messages were dropped before they could be sent: {}; by device: {devices}", causes.join(" and "))
}

impl Supervisor {
    /// Tells what has happened since the last time.
    pub(super) fn tell_notices(&mut self) {
        let now = Moment::now();
        if let Some(shift) = now.set_since(self.notices.last) {
            let by = humantime::format_duration(Duration::from_secs(shift.unsigned_abs() / 1000));
            let direction = if shift > 0 { "forward" } else { "back" };
            tracing::warn!("the clock was set {direction} by {by}; the times in messages that wait are corrected");
        }
        self.notices.last = now;
        for (name, entry) in &self.sessions {
            self.notices.note(name, entry.outbox.take_drops());
        }
        for (session, text) in self.notices.due(Instant::now()) {
            tracing::warn!(%session, "{text}");
            if let Some(entry) = self.sessions.get(&session) {
                let uplink = Uplink::Log { time: now.wall, severity: Severity::Warning, text: &text, persist: true };
                self.gateway_outlet(&session, entry).send(&uplink);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_told_at_once_and_then_once_a_minute_with_their_sum() {
        let mut notices = Notices::new();
        let begin = Instant::now();
        let drops = |device: &str, for_room, for_age| {
            [(DeviceId::new(device), Drops { for_room, for_age, ..Drops::default() })].into()
        };
        assert!(notices.due(begin).is_empty());
        notices.note(&SessionName::new("s"), drops("a", 1, 0));
        let told = notices.due(begin);
        let expected = "messages were dropped before they could be sent: 1 for want of room (`outbox.max_size`, or the \
                        device's `limits.outbox_size`); by device: a 1";
        assert_eq!(told, [(SessionName::new("s"), expected.to_owned())]);
        for _ in 0..10 {
            notices.note(&SessionName::new("s"), drops("a", 1, 1));
            notices.note(&SessionName::new("s"), drops("b", 0, 3));
            assert!(notices.due(begin + QUIET / 2).is_empty());
        }
        let told = notices.due(begin + QUIET);
        let expected = "messages were dropped before they could be sent: 10 for want of room (`outbox.max_size`, or \
                        the device's `limits.outbox_size`) and 40 because they were too old (`outbox.max_age`, \
                        or the device's `limits.outbox_age`); by device: b 30, a 20";
        assert_eq!(told, [(SessionName::new("s"), expected.to_owned())]);
        assert!(notices.due(begin + 3 * QUIET).is_empty());
    }
}
