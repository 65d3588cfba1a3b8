//! Checks what types cannot: references between parts, ids, ranges.
//!
//! Pure. Errors name line, column, key path and what was expected.

use super::enapter::{KEEP_ALIVE, keep_alive_fits};
use super::original::{line_and_column, offset_of};
use super::{Bus, Config, Device, EnapterSession, Endpoint, Session, Source};
use crate::manifest::RequestKind;
use crate::text;

/// Checks a parsed configuration; `original` is what it was parsed from.
pub(super) fn check(config: &Config, original: &str) -> Result<(), String> {
    config.check().map_err(|problem| {
        let offset = offset_of(original, &problem.place);
        format!("{}: {}: {}", line_and_column(original, offset), problem.place.join("."), problem.text)
    })
}

impl Config {
    fn check(&self) -> Result<(), Problem> {
        for (name, session) in &self.sessions {
            let (kind, problem) = match session {
                Session::Enapter(session) => ("enapter", check_enapter(session).err()),
                Session::Kaa(session) => ("kaa", session.problem().map(|(key, text)| (key, text.to_owned()))),
            };
            if let Some((key, text)) = problem {
                return Err(Problem::new(&["sessions", name, kind, key], text));
            }
        }
        for (name, bus) in &self.buses {
            if let Some((kind, key, expected)) = wrong_setting(bus) {
                return Err(Problem::new(&["buses", name, kind, key], expected.into()));
            }
            if let Bus::ModbusTcp(line) = bus
                && !line.address.is_single()
            {
                let text = "expected one host and port, not a pattern".into();
                return Err(Problem::new(&["buses", name, "modbus_tcp", "address"], text));
            }
        }
        for (id, device) in &self.devices {
            self.check_device(id, device)?;
        }
        self.check_tokens()
    }

    fn check_device(&self, id: &str, device: &Device) -> Result<(), Problem> {
        if !crate::message::is_valid_device_id(id) {
            let text = "expected a device id of 1 to 64 letters, digits and _, starting with a letter".into();
            return Err(Problem::new(&["devices", id], text));
        }
        for (kind, name, bus) in device.grants.lines() {
            let text = match self.buses.get(bus) {
                Some(found) if found.kind() == kind => continue,
                Some(found) => format!("expected {}, found {bus:?}, which is {}", a(kind), a(found.kind())),
                None => missing("bus", bus, self.buses.keys(), &format!("buses.{bus}")),
            };
            return Err(Problem::new(&["devices", id, "grants", kind.key(), name], text));
        }
        if let Some(name) = &device.session
            && !self.sessions.contains_key(name)
        {
            let text = missing("session", name, self.sessions.keys(), &format!("sessions.{name}"));
            return Err(Problem::new(&["devices", id, "session"], text));
        }
        for (name, endpoint) in &device.endpoints {
            if !self.sessions.get(name).is_some_and(Endpoint::is_needed) {
                let kaa = self.sessions.iter().filter(|(_, session)| Endpoint::is_needed(session));
                let text = missing("Kaa session", name, kaa.map(|(name, _)| name), &format!("sessions.{name}.kaa"));
                return Err(Problem::new(&["devices", id, "endpoints", name], text));
            }
            if let Some((key, text)) = endpoint.problem() {
                return Err(Problem::new(&["devices", id, "endpoints", name, key], text.into()));
            }
        }
        if device.session.is_none() && device.endpoints.is_empty() && self.sessions.len() > 1 {
            let text = format!(
                "expected `session`: one of {}",
                text::list(self.sessions.keys().map(|name| format!("{name:?}")))
            );
            return Err(Problem::new(&["devices", id], text));
        }
        for name in self.sessions_of(device) {
            if self.sessions.get(name).is_some_and(Endpoint::is_needed) && !device.endpoints.contains_key(name) {
                let text = format!("expected `endpoints.{name}` with the device's `token` in this Kaa session");
                return Err(Problem::new(&["devices", id], text));
            }
        }
        Ok(())
    }

