//! Where log lines go: standard error, and a tap for `sandgate logs` and the
//! live view.
//!
//! Each line is made once: without secrets, escaped, cut. Nobody waits for who
//! reads: a line that finds no room is dropped, counted and told of.

use std::collections::VecDeque;
use std::io::{IsTerminal, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};
use tokio::sync::broadcast;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::clock::{Time, now};
use crate::secrets::Secrets;
use crate::text;

/// Lines that are kept for a listener who comes late.
const KEPT: usize = 1000;
/// Lines that may wait for who reads standard error.
const WAITING: usize = 4096;
/// Bytes of a line; what writes long texts cuts them before.
const MAX_LINE: usize = 8 << 10;
/// How often dropped lines are told of.
const TELL_EVERY: Duration = Duration::from_secs(2);

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
#[derive(Clone, Default)]
pub struct LogTap {
    /// What no line may hold.
    pub secrets: Secrets,
    inner: Arc<Inner>,
}

struct Inner {
    newest: Mutex<VecDeque<LogLine>>,
    listeners: broadcast::Sender<LogLine>,
}

impl Default for Inner {
    fn default() -> Self {
        Inner { newest: Mutex::default(), listeners: broadcast::Sender::new(KEPT) }
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

/// How lines are written to standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A line of text.
    Text,
    /// A JSON object.
    Json,
    /// Not at all.
    None,
}

/// Logging, for as long as this lives; its end writes what still waits, if
/// somebody reads it.
pub struct Logging {
    counter: Option<ErrorCounter>,
    _guard: Option<WorkerGuard>,
}

/// Libraries that would log secrets: the MQTT client's lines hold topics, and
/// those hold the tokens of endpoints. Whatever is asked for, their warnings are the most.
const SECRETIVE: [&str; 2] = ["rumqttc", "reqwest"];

/// Starts logging. The level comes from `SANDGATE_LOG`, by default `info` for
/// this program and `warn` for its libraries
/// (not the demo's broker, which calls every end of a connection an error).
pub fn start(tap: &LogTap, format: Format) -> Logging {
    let wish = std::env::var("SANDGATE_LOG").unwrap_or_default();
    let (filter, problem) = filter(&wish);
    let discretion = filter_fn(|metadata| {
        let library = metadata.target().split("::").next().unwrap_or_default();
        *metadata.level() <= Level::WARN || !SECRETIVE.contains(&library)
    });
    let (writer, guard) = match format {
        Format::None => (None, None),
        Format::Text | Format::Json => {
            let builder = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(WAITING);
            let (writer, guard) = builder.finish(std::io::stderr());
            (Some(writer), Some(guard))
        }
    };
    let counter = writer.as_ref().map(NonBlocking::error_counter);
    let style = if std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        Style::Colours
    } else {
        Style::Plain
    };
    let lines = Lines { tap: tap.clone(), writer, format, style };
    // A second start, in a test, keeps the first.
    let _ = tracing_subscriber::registry().with(filter).with(discretion).with(lines).try_init();
    if let Some(problem) = problem {
        tracing::warn!("{problem}");
    }
    Logging { counter, _guard: guard }
}

impl Logging {
    /// Says again and again how many lines found no room.
    pub async fn tell_drops(&self) {
        let mut told = 0;
        loop {
            tokio::time::sleep(TELL_EVERY).await;
            let dropped = self.counter.as_ref().map_or(0, ErrorCounter::dropped_lines);
            if dropped > told {
                tracing::warn!("{} lines of the log were dropped: whoever reads it is too slow", dropped - told);
                told = dropped;
            }
        }
    }
}

/// The filter that a wish means, and what is wrong with the wish.
fn filter(wish: &str) -> (EnvFilter, Option<String>) {
    let of = |level: &str| EnvFilter::new(format!("warn,sandgate={level}"));
    let wish = wish.trim();
    if wish.is_empty() {
        return (of("info"), None);
    }
    if wish.parse::<LevelFilter>().is_ok() {
        return (of(wish), None);
    }
    // A word that is no level would be taken for a module, and silence all others.
    let is_plain = |part: &str| part.contains('=') || part.trim().parse::<LevelFilter>().is_ok();
    match EnvFilter::try_new(wish) {
        Ok(filter) if wish.split(',').all(is_plain) => (filter, None),
        _ => {
            let wish = text::visible(text::cut(wish, 100)).into_owned();
            let problem = format!(
                "SANDGATE_LOG: expected error, warn, info, debug or trace, or such as \
                 \"warn,sandgate::session=debug\", found {wish:?}; using info"
            );
            (of("info"), Some(problem))
        }
    }
}

/// Whether levels are coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Plain,
    Colours,
}

/// Makes lines of events.
struct Lines {
    tap: LogTap,
    writer: Option<NonBlocking>,
    format: Format,
    style: Style,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields { secrets: &self.tap.secrets, message: String::new(), others: Vec::new() };
        event.record(&mut fields);
        let Fields { message, others, .. } = fields;
        let (level, time) = (*event.metadata().level(), now());
        if let Some(mut writer) = self.writer.clone() {
            let line = match self.format {
                Format::Json => json_line(time, level, event.metadata().target(), &message, &others),
                Format::Text | Format::None => text_line(time, level, self.style, &message, &others),
            };
            // One that finds no room is counted.
            let _ = writer.write_all(line.as_bytes());
        }
        self.tap.push(LogLine::new(time, level, message, others));
    }
}

