//! What a device is made of: its way up, its grants, its limits.

use std::sync::Arc;
use std::time::Duration;

use super::News;
use crate::config::{self, LogLevel};
use crate::message::{DeviceId, Severity};
use crate::sandbox::{Capabilities, DeviceLog, Driver, Limits};

/// What does not change while a device runs.
pub struct Specification {
    /// The id.
    pub id: DeviceId,
    /// What each of its instances may use.
    pub capabilities: Capabilities,
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
        let outlet = Arc::clone(&self.capabilities.outlet);
        let statistics = Arc::clone(&self.capabilities.statistics);
        Arc::new(DeviceLog::new(outlet, driver.manifest.label(), self.cloud_log, limits.logs, statistics))
    }

    /// Writes a line of the host about the device.
    pub fn note(&self, driver: &Driver, severity: Severity, text: &str) {
        self.log(driver).note(severity, text);
    }
}
