//! What happened in the stand-in: one readable line each, the newest ones kept.
//!
//! The service notes events; the terminal, the HTTP side and tests read them.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;

/// How many events are kept.
pub const MAX_EVENTS: usize = 1000;

/// One event.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Event {
    /// In milliseconds since 1970.
    pub time: u64,
    /// A word for programs: `attached`, `detached`, `samples`, `metadata`, `command`, `result`, `configuration`,
    /// `software`, `upload`, `token`, `fault`, `refused`, `dropped`.
    pub what: &'static str,
    /// Which endpoint it concerns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// For people.
    pub text: String,
}

/// The newest events, and those that nobody has been told yet.
#[derive(Debug, Default)]
pub struct Events {
    ring: VecDeque<Event>,
    fresh: Vec<Event>,
}

impl Events {
    /// Notes an event.
    pub fn note(&mut self, time: u64, what: &'static str, endpoint: Option<&str>, text: String) {
        let event = Event { time, what, endpoint: endpoint.map(str::to_owned), text };
        if self.ring.len() >= MAX_EVENTS {
            self.ring.pop_front();
        }
        self.ring.push_back(event.clone());
        self.fresh.push(event);
    }

    /// The newest events, oldest first.
    pub fn newest(&self) -> impl Iterator<Item = &Event> {
        self.ring.iter()
    }

    /// What came since this was last asked.
    pub fn take_fresh(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.fresh)
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(self.time));
        write!(f, "{time} {:<13} ", self.what)?;
        if let Some(endpoint) = &self.endpoint {
            write!(f, "{endpoint}: ")?;
        }
        // What a device sends must not steer the terminal.
        self.text
            .chars()
            .try_for_each(|c| if c.is_control() { write!(f, "{}", c.escape_default()) } else { write!(f, "{c}") })
    }
}
