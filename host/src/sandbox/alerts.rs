//! The import `alerts`: the set of active alerts, merged into telemetry.

use std::collections::{BTreeSet, HashSet};

use super::contract::sandgate::driver::alerts;
use super::state::State;
use super::telemetry::MAX_COMPLAINTS;
use crate::message::{Alerts, Rejection, Uplink, now};

/// Details are a sentence; longer ones are cut.
const MAX_DETAILS: usize = 500;

/// What the driver said last, and whether the cloud knows it.
pub(super) struct AlertState {
    current: Alerts,
    told: bool,
    /// Whether one came or went since the cloud was told.
    is_news: bool,
}

impl AlertState {
    pub(super) fn new(has_alerts: bool) -> Self {
        let current = if has_alerts { Alerts::Unknown } else { Alerts::None };
        AlertState { current, told: true, is_news: false }
    }

    /// The set to carry in a sample, and whether an alert came or went.
    pub(super) fn take_for_sample(&mut self) -> (&Alerts, bool) {
        self.told = true;
        (&self.current, std::mem::take(&mut self.is_news))
    }

    fn set(&mut self, alerts: Alerts) {
        if self.current != alerts {
            // Details and order may change all the time.
            self.is_news |= ids(&self.current) != ids(&alerts);
            self.current = alerts;
            self.told = false;
        }
    }
}

/// What is active, in order; none when nothing can be said.
fn ids(alerts: &Alerts) -> Option<BTreeSet<&str>> {
    match alerts {
        Alerts::None => Some(BTreeSet::new()),
        Alerts::Unknown => None,
        Alerts::Active(active) => Some(active.iter().map(|(id, _)| id.as_str()).collect()),
    }
}

impl State {
    pub(super) fn set_alerts(&mut self, active: Vec<alerts::Alert>) -> Result<(), Vec<Rejection>> {
        let mut rejected = Vec::new();
        let mut accepted: Vec<(String, Option<String>)> = Vec::new();
        let mut seen = HashSet::new();
        for alert in active {
            if !self.manifest.is_alert(&alert.id) {
                let reason = "is not declared under alerts in the manifest".to_owned();
                rejected.push(Rejection { name: alert.id, reason });
            } else if seen.insert(alert.id.clone()) {
                let details = alert.details.map(|text| text.chars().take(MAX_DETAILS).collect());
                accepted.push((alert.id, details));
            }
        }
        for rejection in rejected.iter().take(MAX_COMPLAINTS) {
            self.complain(
                &format!("alert {}", rejection.name),
                &format!("alert {}: {}", rejection.name, rejection.reason),
            );
        }
        self.telemetry.statistics.rejected(rejected.len());
        self.telemetry.statistics.alerts(Some(accepted.iter().map(|(id, _)| id.clone()).collect()));
        self.alerts.set(Alerts::Active(accepted));
        if rejected.is_empty() { Ok(()) } else { Err(rejected) }
    }

    pub(super) fn alerts_are_unknown(&mut self) {
        self.telemetry.statistics.alerts(None);
        self.alerts.set(Alerts::Unknown);
    }

    /// Sends a changed set that no sample carried. Called after each call.
    pub(super) fn flush_alerts(&mut self) {
        // Over the rate it stays untold, and goes with a later call.
        if !self.alerts.told && self.telemetry.limiter.allow(tokio::time::Instant::now()) {
            let time = now();
            let (alerts, tells_alerts) = self.alerts.take_for_sample();
            self.outlet.send(&Uplink::Telemetry { time, is_own: true, attributes: &[], alerts, tells_alerts });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_one_comes_or_goes_is_news_and_other_details_or_another_order_are_not() {
        let active = |alerts: &[(&str, &str)]| {
            Alerts::Active(alerts.iter().map(|(id, text)| ((*id).to_owned(), Some((*text).to_owned()))).collect())
        };
        let mut state = AlertState::new(true);
        for (alerts, is_news) in [
            (active(&[]), true),
            (active(&[("hot", "91 C")]), true),
            (active(&[("hot", "92 C")]), false),
            (active(&[("hot", "92 C"), ("slow", "")]), true),
            (active(&[("slow", ""), ("hot", "92 C")]), false),
            (Alerts::Unknown, true),
            (Alerts::Unknown, false),
            (active(&[]), true),
        ] {
            state.set(alerts.clone());
            assert_eq!(state.take_for_sample(), (&alerts, is_news), "{alerts:?}");
        }
    }
}
