//! What the cloud knows of one device: properties, telemetry, alerts, logs.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json, json};

use super::ring::Ring;
use super::rules::{Dropped, Line, Telemetry};
use super::topic::Address;
use crate::broker::Link;
use crate::time::Time;
use sandgate_manifest::Manifest;

/// Maximum samples of a device; their bytes are bounded for all devices together.
pub const SAMPLES: usize = 10_000;
/// Maximum log lines of a device, and their bytes.
const LINES: usize = 1000;
const LINE_BYTES: usize = 64 << 10;
/// About how many bytes of properties of a device are kept.
const PROPERTY_BYTES: usize = 64 << 10;
/// Maximum different drops of a device that are told on one connection.
const TOLD: usize = 100;

/// One device.
#[derive(Debug)]
pub struct Channel {
    /// The type that its parent announced; none for a parent.
    pub kind: Option<String>,
    /// Its parent.
    pub parent: Option<Address>,
    /// When it was missing in an announcement.
    pub gone: Option<Time>,
    /// The connection that it was heard on, while that lives.
    pub link: Option<Link>,
    /// When it was heard.
    pub seen: Option<Time>,
    /// Its properties; each message changes those that it holds.
    pub properties: Map<String, Json>,
    /// Its alerts.
    pub alerts: Alerts,
    /// Its telemetry.
    pub samples: Ring<Sample>,
    /// Its log.
    pub logs: Ring<LogLine>,
    /// What was dropped: messages and attributes.
    pub dropped: u64,
    /// What was said about it on this connection; each thing is said once.
    told: HashSet<(Option<String>, String)>,
}

/// What is known of a device's alerts.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Alerts {
    /// No message has told any.
    #[default]
    Untold,
    /// `null`: the device cannot tell.
    Unknown,
    /// `[]` or more: exactly these are active.
    Active(Vec<Alert>),
}

/// An active alert, as the cloud shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Alert {
    /// Its id.
    pub id: String,
    /// From the blueprint; undeclared ones count as errors.
    pub severity: &'static str,
    /// From the blueprint; undeclared ones are called by their id.
    pub display_name: String,
    /// From `alert_details`.
    #[serde(skip_serializing_if = "Json::is_null")]
    pub details: Json,
}

/// One message of telemetry, as it was kept.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Seconds since the epoch.
    pub timestamp: u64,
    /// When it came, in milliseconds since the epoch.
    pub received: Time,
    /// The JSON object of its attributes, with `alerts` and `alert_details`.
    pub body: Box<str>,
}

/// One line of a device's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Seconds since the epoch.
    pub timestamp: u64,
    /// When it came, in milliseconds since the epoch.
    pub received: Time,
    /// `debug`, `info`, `warning` or `error`.
    pub severity: String,
    /// The text.
    pub message: String,
    /// Whether the device wants it kept.
    pub persist: bool,
}

impl Channel {
    /// Makes a device of which nothing is known yet.
    pub fn new(parent: Option<Address>, kind: Option<String>) -> Channel {
        Channel {
            kind,
            parent,
            gone: None,
            link: None,
            seen: None,
            properties: Map::new(),
            alerts: Alerts::Untold,
            // The bytes are bounded over all devices.
            samples: Ring::new(SAMPLES, usize::MAX),
            logs: Ring::new(LINES, LINE_BYTES),
            dropped: 0,
            told: HashSet::new(),
        }
    }

    /// Notes that it is there on a connection.
    pub fn appear(&mut self, link: Link) {
        if self.link != Some(link) {
            self.told.clear();
        }
        self.link = Some(link);
    }

