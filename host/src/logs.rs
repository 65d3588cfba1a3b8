//! Where log lines go: standard error, and a tap for `sandgate logs` and the
//! live view.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt};

use crate::message::{Time, now};

/// So many lines are kept for who comes late.
const KEPT: usize = 1000;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Milliseconds since the epoch.
    pub time: Time,
    /// `debug`, `info`, `warn` or `error`.
    pub level: String,
    /// The device it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The driver that wrote it: name and version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// The text, with other fields in front.
    pub text: String,
}

/// Keeps the newest lines and tells new ones to whoever listens.
#[derive(Clone)]
pub struct LogTap {
    inner: Arc<Inner>,
}

struct Inner {
    newest: Mutex<VecDeque<LogLine>>,
    listeners: broadcast::Sender<LogLine>,
}

impl Default for LogTap {
    fn default() -> Self {
        let inner = Inner { newest: Mutex::default(), listeners: broadcast::Sender::new(KEPT) };
        LogTap { inner: Arc::new(inner) }
    }
}

impl LogTap {
    /// The newest lines, oldest first, and those to come.
    pub fn listen(&self) -> (Vec<LogLine>, broadcast::Receiver<LogLine>) {
        let newest = self.inner.newest.lock().unwrap_or_else(PoisonError::into_inner);
        (newest.iter().cloned().collect(), self.inner.listeners.subscribe())
    }

    fn push(&self, line: LogLine) {
        let mut newest = self.inner.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if newest.len() == KEPT {
            newest.pop_front();
        }
        newest.push_back(line.clone());
        // Nobody listening is no error.
        let _ = self.inner.listeners.send(line);
    }
}

/// Libraries that would log secrets: the MQTT client's lines hold topics, and
/// those hold the tokens of endpoints. Whatever is asked for, their warnings are the most.
const SECRETIVE: [&str; 2] = ["rumqttc", "reqwest"];

/// Starts logging. The level comes from `SANDGATE_LOG`, by default `info` for
/// this program and `warn` for its libraries
/// (not the demo's broker, which calls every end of a connection an error).
pub fn start(tap: &LogTap, json: bool, to_terminal: bool) {
    let filter =
        EnvFilter::try_from_env("SANDGATE_LOG").unwrap_or_else(|_| EnvFilter::new("warn,sandgate=info,rumqttd=off"));
    let discretion = filter_fn(|metadata| {
        let library = metadata.target().split("::").next().unwrap_or_default();
        *metadata.level() <= Level::WARN || !SECRETIVE.contains(&library)
    });
    let ansi = std::io::stderr().is_terminal();
    let lines = match (to_terminal, json) {
        (false, _) => None,
        (true, true) => Some(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr).boxed()),
        (true, false) => Some(fmt::layer().with_target(false).with_ansi(ansi).with_writer(std::io::stderr).boxed()),
    };
    // A second start, in a test, keeps the first.
    let _ = tracing_subscriber::registry().with(filter).with(discretion).with(lines).with(tap.clone()).try_init();
}

impl<S: Subscriber> Layer<S> for LogTap {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warn",
            Level::INFO => "info",
            _ => "debug",
        };
        let mut fields = Fields::default();
        event.record(&mut fields);
        let Fields { device, driver, others, message } = fields;
        self.push(LogLine { time: now(), level: level.to_owned(), device, driver, text: others + &message });
    }
}

/// The fields of an event, sorted.
#[derive(Default)]
struct Fields {
    device: Option<String>,
    driver: Option<String>,
    others: String,
    message: String,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "device" => self.device = Some(value.to_owned()),
            "driver" => self.driver = Some(value.to_owned()),
            // Writing to a string cannot fail.
            name => drop(write!(self.others, "{name} {value}: ")),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.others, "{name} {value:?}: "),
        };
    }
}

impl LogLine {
    /// The line for people.
    pub fn display(&self) -> String {
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(self.time);
        let who = match (&self.device, &self.driver) {
            (Some(device), Some(driver)) => format!("{device} [{driver}]: "),
            (Some(device), None) => format!("{device}: "),
            _ => String::new(),
        };
        format!("{} {:<5} {who}{}", humantime::format_rfc3339_seconds(time), self.level, self.text)
    }
}
