//! What travels between devices and clouds, before encoding: plain data, no IO.
//!
//! Values and attributes are the contract's own types, so that nothing is
//! copied on the way from a guest to its publication.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, Value as Json};

use crate::clock::Stamp;
pub use crate::clock::{Time, now};
pub use crate::contract::{Attribute, Rejection, Value};

/// The id of a device, unique in the gateway.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(Arc<str>);

impl DeviceId {
    /// Wraps an id that the configuration has checked.
    pub fn new(id: &str) -> Self {
        DeviceId(id.into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a text can be a device id: it becomes part of MQTT topics, and
/// `--` joins parent and child in an Enapter channel id.
pub fn is_valid_device_id(id: &str) -> bool {
    (1..=64).contains(&id.len())
        && id.starts_with(|c: char| c.is_ascii_alphabetic())
        && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// What is known about the alerts of a device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Alerts {
    /// The driver has no alerts at all.
    #[default]
    None,
    /// Nothing can be said.
    Unknown,
    /// Exactly these are active: id and details.
    Active(Vec<(String, Option<String>)>),
}

/// How much a log line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)] // the names say it all
pub enum Severity {
    Debug,
    Info,
    Warning,
    Error,
}

impl Severity {
    /// The name on the wire and in logs.
    pub fn name(self) -> &'static str {
        match self {
            Severity::Debug => "debug",
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

/// A message on its way to a cloud.
#[derive(Debug)]
pub enum Uplink<'a> {
    /// Measurements, with the current alerts.
    Telemetry {
        /// When they were taken.
        time: Time,
        /// Whether this machine's clock says so, and not the driver.
        is_own: bool,
        /// The values, checked against the manifest.
        attributes: &'a [Attribute],
        /// All active alerts.
        alerts: &'a Alerts,
    },
    /// Facts that change rarely.
    Properties {
        /// When they were read.
        time: Time,
        /// The values, checked against the manifest.
        attributes: &'a [Attribute],
    },
    /// A log line.
    Log {
        /// When it was written.
        time: Time,
        /// How much it matters.
        severity: Severity,
        /// The text.
        text: &'a str,
        /// Whether the cloud should keep it.
        persist: bool,
    },
    /// Progress of a command.
    CommandLog {
        /// The command's id.
        command: &'a str,
        /// The text.
        text: &'a str,
    },
    /// The end of a command.
    CommandResult {
        /// The command's id.
        command: &'a str,
        /// What it returned.
        result: &'a CommandResult,
    },
    /// What became of something that the cloud offered.
    Applied {
        /// What it was.
        offer: &'a Offer,
        /// An error is the reason why it was refused.
        result: Result<(), &'a str>,
    },
}

/// Something that a cloud wants a device to take over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// What it is.
    pub kind: OfferKind,
    /// Its id in the cloud; of software, the version.
    pub id: String,
}

/// What a cloud can offer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OfferKind {
    /// A configuration: the default one, or a named one.
    Configuration(Option<String>),
    /// Software.
    Software,
}

/// How a command ended.
pub type CommandResult = Result<Vec<Attribute>, CommandError>;

/// Why a command was not carried out. Each holds a text for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandError {
    /// An argument is missing, or is none that the manifest allows.
    InvalidArgument(String),
    /// There is no such command.
    Unsupported(String),
    /// Not now.
    Busy(String),
    /// The device behind the driver cannot be reached.
    DeviceUnreachable(String),
    /// It took too long.
    TimedOut(String),
    /// Anything else.
    Failed(String),
}

impl CommandError {
    /// The error of a code; an unknown one has failed.
    pub fn from_code(code: &str, text: String) -> CommandError {
        match code {
            "invalid-argument" => CommandError::InvalidArgument(text),
            "unsupported" => CommandError::Unsupported(text),
            "busy" => CommandError::Busy(text),
            "device-unreachable" => CommandError::DeviceUnreachable(text),
            "timed-out" => CommandError::TimedOut(text),
            _ => CommandError::Failed(text),
        }
    }

    /// Its code, the same on every cloud.
    pub fn code(&self) -> &'static str {
        match self {
            CommandError::InvalidArgument(_) => "invalid-argument",
            CommandError::Unsupported(_) => "unsupported",
            CommandError::Busy(_) => "busy",
            CommandError::DeviceUnreachable(_) => "device-unreachable",
            CommandError::TimedOut(_) => "timed-out",
            CommandError::Failed(_) => "failed",
        }
    }

    /// Its text.
    pub fn text(&self) -> &str {
        match self {
            CommandError::InvalidArgument(text)
            | CommandError::Unsupported(text)
            | CommandError::Busy(text)
            | CommandError::DeviceUnreachable(text)
            | CommandError::TimedOut(text)
            | CommandError::Failed(text) => text,
        }
    }
}

/// A command before it is checked against a manifest.
#[derive(Debug, Clone, PartialEq)]
pub struct CommandRequest {
    /// Unique id, made from what the cloud gave.
    pub id: String,
    /// The session that it came by and that gets the answer; none for one
    /// that was given at the gateway.
    pub session: Option<Arc<str>>,
    /// The command's name.
    pub name: String,
    /// The arguments.
    pub arguments: Map<String, Json>,
}

/// An encoded message, ready for a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// The MQTT topic; clones share it.
    pub topic: Arc<str>,
    /// The MQTT payload; clones share it.
    pub payload: Bytes,
    /// Whether the payload is one element of an array that the cloud takes as
    /// a whole, so that it may go with others on its topic.
    pub joins: bool,
    /// The time in the payload that this machine's clock gave.
    pub stamp: Option<Stamp>,
}

