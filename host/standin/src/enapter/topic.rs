//! The topics on which devices publish, and those on which they listen.
//!
//! Source: the public page "MQTT API"; for logs and the older name of
//! properties, Enapter's Python SDK 0.24.

use std::fmt;

use serde::{Serialize, Serializer};

/// Longer ids are a mistake or an attack.
const MAX_ID: usize = 128;

/// The address of a device: hardware id and channel id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// The hardware id, the same for a gateway and its children.
    pub hardware: String,
    /// The channel id; a child's is `<parent>--<child>`.
    pub channel: String,
}

impl Address {
    /// The topic on which the device listens for commands.
    pub fn requests(&self) -> String {
        format!("v1/to/{}/{}/v1/command/requests", self.hardware, self.channel)
    }

    /// The address of a child of this device.
    pub fn child(&self, id: &str) -> Address {
        Address { hardware: self.hardware.clone(), channel: format!("{}--{id}", self.channel) }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.hardware, self.channel)
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What a message is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// Measurements and alerts.
    Telemetry,
    /// Facts that change rarely; a gateway's also hold its children.
    Properties,
    /// Progress and results of commands.
    Responses,
    /// Log lines.
    Logs,
}

/// Takes a topic apart; an error says what was expected.
pub fn parse(topic: &str) -> Result<(Address, Subject), String> {
    let mut levels = topic.splitn(5, '/');
    let (Some("v1"), Some("from"), Some(hardware), Some(channel), Some(end)) =
        (levels.next(), levels.next(), levels.next(), levels.next(), levels.next())
    else {
        return Err("expected a topic v1/from/<hardware_id>/<channel_id>/…".into());
    };
    for (name, id) in [("hardware_id", hardware), ("channel_id", channel)] {
        if !is_id(id) {
            return Err(format!("{name}: expected 1 to {MAX_ID} bytes of visible characters, found {:?}", short(id)));
        }
    }
    let subject = match end {
        "v1/telemetry" => Subject::Telemetry,
        "v1/properties" | "v1/register" => Subject::Properties,
        "v1/command/responses" => Subject::Responses,
        "v3/logs" => Subject::Logs,
        _ => {
            return Err(format!(
                "expected v1/telemetry, v1/properties, v1/register, v1/command/responses or v3/logs after the channel, \
                 found {:?}",
                short(end)
            ));
        }
    };
    Ok((Address { hardware: hardware.to_owned(), channel: channel.to_owned() }, subject))
}

/// Whether a text can be an id in a topic.
pub fn is_id(id: &str) -> bool {
    (1..=MAX_ID).contains(&id.len())
        && id.chars().all(|c| !c.is_control() && !c.is_whitespace() && !matches!(c, '/' | '+' | '#'))
}

/// A text for a message, cut to a sensible length.
pub fn short(text: &str) -> String {
    const SHOWN: usize = 80;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topics_of_the_contract_are_known_and_others_are_not() {
        for (end, subject) in [
            ("v1/telemetry", Subject::Telemetry),
            ("v1/properties", Subject::Properties),
            ("v1/register", Subject::Properties),
            ("v1/command/responses", Subject::Responses),
            ("v3/logs", Subject::Logs),
        ] {
            let (address, found) = parse(&format!("v1/from/S01/s--meter/{end}")).unwrap();
            assert_eq!((address.to_string().as_str(), found), ("S01:s--meter", subject));
            assert_eq!(address.requests(), "v1/to/S01/s--meter/v1/command/requests");
        }
        for (topic, expected) in [
            ("", "expected a topic v1/from/"),
            ("v1/to/S01/s/v1/command/requests", "expected a topic v1/from/"),
            ("v2/from/S01/s/v1/telemetry", "expected a topic v1/from/"),
            ("v1/from/S01/s", "expected a topic v1/from/"),
            ("v1/from//s/v1/telemetry", "hardware_id: expected 1 to 128 bytes"),
            ("v1/from/S01//v1/telemetry", "channel_id: expected 1 to 128 bytes"),
            ("v1/from/S01/a b/v1/telemetry", "channel_id: expected 1 to 128 bytes"),
            ("v1/from/S01/s/v3/telemetry", "expected v1/telemetry, v1/properties,"),
            ("v1/from/S01/s/v1/telemetry/", "expected v1/telemetry, v1/properties,"),
            (&format!("v1/from/S01/{}/v1/telemetry", "x".repeat(1000)), "channel_id: expected 1 to 128 bytes"),
        ] {
            let problem = parse(topic).unwrap_err();
            assert!(problem.starts_with(expected), "{topic}: {problem}");
        }
    }
}
