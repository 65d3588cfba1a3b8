//! What a device did: counters and last values, written by its instance and
//! its task, read by whoever asks for the status.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::time::Instant;

use crate::message::{Attribute, Time, Value, size_of_attribute};

/// Counters since the gateway started, over all lives and drivers of a device.
#[derive(Debug, Default)]
pub struct Statistics {
    /// Samples accepted.
    pub samples: Counter,
    /// Attributes and alerts that did not fit the manifest.
    pub rejected: Counter,
    /// Samples dropped by the rate limit.
    pub limited: Counter,
    /// Log lines dropped by the rate limit.
    pub log_lines_dropped: Counter,
    /// Timer calls.
    pub calls: Counter,
    /// Timer calls and starts that ended with an error of the driver.
    pub errors: Counter,
    /// Traps, used-up budgets and time-outs.
    pub crashes: Counter,
    /// Commands handled.
    pub commands: Counter,
    /// The most processor time that one call took, in ns.
    pub most_cpu: Most,
    /// The most memory that an instance had, in bytes.
    pub most_memory: Most,
    warned_logs: AtomicBool,
    warned_samples: AtomicBool,
    last: Mutex<Last>,
}

/// What a device sent last.
#[derive(Debug, Clone, Default)]
pub struct Last {
    /// When it sent a sample.
    pub time: Option<Time>,
    /// When it sent one that tells something.
    pub good: Option<Instant>,
    /// Telemetry by name.
    pub telemetry: BTreeMap<String, Value>,
    /// Properties by name.
    pub properties: BTreeMap<String, Value>,
    /// Active alerts; none when unknown.
    pub alerts: Option<Vec<String>>,
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

/// The largest number so far. One task writes it.
#[derive(Debug, Default)]
pub struct Most(AtomicU64);

impl Most {
    /// Notes a number.
    pub fn note(&self, number: u64) {
        if number > self.get() {
            self.0.store(number, Ordering::Relaxed);
        }
    }

    /// The largest so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counter {
    /// Adds one.
    pub fn count(&self) {
        self.add(1);
    }

    /// Adds some.
    pub fn add(&self, number: u64) {
        self.0.fetch_add(number, Ordering::Relaxed);
    }

    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Statistics {
    /// A sample was accepted; a good one tells more than that something is wrong.
    pub fn sample(&self, time: Time, attributes: &[Attribute], is_good: bool) {
        self.samples.count();
        let mut last = self.lock();
        last.time = Some(time);
        if is_good {
            last.good = Some(Instant::now());
        }
        remember(&mut last.telemetry, attributes);
    }

    /// Properties were accepted.
    pub fn properties(&self, attributes: &[Attribute]) {
        remember(&mut self.lock().properties, attributes);
    }

    /// The set of active alerts changed; none means unknown.
    pub fn alerts(&self, active: Option<Vec<String>>) {
        self.lock().alerts = active;
    }

    /// Attributes or alerts did not fit.
    pub fn rejected(&self, number: usize) {
        self.rejected.add(u64::try_from(number).unwrap_or_default());
    }

    /// A sample was dropped; true when it is worth a log line.
    pub fn sample_limited(&self) -> bool {
        self.limited.count();
        !self.warned_samples.swap(true, Ordering::Relaxed)
    }

    /// A log line was dropped; true when it is worth a log line itself.
    pub fn log_line_dropped(&self) -> bool {
        self.log_lines_dropped.count();
        !self.warned_logs.swap(true, Ordering::Relaxed)
    }

    /// What was sent last.
    pub fn last(&self) -> Last {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Larger values are sent but not kept for the status.
const MAX_SHOWN: usize = 1 << 10;

/// Updates in place: names repeat with every sample, values are small.
fn remember(known: &mut BTreeMap<String, Value>, attributes: &[Attribute]) {
    for attribute in attributes.iter().filter(|attribute| size_of_attribute(attribute) <= MAX_SHOWN) {
        match known.get_mut(&attribute.name) {
            Some(value) => value.clone_from(&attribute.value),
            None => {
                known.insert(attribute.name.clone(), attribute.value.clone());
            }
        }
    }
}
