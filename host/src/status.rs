//! The state of the whole gateway as one immutable value: what the admin API,
//! the command line and the live view show.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use crate::device::{DeviceHandle, Phase};
use crate::manifest::Type;
use crate::message::{DeviceId, Time, json_of};
use crate::outbox::{self, Outbox};
use crate::registry::Stage;
use crate::session::SessionStatus;
use crate::statistics::Statistics;

/// See the module documentation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// The version of this program.
    pub version: String,
    /// Seconds since the start.
    pub uptime_s: u64,
    /// Resident memory in bytes.
    pub memory: u64,
    /// Sessions by name.
    pub sessions: BTreeMap<String, SessionReport>,
    /// Devices, by id.
    pub devices: Vec<DeviceReport>,
}

/// One session.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SessionReport {
    /// Connected or not, and why not.
    #[serde(flatten)]
    pub status: SessionStatus,
    /// The broker.
    pub address: String,
    /// Messages delivered.
    pub delivered: u64,
    /// Messages waiting.
    pub waiting: usize,
    /// Messages dropped for lack of room or for age.
    pub dropped: u64,
    /// Their size in bytes.
    #[serde(default)]
    pub waiting_bytes: usize,
    /// Where they wait.
    #[serde(default)]
    pub outbox: outbox::State,
    /// Messages that the cloud refused for good.
    pub rejected: u64,
    /// Properties that newer ones have replaced before they went.
    #[serde(default)]
    pub replaced: u64,
    /// Messages from the cloud that could not be used.
    pub refused: u64,
}

impl SessionReport {
    /// Puts a report together.
    pub fn new(status: SessionStatus, address: String, outbox: &Outbox, refused: u64) -> Self {
        let stats = outbox.stats();
        SessionReport {
            status,
            address,
            delivered: stats.delivered,
            waiting: stats.waiting,
            dropped: stats.dropped,
            waiting_bytes: stats.bytes,
            outbox: outbox.state(),
            rejected: stats.rejected,
            replaced: stats.replaced,
            refused,
        }
    }
}

/// One device.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeviceReport {
    /// Its id.
    pub id: String,
    /// Where it is in its life.
    pub phase: Phase,
    /// The driver's name; empty while none could be loaded.
    pub driver: String,
    /// The driver's version.
    pub version: String,
    /// The first digits of the driver's SHA-256.
    pub digest: String,
    /// Whether a new driver is still being watched.
    pub watching: bool,
    /// The last failure.
    pub problem: Option<String>,
    /// Samples accepted.
    pub samples: u64,
    /// Attributes and alerts that did not fit the manifest.
    pub rejected: u64,
    /// Samples dropped by the rate limit.
    pub limited: u64,
    /// Log lines dropped by the rate limit.
    pub log_lines_dropped: u64,
    /// Timer calls and starts that ended with an error of the driver.
    pub errors: u64,
    /// Crashes.
    pub crashes: u64,
    /// Commands handled.
    pub commands: u64,
    /// The most processor time that one call took, in microseconds.
    #[serde(default)]
    pub most_cpu_us: u64,
    /// The most memory that an instance of its driver had, in bytes.
    #[serde(default)]
    pub most_memory: u64,
    /// When it sent its last sample, milliseconds since the epoch.
    pub last_sample: Option<Time>,
    /// Seconds since its last good sample: one with a known value beside
    /// `status` and lists of alerts. Null when there was none.
    #[serde(default)]
    pub good_sample_age_s: Option<u64>,
    /// Active alerts; null when unknown.
    pub alerts: Option<Vec<String>>,
    /// Other lists of alerts: telemetry of type `alerts`, by name.
    #[serde(default)]
    pub other_alerts: BTreeMap<String, Vec<String>>,
    /// The last telemetry.
    pub telemetry: Map<String, Json>,
    /// The last properties.
    pub properties: Map<String, Json>,
}

impl DeviceReport {
    /// Reports a device that runs or did run.
    pub fn of(handle: &DeviceHandle) -> Self {
        let status = handle.status.borrow().clone();
        let mut report =
            DeviceReport::without_driver(&handle.spec.id, &handle.spec.capabilities.statistics, status.problem, None);
        report.phase = status.phase;
        report.driver.clone_from(&status.driver.manifest.driver.name);
        report.version.clone_from(&status.driver.manifest.driver.version);
        report.digest = status.driver.digest.short();
        report.watching = status.watching;
        let declared = &status.driver.manifest.blueprint.telemetry;
        let lists = report
            .telemetry
            .iter()
            .filter(|(name, _)| declared.get(*name).is_some_and(|field| field.kind == Type::Alerts));
        let ids = |list: &Json| -> Option<Vec<String>> {
            list.as_array()?.iter().map(|id| id.as_str().map(str::to_owned)).collect()
        };
        report.other_alerts = lists.filter_map(|(name, list)| Some((name.clone(), ids(list)?))).collect();
        report
    }

    /// All active alerts, for people.
    pub fn alerts_text(&self) -> String {
        let others = self.other_alerts.iter().filter(|(_, active)| !active.is_empty());
        let others = others.map(|(name, active)| format!("{name}: {}", active.join(", ")));
        let own = match self.alerts.as_deref() {
            None => Some("unknown".to_owned()),
            Some([]) => None,
            Some(active) => Some(active.join(", ")),
        };
        let all: Vec<String> = own.into_iter().chain(others).collect();
        if all.is_empty() { "none".into() } else { all.join("; ") }
    }

    /// How old its last good sample is, for people.
    pub fn age_text(&self) -> String {
        match self.good_sample_age_s {
            None => "never".into(),
            Some(age @ 0..60) => format!("{age} s"),
            Some(age @ 60..3600) => format!("{} min", age / 60),
            Some(age @ 3600..86_400) => format!("{} h", age / 3600),
            Some(age) => format!("{} d", age / 86_400),
        }
    }

    /// Reports a device whose driver is being loaded, or could not be.
    pub fn without_driver(
        id: &DeviceId,
        statistics: &Statistics,
        problem: Option<String>,
        stage: Option<Stage>,
    ) -> Self {
        let last = statistics.last();
        DeviceReport {
            id: id.to_string(),
            phase: match stage {
                Some(Stage::Loading) => Phase::Loading,
                Some(Stage::Compiling) => Phase::Compiling,
                None => Phase::Failed,
            },
            driver: String::new(),
            version: String::new(),
            digest: String::new(),
            watching: false,
            problem,
            samples: statistics.samples.get(),
            rejected: statistics.rejected.get(),
            limited: statistics.limited.get(),
            log_lines_dropped: statistics.log_lines_dropped.get(),
            errors: statistics.errors.get(),
            crashes: statistics.crashes.get(),
            commands: statistics.commands.get(),
            most_cpu_us: statistics.most_cpu.get() / 1000,
            most_memory: statistics.most_memory.get(),
            last_sample: last.time,
            good_sample_age_s: last.good.map(|time| time.elapsed().as_secs()),
            other_alerts: BTreeMap::new(),
            alerts: last.alerts,
            telemetry: last.telemetry.iter().map(|(name, value)| (name.clone(), json_of(value))).collect(),
            properties: last.properties.iter().map(|(name, value)| (name.clone(), json_of(value))).collect(),
        }
    }
}

/// Resident memory of this process in bytes; 0 where the system does not tell.
pub fn resident_memory() -> u64 {
    let Ok(text) = std::fs::read_to_string("/proc/self/statm") else { return 0 };
    let pages: u64 = text.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
    pages * u64::try_from(rustix::param::page_size()).unwrap_or(4096)
}