/// Appends a value as JSON.
pub fn write_json(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Unknown => out.extend_from_slice(b"null"),
        Value::Boolean(true) => out.extend_from_slice(b"true"),
        Value::Boolean(false) => out.extend_from_slice(b"false"),
        // Writing to memory cannot fail, and the types below always serialize.
        Value::Integer(number) => drop(serde_json::to_writer(out, number)),
        Value::Float(number) => drop(serde_json::to_writer(out, number)),
        Value::Text(text) => write_json_text(out, text),
        Value::TextList(list) => drop(serde_json::to_writer(out, list)),
        Value::Json(text) => out.extend_from_slice(text.as_bytes()),
    }
}

/// How deep a driver's JSON may be nested: readers give up at 128 levels, and it
/// travels inside other documents.
const MAX_DEPTH: usize = 100;

/// Whether a driver's text is JSON that everybody can read.
pub fn check_document(text: &str) -> Result<(), String> {
    serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|error| format!("expected JSON text: {error}"))?;
    let (mut depth, mut is_text, mut is_escaped) = (0_usize, false, false);
    for byte in text.bytes() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => is_text = !is_text,
            b'[' | b'{' if !is_text => depth += 1,
            b']' | b'}' if !is_text => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_DEPTH {
            return Err(format!("expected JSON nested at most {MAX_DEPTH} levels deep"));
        }
    }
    Ok(())
}

/// Appends a text as a JSON string.
pub fn write_json_text(out: &mut Vec<u8>, text: &str) {
    drop(serde_json::to_writer(out, text));
}

/// A value as a JSON document.
pub fn json_of(value: &Value) -> Json {
    match value {
        Value::Unknown => Json::Null,
        Value::Boolean(value) => Json::from(*value),
        Value::Integer(number) => Json::from(*number),
        Value::Float(number) => Json::from(*number),
        Value::Text(text) => Json::from(text.as_str()),
        Value::TextList(list) => Json::from(list.clone()),
        Value::Json(text) => serde_json::from_str(text).unwrap_or_default(),
    }
}

/// A JSON document as a value; objects and arrays stay JSON.
pub fn value_of(json: Json) -> Value {
    match json {
        Json::Null => Value::Unknown,
        Json::Bool(value) => Value::Boolean(value),
        Json::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(integer), _) => Value::Integer(integer),
            (None, Some(float)) => Value::Float(float),
            (None, None) => Value::Unknown,
        },
        Json::String(text) => Value::Text(text),
        other => Value::Json(other.to_string()),
    }
}

/// A JSON object as attributes.
pub fn attributes_of(object: Map<String, Json>) -> Vec<Attribute> {
    object.into_iter().map(|(name, value)| Attribute { name, value: value_of(value) }).collect()
}

/// About how many bytes an attribute takes when encoded.
pub fn size_of_attribute(attribute: &Attribute) -> usize {
    let value = match &attribute.value {
        Value::Text(text) | Value::Json(text) => text.len(),
        Value::TextList(list) => list.iter().map(|text| text.len() + 3).sum(),
        Value::Unknown | Value::Boolean(_) | Value::Integer(_) | Value::Float(_) => 8,
    };
    attribute.name.len() + value
}

/// About how many bytes a command takes in memory.
pub fn size_of_request(request: &CommandRequest) -> usize {
    fn size(json: &Json) -> usize {
        let inside = match json {
            Json::Null | Json::Bool(_) | Json::Number(_) => 0,
            Json::String(text) => text.len(),
            Json::Array(all) => all.iter().map(size).sum(),
            Json::Object(all) => all.iter().map(|(name, value)| name.len() + size(value)).sum(),
        };
        size_of::<Json>() + inside
    }
    let arguments = request.arguments.iter().map(|(name, value)| name.len() + size(value));
    request.id.len() + request.name.len() + arguments.sum::<usize>()
}

/// Attributes as a JSON object.
pub fn json_object(attributes: &[Attribute]) -> Map<String, Json> {
    attributes.iter().map(|attribute| (attribute.name.clone(), json_of(&attribute.value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_that_nobody_could_read_again_is_refused() {
        assert!(check_document("{\"a\":").is_err());
        assert!(check_document(&format!("{}{}", "[".repeat(101), "]".repeat(101))).is_err());
        assert!(check_document(&format!("{}{}", "[".repeat(100), "]".repeat(100))).is_ok());
        let flat = format!("[{}0]", "{\"a\":\"[[[\\\"[[[\"},".repeat(1000));
        assert_eq!(check_document(&flat), Ok(()));
    }

    #[test]
    fn ids_that_would_break_a_topic_or_a_channel_are_refused() {
        for id in ["a", "Meter_1", "x_"] {
            assert!(is_valid_device_id(id), "{id}");
        }
        for id in ["", "1a", "a--b", "a-b", "a/b", "a+", "ä", "a b", &"a".repeat(65)] {
            assert!(!is_valid_device_id(id), "{id}");
        }
    }

    #[test]
    fn values_become_json_the_same_way_on_both_paths() {
        for value in [
            Value::Unknown,
            Value::Boolean(true),
            Value::Integer(i64::MIN),
            Value::Float(0.1),
            Value::Text("a\"\n\u{1}ü".into()),
            Value::TextList(vec!["a".into(), "\"".into()]),
            Value::Json("{\"a\":[1,null]}".into()),
        ] {
            let mut out = Vec::new();
            write_json(&mut out, &value);
            assert_eq!(serde_json::from_slice::<Json>(&out).unwrap(), json_of(&value));
        }
    }
}