/// The fields of an event: escaped, cut, without secrets.
struct Fields<'a> {
    secrets: &'a Secrets,
    message: String,
    others: Vec<(&'static str, String)>,
}

impl Fields<'_> {
    fn keep(&mut self, field: &Field, value: &str) {
        let value = text::visible(&self.secrets.hide(text::cut(value, MAX_LINE))).into_owned();
        match field.name() {
            "message" => self.message = value,
            name => self.others.push((name, value)),
        }
    }
}

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.keep(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.keep(field, &format!("{value:?}"));
    }
}

fn text_line(time: Time, level: Level, style: Style, message: &str, fields: &[(&str, String)]) -> String {
    let (before, after) = match (style, level) {
        (Style::Plain, _) => ("", ""),
        (Style::Colours, Level::ERROR) => ("\x1b[31m", "\x1b[0m"),
        (Style::Colours, Level::WARN) => ("\x1b[33m", "\x1b[0m"),
        (Style::Colours, Level::INFO) => ("\x1b[32m", "\x1b[0m"),
        (Style::Colours, _) => ("\x1b[34m", "\x1b[0m"),
    };
    let fields: String =
        fields.iter().map(|(name, value)| format!(" {name}=\"{}\"", value.replace('"', "'"))).collect();
    format!("{} {before}{level:>5}{after} {message}{fields}\n", rfc3339(time))
}

fn json_line(time: Time, level: Level, target: &str, message: &str, fields: &[(&str, String)]) -> String {
    let mut line = Map::new();
    line.insert("timestamp".into(), rfc3339(time).into());
    line.insert("level".into(), level.as_str().into());
    line.insert("message".into(), message.into());
    line.extend(fields.iter().map(|(name, value)| ((*name).to_owned(), value.as_str().into())));
    line.insert("target".into(), target.into());
    format!("{}\n", Json::Object(line))
}

fn rfc3339(time: Time) -> String {
    humantime::format_rfc3339_millis(std::time::UNIX_EPOCH + Duration::from_millis(time)).to_string()
}

impl LogLine {
    fn new(time: Time, level: Level, message: String, fields: Vec<(&'static str, String)>) -> Self {
        let level = match level {
            Level::ERROR => "error",
            Level::WARN => "warn",
            Level::INFO => "info",
            _ => "debug",
        };
        let (mut device, mut driver, mut text) = (None, None, String::new());
        for (name, value) in fields {
            match name {
                "device" => device = Some(value),
                "driver" => driver = Some(value),
                name => text.push_str(&format!("{name} {value}: ")),
            }
        }
        LogLine { time, level: level.to_owned(), device, driver, text: text + &message }
    }

    /// The line for people.
    pub fn display(&self) -> String {
        let time = std::time::UNIX_EPOCH + Duration::from_millis(self.time);
        let who = match (&self.device, &self.driver) {
            (Some(device), Some(driver)) => format!("{device} [{driver}]: "),
            (Some(device), None) => format!("{device}: "),
            _ => String::new(),
        };
        let line = format!("{} {:<5} {who}{}", humantime::format_rfc3339_seconds(time), self.level, self.text);
        text::visible(&line).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_taken_and_a_word_that_is_none_silences_nothing() {
        for (wish, expected, is_wrong) in [
            ("", "warn,sandgate=info", false),
            ("debug", "warn,sandgate=debug", false),
            ("WARN", "warn,sandgate=warn", false),
            ("sandgate::session=debug", "sandgate::session=debug", false),
            ("warn,sandgate=trace", "warn,sandgate=trace", false),
            ("verbose", "warn,sandgate=info", true),
            ("warn,loud", "warn,sandgate=info", true),
        ] {
            let (filter, problem) = filter(wish);
            let shown = filter.to_string();
            assert!(expected.split(',').all(|part| shown.contains(&part.to_lowercase())), "{wish}: {shown}");
            assert_eq!(problem.is_some(), is_wrong, "{wish}");
        }
    }

    #[test]
    fn a_line_is_escaped_cut_and_without_secrets_in_every_form() {
        let tap = LogTap::default();
        tap.secrets.set("config", ["hunter2secret".to_owned()]);
        let lines = Lines { tap: tap.clone(), writer: None, format: Format::None, style: Style::Plain };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), || {
            tracing::warn!(
                device = "a\x1b[2J",
                session = "main",
                "token hunter2secret\nforged {}",
                "x".repeat(MAX_LINE)
            );
        });
        let line = tap.listen().0.remove(0);
        assert_eq!(line.device.as_deref(), Some("a\\u001b[2J"));
        assert!(line.text.starts_with("session main: token ***\\nforged x") && line.text.len() < MAX_LINE + 100);
        let fields = [("device", "a\\u001b".to_owned())];
        let text = text_line(0, Level::WARN, Style::Plain, "hello", &fields);
        assert_eq!(text, "1970-01-01T00:00:00.000Z  WARN hello device=\"a\\u001b\"\n");
        let json: Json = serde_json::from_str(&json_line(0, Level::WARN, "t", "hello", &fields)).unwrap();
        assert_eq!(
            (&json["level"], &json["message"], &json["device"]),
            (&"WARN".into(), &"hello".into(), &"a\\u001b".into())
        );
    }
}
