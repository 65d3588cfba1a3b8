//! The imports `logging` and `command-log`, and standard output and error:
//! all end in the device's log.

use bytes::Bytes;
use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::time::Instant;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use super::Capabilities;
use super::contract::sandgate::driver::logging;
use super::limits::RateLimiter;
use super::state::State;
use super::trap::LastWords;
use crate::config::{LogLevel, Rate};
use crate::message::{Severity, Uplink, now};
use crate::router::Outlet;
use crate::statistics::Statistics;

/// What Rust says after each panic; a driver has no environment, and the host
/// shows the trace.
const BACKTRACE: &str = "note: run with `RUST_BACKTRACE=1`";
/// Longer lines are cut.
const MAX_LINE: usize = 4 << 10;

/// For who is not held to a rate.
const ENDLESS: Rate = Rate { per_second: 1e9, burst: 1e9 };

/// The log of one device: to the host's log, and to the cloud by level.
pub struct DeviceLog {
    outlet: Arc<Outlet>,
    driver: String,
    cloud: LogLevel,
    limiter: Mutex<RateLimiter>,
    statistics: Arc<Statistics>,
}

impl DeviceLog {
    /// A log for one life of a driver, named in every line.
    pub fn new(outlet: Arc<Outlet>, driver: String, cloud: LogLevel, rate: Rate, statistics: Arc<Statistics>) -> Self {
        let limiter = Mutex::new(RateLimiter::new(rate, Instant::now()));
        DeviceLog { outlet, driver, cloud, limiter, statistics }
    }

    /// A log that reaches no cloud.
    pub(super) fn silent(capabilities: &Capabilities, driver: String) -> Self {
        let (outlet, statistics) = (Arc::clone(&capabilities.outlet), Arc::clone(&capabilities.statistics));
        DeviceLog::new(outlet, driver, LogLevel::Off, ENDLESS, statistics)
    }

    /// Writes a line of the driver; over the rate it is dropped and counted.
    pub fn write(&self, severity: Severity, text: &str) {
        if !self.allow() {
            return;
        }
        self.write_unlimited(severity, text, false);
    }

    /// The same for a line that the cloud should keep.
    fn write_persistent(&self, severity: Severity, text: &str) {
        if self.allow() {
            self.write_unlimited(severity, text, true);
        }
    }

    /// Writes a line of the host about the device. The cloud keeps it.
    pub fn note(&self, severity: Severity, text: &str) {
        self.write_unlimited(severity, text, true);
    }

    fn allow(&self) -> bool {
        let allowed = self.limiter.lock().unwrap_or_else(PoisonError::into_inner).allow(Instant::now());
        if !allowed && self.statistics.log_line_dropped() {
            self.write_unlimited(Severity::Warning, "logs faster than its limit; further lines are dropped", false);
        }
        allowed
    }

    fn write_unlimited(&self, severity: Severity, text: &str, persist: bool) {
        let text = plain(cut(text));
        let text = text.as_ref();
        let device = self.outlet.device.as_str();
        let driver = self.driver.as_str();
        match severity {
            Severity::Debug => tracing::debug!(device, driver, "{text}"),
            Severity::Info => tracing::info!(device, driver, "{text}"),
            Severity::Warning => tracing::warn!(device, driver, "{text}"),
            Severity::Error => tracing::error!(device, driver, "{text}"),
        }
        let level = match severity {
            Severity::Debug => LogLevel::Debug,
            Severity::Info => LogLevel::Info,
            Severity::Warning => LogLevel::Warning,
            Severity::Error => LogLevel::Error,
        };
        if level >= self.cloud {
            let time = now();
            self.outlet.send(&Uplink::Log { time, severity, text, persist });
        }
    }
}

fn severity(level: logging::Level) -> Severity {
    match level {
        logging::Level::Debug => Severity::Debug,
        logging::Level::Info => Severity::Info,
        logging::Level::Warning => Severity::Warning,
        logging::Level::Error => Severity::Error,
    }
}

/// A text without control characters: they would forge lines and move cursors
/// on the terminal of whoever reads the log.
fn plain(text: &str) -> Cow<'_, str> {
    if text.contains(char::is_control) { text.replace(char::is_control, " ").into() } else { text.into() }
}

/// The first bytes of a text, at a character's end.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(MAX_LINE);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

impl State {
    pub(super) fn write_log(&mut self, level: logging::Level, text: String) {
        self.log.write(severity(level), &text);
    }

    pub(super) fn write_persistent_log(&mut self, level: logging::Level, text: String) {
        self.log.write_persistent(severity(level), &text);
    }

    pub(super) fn write_command_log(&mut self, text: String) {
        let Some((command, Some(session))) = &self.command else {
            return self.log.write(Severity::Info, &text);
        };
        if self.log.allow() {
            self.outlet.answer(Some(session), &Uplink::CommandLog { command, text: cut(&text) });
        }
    }
}

/// Standard output or error of a guest, line by line.
#[derive(Clone)]
pub struct Output {
    log: Arc<DeviceLog>,
    severity: Severity,
    partial: Arc<Mutex<Vec<u8>>>,
    /// Where lines are noted as well.
    words: Option<LastWords>,
}

impl Output {
    /// An output whose lines have this severity.
    pub(super) fn new(log: Arc<DeviceLog>, severity: Severity, words: Option<LastWords>) -> Self {
        Output { log, severity, partial: Arc::default(), words }
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Output {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    /// Only WASI 0.3 asks for this one, which the engine refuses.
    fn async_stream(&self) -> Box<dyn tokio::io::AsyncWrite + Send + Sync> {
        Box::new(tokio::io::empty())
    }
}

impl OutputStream for Output {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        let mut partial = self.partial.lock().unwrap_or_else(PoisonError::into_inner);
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            partial.extend_from_slice(part);
            if part.ends_with(b"\n") || partial.len() >= MAX_LINE {
                let line = String::from_utf8_lossy(&partial).trim_end().to_owned();
                partial.clear();
                if line.is_empty() || line.starts_with(BACKTRACE) {
                    continue;
                }
                if let Some(words) = &self.words {
                    words.note(&line);
                }
                self.log.write(self.severity, &line);
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(MAX_LINE)
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_cut_at_a_character() {
        let text = "ä".repeat(MAX_LINE);
        assert_eq!(cut(&text).len(), MAX_LINE);
        let text = format!("a{text}");
        assert_eq!(cut(&text).len(), MAX_LINE - 1);
        assert_eq!(cut("short"), "short");
    }
}
