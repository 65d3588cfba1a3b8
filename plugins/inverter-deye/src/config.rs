//! What the operator says about an inverter: `configuration` in the manifest.
//!
//! The gateway has checked ranges and filled in defaults before it comes here.

use std::time::Duration;

use serde::Deserialize;

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Config {
    /// How the inverter is reached.
    pub connection: Connection,
    /// What the inverter does not say about itself.
    pub inverter: Inverter,
}

/// How the inverter is reached.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Connection {
    /// Modbus unit, 1 to 247.
    pub unit: u8,
    /// Milliseconds from poll to poll.
    pub poll_ms: u64,
    /// Milliseconds of silence before each request.
    pub pause_ms: f64,
    /// Milliseconds to wait for an answer.
    pub timeout_ms: f64,
}

/// What the inverter does not say about itself.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Inverter {
    /// The brand on the case.
    pub vendor: String,
    /// The model on the label.
    pub model: Option<String>,
    /// From this voltage on a PV string counts as connected.
    pub pv_string_voltage: f64,
    /// The battery's nominal voltage.
    pub battery_voltage: Option<f64>,
}

impl Connection {
    /// The time from poll to poll.
    pub fn poll(&self) -> Duration {
        Duration::from_millis(self.poll_ms)
    }
}
