//! Checks what types cannot: references between parts, ids, ranges.
//!
//! Pure. Errors name line, column, key path and what was expected.

use super::{Bus, Config, Device, EnapterSession, KEEP_ALIVE, ModbusGrant, Session, Source, keep_alive_fits};

/// Checks a parsed configuration; `text` is what it was parsed from.
pub(super) fn check(config: &Config, text: &str) -> Result<(), String> {
    config.check().map_err(|problem| {
        let offset = offset_of(text, &problem.place);
        format!("{}: {}: {}", line_and_column(text, offset), problem.place.join("."), problem.text)
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
            if let Bus::ModbusRtu(line) = bus
                && !(1..=2).contains(&line.stop_bits)
            {
                return Err(Problem::new(&["buses", name, "modbus_rtu", "stop_bits"], "expected 1 or 2".into()));
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
        for (name, ModbusGrant { bus, .. }) in &device.grants.modbus {
            if !self.buses.contains_key(bus) {
                let text = format!("no bus {bus:?}; expected one of {}", names(self.buses.keys()));
                return Err(Problem::new(&["devices", id, "grants", "modbus", name], text));
            }
        }
        if let Some(name) = &device.session
            && !self.sessions.contains_key(name)
        {
            let text = format!("no session {name:?}; expected one of {}", names(self.sessions.keys()));
            return Err(Problem::new(&["devices", id, "session"], text));
        }
        for (name, endpoint) in &device.endpoints {
            if !matches!(self.sessions.get(name), Some(Session::Kaa(_))) {
                let kaa = self.sessions.iter().filter(|(_, session)| matches!(session, Session::Kaa(_)));
                let text = format!("no Kaa session {name:?}; expected one of {}", names(kaa.map(|(name, _)| name)));
                return Err(Problem::new(&["devices", id, "endpoints", name], text));
            }
            if let Some((key, text)) = endpoint.problem() {
                return Err(Problem::new(&["devices", id, "endpoints", name, key], text.into()));
            }
        }
        if device.session.is_none() && device.endpoints.is_empty() && self.sessions.len() > 1 {
            let text = format!("expected `session`: one of {}", names(self.sessions.keys()));
            return Err(Problem::new(&["devices", id], text));
        }
        for name in self.sessions_of(device) {
            if matches!(self.sessions.get(name), Some(Session::Kaa(_))) && !device.endpoints.contains_key(name) {
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
                let Source::Value(token) = &endpoint.token else { continue };
                if let Some(other) = seen.insert((name, &token.0), format!("device {id}")) {
                    let text = format!("expected a token of its own, found that of {other}");
                    return Err(Problem::new(&["devices", id, "endpoints", name, "token"], text));
                }
            }
        }
        Ok(())
    }
}

/// The same check once all tokens are read; the error has no place in the text.
pub(super) fn check_tokens(config: &Config) -> Result<(), String> {
    config.check_tokens().map_err(|problem| format!("{}: {}", problem.place.join("."), problem.text))
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

fn names<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<_> = names.map(|name| format!("{name:?}")).collect();
    if names.is_empty() { "none (none is configured)".into() } else { names.join(", ") }
}

/// `line:column` of a byte, both from 1.
pub(super) fn line_and_column(text: &str, offset: usize) -> String {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
    format!("{line}:{column}")
}

/// Finds where the deepest existing part of a key path stands.
fn offset_of(text: &str, place: &[String]) -> usize {
    let Ok(document) = toml::de::DeTable::parse(text) else { return 0 };
    let mut table = Some(document.get_ref());
    let mut offset = 0;
    for key in place {
        let entry = table.and_then(|table| table.iter().find(|(name, _)| name.get_ref() == key));
        let Some((name, value)) = entry else { break };
        offset = name.span().start;
        table = match value.get_ref() {
            toml::de::DeValue::Table(table) => Some(table),
            _ => None,
        };
    }
    offset
}
