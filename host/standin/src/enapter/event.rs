//! What the stand-in tells people: one line for everything that happens, and
//! above all for what the cloud would drop in silence.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::ring::Ring;
use crate::time::Time;

/// Maximum lines, and their bytes.
const MOST: usize = 5000;
const MOST_BYTES: usize = 4 << 20;
/// Longer texts are cut.
const LONGEST: usize = 500;

/// What kind of thing has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A client has connected.
    Connected,
    /// A client has left.
    Disconnected,
    /// The set of children is another one.
    Children,
    /// Measurements came.
    Telemetry,
    /// Properties came.
    Properties,
    /// Other alerts are active.
    Alerts,
    /// The device wrote a log line.
    Log,
    /// A command was sent or has gone on.
    Command,
    /// The cloud would have dropped this without a word.
    Dropped,
    /// Something that is worth knowing.
    Note,
}

impl Kind {
    /// The name in lines and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Connected => "connected",
            Kind::Disconnected => "disconnected",
            Kind::Children => "children",
            Kind::Telemetry => "telemetry",
            Kind::Properties => "properties",
            Kind::Alerts => "alerts",
            Kind::Log => "log",
            Kind::Command => "command",
            Kind::Dropped => "dropped",
            Kind::Note => "note",
        }
    }
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Milliseconds since the epoch.
    pub time: Time,
    /// What kind of thing it is.
    pub kind: Kind,
    /// The device it is about, as hardware id and channel id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The attribute that was dropped; none when a whole message was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attribute: Option<String>,
    /// The rest, for people.
    pub text: String,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(self.time);
        write!(f, "{} {:<12} ", humantime::format_rfc3339_seconds(time), self.kind.name())?;
        if let Some(device) = &self.device {
            write!(f, "{device} ")?;
        }
        if let Some(attribute) = &self.attribute {
            write!(f, "{attribute}: ")?;
        }
        f.write_str(&self.text)
    }
}

/// The newest lines.
#[derive(Debug)]
pub struct Events(Ring<Event>);

impl Default for Events {
    fn default() -> Self {
        Events(Ring::new(MOST, MOST_BYTES))
    }
}

impl Events {
    /// Adds a line about a device, or about nobody.
    pub fn tell(&mut self, time: Time, kind: Kind, device: Option<&dyn fmt::Display>, text: &str) {
        let device = device.map(|device| clean(&device.to_string()));
        self.push(Event { time, kind, device, attribute: None, text: clean(text) });
    }

    /// Adds a line about something that was dropped.
    pub fn drop(&mut self, time: Time, device: Option<&dyn fmt::Display>, attribute: Option<&str>, problem: &str) {
        let device = device.map(|device| clean(&device.to_string()));
        let attribute = attribute.map(clean);
        self.push(Event { time, kind: Kind::Dropped, device, attribute, text: clean(problem) });
    }

    /// The lines as they are kept.
    pub fn ring(&self) -> &Ring<Event> {
        &self.0
    }

    fn push(&mut self, event: Event) {
        let texts = [event.device.as_ref(), event.attribute.as_ref(), Some(&event.text)];
        let size = size_of::<Event>() + texts.into_iter().flatten().map(String::len).sum::<usize>();
        self.0.push(event, size);
    }
}

/// Cuts a text, and takes out what a terminal would obey.
pub fn clean(text: &str) -> String {
    let mut clean: String = text.chars().take(LONGEST).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(LONGEST).is_some() {
        clean.push('…');
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_and_obey_no_one() {
        let mut events = Events::default();
        events.drop(0, Some(&"S01:s"), Some("a\u{1b}[2J"), &"x".repeat(1000));
        let line = events.ring().from(0).next().unwrap().to_string();
        assert!(line.starts_with("1970-01-01T00:00:00Z dropped      S01:s a\u{fffd}[2J: xxx"), "{line}");
        assert!(line.ends_with("x…") && line.chars().count() < 600, "{line}");
    }
}
