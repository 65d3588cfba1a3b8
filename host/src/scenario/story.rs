//! What happens in a scenario: for expectations since the ones before, for
//! people as a timeline.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustc_hash::FxHashMap;
use tokio::time::Instant;

use super::Seen;
use crate::clock::hours;
use crate::cloud::Encode;
use crate::manifest::value::json_of;
use crate::message::{Alerts, Attribute, Publication, Severity, Uplink, Value};
use crate::text;

/// Lines of the timeline that are kept.
const TIMELINE: usize = 40;
/// What is kept of each kind for expectations.
pub(super) const MOST: usize = 10_000;
/// Longer lines of the timeline are cut.
const LINE: usize = 240;

/// See the module documentation.
pub(super) struct Story {
    begin: Instant,
    inner: Mutex<Inner>,
}

#[derive(Default)]
pub(super) struct Inner {
    pub window: Window,
    pub alerts: Alerts,
    pub seen: Seen,
    timeline: VecDeque<(Duration, String)>,
    /// The last values: the timeline shows what changes.
    pub last: FxHashMap<String, Value>,
}

/// What has happened since the expectations before.
#[derive(Debug, Default)]
pub(super) struct Window {
    pub samples: u64,
    pub telemetry: FxHashMap<String, Value>,
    pub properties: FxHashMap<String, Value>,
    /// Level and text.
    pub logs: Vec<(&'static str, String)>,
    pub requests: Vec<String>,
    pub writes: Vec<String>,
    /// Whether there was more than is kept.
    pub has_lost: bool,
}

impl Story {
    pub(super) fn new() -> Story {
        Story { begin: Instant::now(), inner: Mutex::default() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long it has been going on.
    pub(super) fn time(&self) -> Duration {
        self.begin.elapsed()
    }

    /// Adds a line to the timeline.
    pub(super) fn tell(&self, line: impl FnOnce(&mut String)) {
        let time = self.time();
        self.lock().tell(time, line);
    }

    /// A device was asked for something; what it was written is told apart.
    pub(super) fn request(&self, request: String, is_write: bool) {
        let time = self.time();
        let mut inner = self.lock();
        inner.tell(time, |line| line.push_str(&request));
        if is_write {
            let write = request.clone();
            inner.window.push(|window| &mut window.writes, write);
        }
        inner.window.push(|window| &mut window.requests, request);
    }

    /// The timeline for people, newest last.
    pub(super) fn timeline(&self) -> Vec<String> {
        let lines = self.lock();
        lines.timeline.iter().map(|(time, line)| format!("{}  {}", hours(*time), text::shortened(line, LINE))).collect()
    }
}

impl Window {
    /// Adds to one of the lists, as long as there is room.
    fn push<T>(&mut self, list: impl FnOnce(&mut Window) -> &mut Vec<T>, item: T) {
        let list = list(self);
        match list.len() < MOST {
            true => list.push(item),
            false => self.has_lost = true,
        }
    }
}

impl Inner {
    fn tell(&mut self, time: Duration, line: impl FnOnce(&mut String)) {
        // Lines are used again: a long scenario writes a great many.
        let mut text = match self.timeline.len() >= TIMELINE {
            true => self.timeline.pop_front().map(|(_, text)| text).unwrap_or_default(),
            false => String::new(),
        };
        text.clear();
        line(&mut text);
        self.timeline.push_back((time, text));
    }

    fn sample(&mut self, attributes: &[Attribute], alerts: &Alerts) {
        if !attributes.is_empty() {
            self.window.samples += 1;
        }
        for Attribute { name, value } in attributes {
            if !self.seen.telemetry.contains(name) {
                self.seen.telemetry.insert(name.clone());
            }
            if let Value::TextList(ids) = value {
                self.seen.alerts.extend(ids.iter().cloned());
            }
            keep(&mut self.window.telemetry, name, value);
        }
        if self.alerts != *alerts {
            self.alerts = alerts.clone();
            if let Alerts::Active(active) = alerts {
                self.seen.alerts.extend(active.iter().map(|(id, _)| id.clone()));
            }
        }
    }
}

fn keep(values: &mut FxHashMap<String, Value>, name: &str, value: &Value) {
    match values.get_mut(name) {
        Some(kept) => kept.clone_from(value),
        None => drop(values.insert(name.to_owned(), value.clone())),
    }
}

impl Encode for Story {
    /// Nothing is sent anywhere.
    fn encode(&self, uplink: &Uplink<'_>) -> Vec<Publication> {
        let time = self.time();
        let mut inner = self.lock();
        match uplink {
            Uplink::Telemetry { attributes, alerts, .. } => {
                let mut last = std::mem::take(&mut inner.last);
                let new_alerts = (inner.alerts != **alerts).then_some(*alerts);
                inner.tell(time, |line| write_sample(line, attributes, new_alerts, &mut last));
                inner.last = last;
                inner.sample(attributes, alerts);
            }
            Uplink::Properties { attributes, .. } => {
                inner.tell(time, |line| {
                    line.push_str("properties");
                    write_attributes(line, attributes);
                });
                for Attribute { name, value } in *attributes {
                    inner.seen.properties.insert(name.clone());
                    keep(&mut inner.window.properties, name, value);
                }
            }
            Uplink::Log { severity, text, .. } => {
                let level = Severity::name(*severity);
                inner.tell(time, |line| line.push_str(&format!("log {level}: {text}")));
                inner.window.push(|window| &mut window.logs, (level, (*text).to_owned()));
            }
            Uplink::CommandLog { text, .. } => inner.tell(time, |line| line.push_str(&format!("command log: {text}"))),
            Uplink::CommandResult { .. } | Uplink::Applied { .. } => {}
        }
        Vec::new()
    }
}

fn write_attributes(line: &mut String, attributes: &[Attribute]) {
    for Attribute { name, value } in attributes {
        // The rest would be cut.
        if line.len() > LINE {
            return;
        }
        let _ = match value {
            Value::Float(number) => write!(line, " {name}={number}"),
            Value::Integer(number) => write!(line, " {name}={number}"),
            other => write!(line, " {name}={}", json_of(other)),
        };
    }
}

/// A sample, as far as it is another one than before.
fn write_sample(
    line: &mut String,
    attributes: &[Attribute],
    alerts: Option<&Alerts>,
    last: &mut FxHashMap<String, Value>,
) {
    line.push_str("sample");
    match alerts {
        None | Some(Alerts::None) => {}
        Some(Alerts::Unknown) => line.push_str(" alerts unknown;"),
        Some(Alerts::Active(active)) => {
            let ids: Vec<&str> = active.iter().map(|(id, _)| id.as_str()).collect();
            line.push_str(&format!(" alerts [{}];", ids.join(", ")));
        }
    }
    let before = line.len();
    for attribute in attributes {
        if last.get(&attribute.name) != Some(&attribute.value) {
            write_attributes(line, std::slice::from_ref(attribute));
            keep(last, &attribute.name, &attribute.value);
        }
    }
    if line.len() == before {
        line.push_str(" as before");
    }
}
