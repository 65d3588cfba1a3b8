//! The imports `telemetry` and `properties`: checks what a driver sends and
//! hands it to the outlet, encoded once.

use std::collections::HashSet;
use std::sync::Arc;
use tokio::time::Instant;

use super::contract::sandgate::driver::telemetry;
use super::limits::RateLimiter;
use super::state::State;
use crate::config::Rate;
use crate::manifest::{Field, Manifest, Type};
use crate::message::{Attribute, Rejection, Severity, Time, Uplink, Value, now, size_of_attribute};
use crate::statistics::Statistics;
use telemetry::SendError;

/// A sample is some dozens of numbers; more than this is a mistake.
const MAX_SAMPLE: usize = 128 << 10;
/// Different complaints that are logged of one driver.
pub(super) const MAX_COMPLAINTS: usize = 100;

/// Up to this many names are compared one by one.
const FEW: usize = 32;

/// The part of the state that samples need.
pub(super) struct Telemetry {
    pub(super) limiter: RateLimiter,
    pub(super) statistics: Arc<Statistics>,
    /// Names that were complained about already, in this life of the driver.
    complaints: HashSet<String>,
}

impl Telemetry {
    pub(super) fn new(rate: Rate, now: Instant, statistics: Arc<Statistics>) -> Self {
        Telemetry { limiter: RateLimiter::new(rate, now), statistics, complaints: HashSet::new() }
    }
}

impl State {
    pub(super) fn send_sample(&mut self, sample: telemetry::Sample) -> Result<(), SendError> {
        let (time, is_own) = match sample.time {
            None => (now(), true),
            Some(time) => (valid_time(time).ok_or(SendError::InvalidTime)?, false),
        };
        let manifest = Arc::clone(&self.manifest);
        let (attributes, rejected) =
            self.admit(sample.attributes, |name| manifest.blueprint.telemetry.get(name), &manifest)?;
        if !attributes.is_empty() {
            let is_good = attributes.iter().any(|attribute| tells(attribute, &manifest));
            self.telemetry.statistics.sample(time, &attributes, is_good);
            let (alerts, tells_alerts) = self.alerts.take_for_sample();
            self.outlet.send(&Uplink::Telemetry { time, is_own, attributes: &attributes, alerts, tells_alerts });
        }
        if rejected.is_empty() { Ok(()) } else { Err(SendError::Rejected(rejected)) }
    }

    pub(super) async fn flush_telemetry(&mut self) -> Result<(), telemetry::FlushError> {
        // Nothing that is simulated is lost.
        if self.field.is_some() {
            return Ok(());
        }
        self.outlet.flush().await.map_err(telemetry::FlushError::Unavailable)
    }

    pub(super) fn publish_properties(&mut self, attributes: Vec<Attribute>) -> Result<(), SendError> {
        let manifest = Arc::clone(&self.manifest);
        let (attributes, rejected) =
            self.admit(attributes, |name| manifest.blueprint.properties.get(name), &manifest)?;
        if !attributes.is_empty() {
            self.telemetry.statistics.properties(&attributes);
            let time = now();
            self.outlet.send(&Uplink::Properties { time, attributes: &attributes });
        }
        if rejected.is_empty() { Ok(()) } else { Err(SendError::Rejected(rejected)) }
    }

    /// Sorts attributes into those that fit the manifest and the others.
    fn admit<'a>(
        &mut self,
        attributes: Vec<Attribute>,
        declared: impl Fn(&str) -> Option<&'a Field>,
        manifest: &Manifest,
    ) -> Result<(Vec<Attribute>, Vec<Rejection>), SendError> {
        if !self.telemetry.limiter.allow(Instant::now()) {
            if self.telemetry.statistics.sample_limited() {
                self.log.write(Severity::Warning, "sends samples faster than its limit; further ones are dropped");
            }
            return Err(SendError::RateLimited);
        }
        let size: usize = attributes.iter().map(size_of_attribute).sum();
        if size > MAX_SAMPLE {
            self.complain("", &format!("a sample of {size} bytes was dropped; expected at most {MAX_SAMPLE}"));
            return Err(SendError::TooLarge(u32::try_from(MAX_SAMPLE).unwrap_or(u32::MAX)));
        }
        let mut rejected = Vec::new();
        let mut accepted: Vec<Attribute> = Vec::with_capacity(attributes.len());
        // For a few names a search beats a set.
        let mut seen: Option<HashSet<*const Field>> = (attributes.len() > FEW).then(HashSet::new);
        for attribute in attributes {
            let reason = match declared(&attribute.name) {
                None => Some("is not declared in the manifest".to_owned()),
                Some(field) => {
                    let is_new = match &mut seen {
                        // Each declared name has a field of its own.
                        Some(seen) => seen.insert(std::ptr::from_ref(field)),
                        None => !accepted.iter().any(|before| before.name == attribute.name),
                    };
                    match is_new {
                        false => Some("stands twice in the sample".to_owned()),
                        true => field.check(&attribute.value, |id| manifest.is_alert(id)).err(),
                    }
                }
            };
            match reason {
                None => accepted.push(attribute),
                Some(reason) => rejected.push(Rejection { name: attribute.name, reason }),
            }
        }
        for rejection in rejected.iter().take(MAX_COMPLAINTS) {
            self.complain(&rejection.name, &format!("{}: {}", rejection.name, rejection.reason));
        }
        self.telemetry.statistics.rejected(rejected.len());
        Ok((accepted, rejected))
    }

    /// Logs what is wrong with a name, once in the life of the driver.
    pub(super) fn complain(&mut self, name: &str, text: &str) {
        let complaints = &mut self.telemetry.complaints;
        let name: String = name.chars().take(100).collect();
        if complaints.len() < MAX_COMPLAINTS && complaints.insert(name) {
            self.log.note(Severity::Warning, text);
        }
    }
}

/// Whether an attribute tells something of the device, and not only how it is:
/// drivers go on sending `status` and lists of alerts when nothing can be read.
fn tells(attribute: &Attribute, manifest: &Manifest) -> bool {
    let is_list_of_alerts = || {
        let field = manifest.blueprint.telemetry.get(&attribute.name);
        field.is_some_and(|field| field.kind == Type::Alerts)
    };
    attribute.name != "status" && !matches!(attribute.value, Value::Unknown) && !is_list_of_alerts()
}

/// A finite time between 1970 and the year 9999.
fn valid_time(time: f64) -> Option<Time> {
    const YEAR_9999: f64 = 253_402_300_800_000.0;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // checked right here
    (0.0..YEAR_9999).contains(&time).then_some(time as Time)
}