    /// Counts what was dropped and returns what is worth saying: a sample that
    /// comes each second would fill the log with the same words.
    pub fn count<'a>(&mut self, dropped: &'a [Dropped]) -> Vec<&'a Dropped> {
        self.dropped += dropped.len() as u64;
        // What was found is another thing each time.
        let expected = |one: &Dropped| one.problem.split(", found ").next().unwrap_or_default().to_owned();
        let mut is_news =
            |one: &&Dropped| self.told.len() < TOLD && self.told.insert((one.attribute.clone(), expected(one)));
        dropped.iter().filter(|one| is_news(one)).collect()
    }

    /// `online`, `offline` or `gone`. A guess: how the cloud decides is not public.
    pub fn state(&self) -> &'static str {
        match (self.gone, self.link) {
            (Some(_), _) => "gone",
            (None, Some(_)) => "online",
            (None, None) => "offline",
        }
    }

    /// Changes the properties that are given; drops what there is no room for.
    pub fn set_properties(&mut self, properties: Map<String, Json>) -> Vec<Dropped> {
        let size = |(name, value): (&String, &Json)| name.len() + value.to_string().len() + 32;
        let mut total: usize = self.properties.iter().map(size).sum();
        let mut dropped = Vec::new();
        for (name, value) in properties {
            let before = self.properties.get(&name).map_or(0, |old| size((&name, old)));
            let after = total - before + size((&name, &value));
            if after > PROPERTY_BYTES {
                let problem = format!("expected at most {PROPERTY_BYTES} bytes of properties of one device");
                dropped.push(Dropped { attribute: Some(name), problem });
            } else {
                total = after;
                self.properties.insert(name, value);
            }
        }
        dropped
    }

    /// Keeps a sample; returns by how many bytes the history has grown, and
    /// whether the alerts are other ones.
    pub fn add_sample(&mut self, manifest: Option<&Manifest>, telemetry: Telemetry, now: Time) -> (isize, bool) {
        let Telemetry { timestamp, attributes: mut body, alerts, details } = telemetry;
        let mut other = false;
        if let Some(told) = alerts {
            body.insert("alerts".into(), json!(told));
            let alerts = match told {
                None => Alerts::Unknown,
                Some(ids) => Alerts::Active(ids.iter().map(|id| alert(manifest, id, details.get(id))).collect()),
            };
            other = alerts != self.alerts;
            self.alerts = alerts;
        }
        if !details.is_empty() {
            body.insert("alert_details".into(), Json::Object(details));
        }
        let body: Box<str> = Json::Object(body).to_string().into();
        let before = self.samples.bytes();
        let size = body.len() + size_of::<Sample>();
        self.samples.push(Sample { timestamp, received: now, body }, size);
        let grown = self.samples.bytes().cast_signed() - before.cast_signed();
        (grown, other)
    }

    /// Keeps a log line.
    pub fn add_line(&mut self, line: Line, now: Time) {
        let Line { timestamp, severity, message, persist } = line;
        let size = message.len() + size_of::<LogLine>();
        self.logs.push(LogLine { timestamp, received: now, severity, message, persist }, size);
    }
}

impl Sample {
    /// The attributes.
    pub fn attributes(&self) -> Map<String, Json> {
        // It was written from a map.
        serde_json::from_str(&self.body).unwrap_or_default()
    }

    /// The sample as one JSON object: `timestamp`, `received`, attributes.
    pub fn json(&self) -> Json {
        let mut json = Map::new();
        json.insert("timestamp".into(), self.timestamp.into());
        json.insert("received".into(), self.received.into());
        json.extend(self.attributes());
        Json::Object(json)
    }
}

impl Alerts {
    /// The alerts for a line.
    pub fn words(&self) -> String {
        let word = |alert: &Alert| {
            let Alert { id, severity, display_name, details } = alert;
            let details = match details.get("errmsg").unwrap_or(details) {
                Json::Null => String::new(),
                Json::String(text) => format!(", {text}"),
                other => format!(", {other}"),
            };
            format!("{id} ({severity}: {display_name}{details})")
        };
        match self {
            Alerts::Untold => "never told".into(),
            Alerts::Unknown => "unknown".into(),
            Alerts::Active(active) if active.is_empty() => "none".into(),
            Alerts::Active(active) => active.iter().map(word).collect::<Vec<_>>().join(", "),
        }
    }
}

fn alert(manifest: Option<&Manifest>, id: &str, details: Option<&Json>) -> Alert {
    use sandgate_manifest::Severity;
    let declared = manifest.and_then(|manifest| manifest.blueprint.alerts.get(id));
    let severity = match declared.map(|declared| declared.severity) {
        Some(Severity::Info) => "info",
        Some(Severity::Warning) => "warning",
        Some(Severity::Error) | None => "error",
    };
    let display_name = declared.map_or_else(|| id.to_owned(), |declared| declared.display_name.clone());
    Alert { id: id.to_owned(), severity, display_name, details: details.cloned().unwrap_or_default() }
}
