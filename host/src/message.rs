//! What travels between devices and clouds, before encoding: plain data, no IO.
//!
//! Values and attributes are the contract's own types, so that nothing is
//! copied on the way from a guest to its publication.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, Value as Json};

use crate::clock::Stamp;
pub use crate::clock::{Time, now};
pub use sandgate_manifest::value::{
    Attribute, Rejection, Value, attributes_of, check_document, json_object, json_of, size_of_attribute, value_of,
    write_json, write_json_text,
};

/// A name in the gateway: a text that clones share.
macro_rules! name {
    ($(#[$documentation:meta])* $name:ident) => {
        $(#[$documentation])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Wraps a text that the configuration has checked.
            pub fn new(text: &str) -> Self {
                $name(text.into())
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        /// So that a map is asked with a text as well.
        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name! {
    /// The id of a device, unique in the gateway.
    DeviceId
}

name! {
    /// The name of a session with a cloud, unique in the gateway.
    SessionName
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
        /// Whether they are others than before.
        tells_alerts: bool,
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

impl std::fmt::Display for CommandError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.code(), self.text())
    }
}

/// A command before it is checked against a manifest.
#[derive(Debug, Clone, PartialEq)]
pub struct CommandRequest {
    /// Unique id, made from what the cloud gave.
    pub id: String,
    /// The session that it came by and that gets the answer; none for one
    /// that was given at the gateway.
    pub session: Option<SessionName>,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_would_break_a_topic_or_a_channel_are_refused() {
        for id in ["a", "Meter_1", "x_"] {
            assert!(is_valid_device_id(id), "{id}");
        }
        for id in ["", "1a", "a--b", "a-b", "a/b", "a+", "ä", "a b", &"a".repeat(65)] {
            assert!(!is_valid_device_id(id), "{id}");
        }
    }
}
