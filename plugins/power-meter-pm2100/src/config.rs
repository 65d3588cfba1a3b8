//! What the operator says about a meter: `configuration` in the manifest.
//!
//! The gateway has checked ranges and filled in defaults before it comes here.

use std::time::Duration;

use serde::Deserialize;

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Config {
    /// How the meter is reached.
    pub connection: Connection,
    /// How its numbers are read.
    pub meter: Meter,
}

/// How the meter is reached.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Connection {
    /// Modbus unit, 1 to 247.
    pub unit: u8,
    /// Milliseconds from poll to poll.
    pub poll_ms: u64,
}

/// How the meter's numbers are read.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Meter {
    /// Whether power and energy come as kW and kWh.
    pub scale_kilo: bool,
}

impl Connection {
    /// The time from poll to poll.
    pub fn poll(&self) -> Duration {
        Duration::from_millis(self.poll_ms)
    }
}
