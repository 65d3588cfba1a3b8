//! What the operator says about a relay: `configuration` in the manifest.
//!
//! The gateway has checked ranges and filled in defaults before it comes here.

use std::time::Duration;

use serde::Deserialize;

/// The whole configuration. Not printable: it holds a password.
#[derive(PartialEq, Deserialize)]
pub struct Config {
    /// How the device is reached.
    pub connection: Connection,
}

/// How the device is reached. Not printable: it holds a password.
#[derive(PartialEq, Deserialize)]
pub struct Connection {
    /// Where its web page is.
    pub url: String,
    /// The user of its web page.
    pub user: String,
    /// The password of its web page.
    pub password: Option<String>,
    /// Milliseconds from poll to poll.
    pub poll_ms: u64,
    /// Milliseconds to wait for an answer.
    pub timeout_ms: f64,
}

impl Connection {
    /// The time from poll to poll.
    pub fn poll(&self) -> Duration {
        Duration::from_millis(self.poll_ms)
    }
}
