//! The software of the device behind a driver, if the driver can update it.

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::Device;
use crate::message::Severity;
use crate::sandbox::{Driver, FirmwareStep};

/// How often a version is asked for that is not known.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// Which software of a device a cloud hears of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Firmware {
    /// The driver itself: it updates no device.
    Driver,
    /// The device's, in a version that is not known now.
    Unknown,
    /// The device's, in this version.
    Version(String),
}

impl Firmware {
    /// What is known of a driver that has not been asked.
    pub(super) fn of(driver: &Driver) -> Firmware {
        if driver.updates_device() { Firmware::Unknown } else { Firmware::Driver }
    }
}

impl Device {
    /// Asks the driver what the device runs.
    pub(super) async fn read_firmware(&mut self) {
        self.ask_firmware_at = None;
        if !self.driver.updates_device() {
            return self.set_firmware(Firmware::Driver);
        }
        let Some(instance) = self.life.instance.as_mut() else { return };
        match instance.firmware_version().await {
            Ok(Ok(version)) => self.set_firmware(Firmware::Version(version)),
            Ok(Err(reason)) => {
                self.life.log.write(Severity::Warning, &format!("firmware.version: {reason}"));
                self.set_firmware(Firmware::Unknown);
                self.ask_firmware_at = Some(Instant::now() + ASK_AGAIN);
            }
            Err(error) => Box::pin(self.crashed(&error)).await,
        }
    }

    fn set_firmware(&mut self, firmware: Firmware) {
        if self.firmware != firmware {
            self.firmware = firmware;
            self.publish();
        }
    }

    /// Does a step of an update.
    pub(super) async fn update_firmware(&mut self, step: FirmwareStep) -> Result<(), String> {
        let Some(instance) = self.life.instance.as_mut() else {
            return Err("the driver is not running".into());
        };
        match instance.update_firmware(step).await {
            Ok(result) => result,
            Err(error) => {
                let text = format!("the driver {error}");
                self.crashed(&error).await;
                Err(text)
            }
        }
    }
}
