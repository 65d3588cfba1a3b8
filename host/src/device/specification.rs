//! What a device is made of: its way up, its grants, its limits.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::News;
use crate::config::{self, LogLevel};
use crate::message::{DeviceId, Severity};
use crate::network::{Lookups, Target};
use crate::router::Outlet;
use crate::sandbox::{BusGrant, Capabilities, DeviceLog, Driver, Limits};
use crate::sockets::Sockets;
use crate::statistics::Statistics;
use crate::storage::DeviceStorage;

/// What does not change while a device runs.
pub struct Specification {
    /// The id.
    pub id: DeviceId,
    /// Where its messages go.
    pub outlet: Arc<Outlet>,
    /// Its counters and last values.
    pub statistics: Arc<Statistics>,
    /// Its key-values.
    pub storage: Option<DeviceStorage>,
    /// Granted addresses for `net`.
    pub tcp: Vec<Target>,
    /// Granted hosts for `http`.
    pub http: Vec<Target>,
    /// Granted buses by the driver's names.
    pub buses: BTreeMap<String, BusGrant>,
    /// Connections that it may open, with all others.
    pub sockets: Sockets,
    /// Look-ups of names, with all others.
    pub lookups: Lookups,
    /// The operator's limits.
    pub limits: config::Limits,
    /// From which level its log goes to the cloud.
    pub cloud_log: LogLevel,
    /// How long a new driver is watched.
    pub health_window: Duration,
    /// Where it tells that its status has changed.
    pub news: News,
}

impl Specification {
    /// The log of one driver of this device.
    pub(super) fn log(&self, driver: &Driver) -> Arc<DeviceLog> {
        let limits = Limits::resolve(&self.limits, &driver.manifest.driver.limits);
        let outlet = Arc::clone(&self.outlet);
        let statistics = Arc::clone(&self.statistics);
        Arc::new(DeviceLog::new(outlet, driver.manifest.label(), self.cloud_log, limits.logs, statistics))
    }

    /// Writes a line of the host about the device.
    pub fn note(&self, driver: &Driver, severity: Severity, text: &str) {
        self.log(driver).note(severity, text);
    }

    /// What an instance of a driver may use.
    pub(super) fn capabilities(&self, driver: &Driver) -> Capabilities {
        Capabilities {
            outlet: Arc::clone(&self.outlet),
            log: self.log(driver),
            statistics: Arc::clone(&self.statistics),
            storage: self.storage.clone(),
            tcp: self.tcp.clone(),
            http: self.http.clone(),
            buses: self.buses.clone(),
            sockets: self.sockets.clone(),
            lookups: self.lookups.clone(),
        }
    }
}