    /// Two devices with one token would be one endpoint in the cloud.
    fn check_tokens(&self) -> Result<(), Problem> {
        let mut seen = std::collections::BTreeMap::new();
        for (name, session) in &self.sessions {
            if let Session::Kaa(session) = session
                && let Some(Source::Value(token)) = &session.token
            {
                seen.insert((name, &token.0), "the gateway".to_owned());
            }
        }
        for (id, device) in &self.devices {
            for (name, endpoint) in &device.endpoints {
                // Tokens that are kept elsewhere are compared when they are read.
                let Source::Value(token) = endpoint.token() else { continue };
                if let Some(other) = seen.insert((name, &token.0), format!("device {id}")) {
                    let text = format!("expected a token of its own, found that of {other}");
                    return Err(Problem::new(&["devices", id, "endpoints", name, "token"], text));
                }
            }
        }
        Ok(())
    }
}

/// The same check once all tokens are read.
pub(super) fn check_tokens(config: &Config) -> Result<(), String> {
    config.check_tokens().map_err(|problem| {
        let keys: Vec<&str> = problem.place.iter().map(String::as_str).collect();
        config.wrong(&keys, &problem.text)
    })
}

/// What of a serial port no port has: the table, the key, and what was expected.
fn wrong_setting(bus: &Bus) -> Option<(&'static str, &'static str, &'static str)> {
    let (kind, stop_bits) = match bus {
        Bus::ModbusRtu(line) => ("modbus_rtu", line.stop_bits),
        Bus::Serial(line) if line.port.as_os_str().is_empty() => {
            return Some(("serial", "port", "expected a serial port such as \"/dev/ttyUSB0\""));
        }
        Bus::Serial(line) if !(5..=8).contains(&line.data_bits) => {
            return Some(("serial", "data_bits", "expected 5 to 8"));
        }
        Bus::Serial(line) => ("serial", line.stop_bits),
        _ => return None,
    };
    (!(1..=2).contains(&stop_bits)).then_some((kind, "stop_bits", "expected 1 or 2"))
}

fn check_enapter(session: &EnapterSession) -> Result<(), (&'static str, String)> {
    if session.qos > 1 {
        return Err(("qos", "expected 0 or 1".into()));
    }
    if !keep_alive_fits(session.keep_alive) {
        return Err(("keep_alive", KEEP_ALIVE.into()));
    }
    if session.communication_config.is_none() {
        if session.host.is_none() {
            return Err(("", "expected `communication_config`, or `host` and `hardware_id`".into()));
        }
        if session.hardware_id.is_none() {
            return Err(("", "expected `hardware_id` beside `host`".into()));
        }
    }
    for (key, id) in [("hardware_id", &session.hardware_id), ("channel_id", &session.channel_id)] {
        if let Some(id) = id
            && (id.is_empty() || id.contains(['/', '+', '#', ' ']))
        {
            return Err((key, "expected a text without /, +, # and spaces".into()));
        }
    }
    if session.username.is_some() != session.password.is_some() {
        return Err(("", "expected `username` and `password` together".into()));
    }
    if let Some(tls) = &session.tls
        && tls.certificate.is_some() != tls.key.is_some()
    {
        return Err(("tls", "expected `certificate` and `key` together".into()));
    }
    Ok(())
}

/// A wrong value: where it stands and what was expected.
struct Problem {
    place: Vec<String>,
    text: String,
}

impl Problem {
    fn new(place: &[&str], text: String) -> Self {
        let place = place.iter().filter(|key| !key.is_empty()).map(|key| (*key).to_owned()).collect();
        Problem { place, text }
    }
}

/// Where a name leads nowhere: what there is, or what is missing.
fn missing<'a>(what: &str, name: &str, known: impl Iterator<Item = &'a String>, table: &str) -> String {
    let known: Vec<&String> = known.collect();
    if known.is_empty() {
        return format!("no {what} {name:?}; none is configured, expected a table [{table}]");
    }
    format!("no {what} {name:?}; {}", text::instead(name, known))
}

/// One of a kind, in words.
fn a(kind: RequestKind) -> String {
    let article = if kind == RequestKind::Io { "an" } else { "a" };
    format!("{article} {}", kind.noun())
}
