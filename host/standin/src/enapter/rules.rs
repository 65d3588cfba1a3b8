//! What the cloud keeps of a payload and what it drops without a word.
//!
//! Pure. Sources: the public pages on the MQTT API and on blueprints. Where
//! they are silent the rule is a guess of ours, and says so.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value as Json};

use super::topic::short;
use crate::time::Time;
use sandgate_manifest::{Field, Manifest};

/// The largest payload that is looked at. A guess: the cloud's limit is not public.
pub const MAX_PAYLOAD: usize = 256 << 10;
/// How far ahead a clock may be, in seconds. A guess.
const AHEAD: u64 = 86_400;
/// From here on a number of seconds is in fact one of milliseconds.
const MILLISECONDS: u64 = 100_000_000_000;
/// Longer names and ids are a mistake or an attack.
const MAX_NAME: usize = 128;

/// Something that the cloud drops without a word.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Dropped {
    /// The attribute; none when the whole message is dropped.
    pub attribute: Option<String>,
    /// What was expected and what was found.
    pub problem: String,
}

/// What is left of a message.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict<T> {
    /// What the cloud keeps.
    pub kept: T,
    /// What it drops.
    pub dropped: Vec<Dropped>,
}

/// What is kept of telemetry.
#[derive(Debug, Clone, PartialEq)]
pub struct Telemetry {
    /// Seconds since the epoch.
    pub timestamp: u64,
    /// The attributes.
    pub attributes: Map<String, Json>,
    /// `alerts`, if the message had any: null says that nothing is known.
    pub alerts: Option<Option<Vec<String>>>,
    /// `alert_details`.
    pub details: Map<String, Json>,
}

/// What is kept of properties.
#[derive(Debug, Clone, PartialEq)]
pub struct Properties {
    /// The attributes.
    pub attributes: Map<String, Json>,
    /// The whole set of children, if it was announced: child id to type.
    pub children: Option<BTreeMap<String, String>>,
}

/// One line on the log topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Seconds since the epoch.
    pub timestamp: u64,
    /// `debug`, `info`, `warning` or `error`.
    pub severity: String,
    /// The text.
    pub message: String,
    /// Whether the device wants it kept.
    pub persist: bool,
}

/// Progress or the end of a command, as the device sends it.
#[derive(Debug, Clone, PartialEq)]
pub struct Response {
    /// The command's id.
    pub id: String,
    /// What the device says.
    pub state: Said,
    /// Its words or result.
    pub payload: Map<String, Json>,
}

/// The states that a device can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// More is to come.
    Log,
    /// Done.
    Completed,
    /// Failed.
    Error,
}

/// Reads a payload as a JSON object.
pub fn object(payload: &[u8]) -> Result<Map<String, Json>, Dropped> {
    if payload.len() > MAX_PAYLOAD {
        return Err(whole(format!("expected at most {MAX_PAYLOAD} bytes, found {}", payload.len())));
    }
    match serde_json::from_slice(payload) {
        Ok(Json::Object(body)) => Ok(body),
        Ok(other) => Err(whole(format!("expected a JSON object, found {}", shown(&other)))),
        Err(error) => Err(whole(format!("expected a JSON object: {error}"))),
    }
}

/// Holds telemetry against a blueprint.
pub fn telemetry(
    manifest: Option<&Manifest>,
    mut body: Map<String, Json>,
    now: Time,
) -> Result<Verdict<Telemetry>, Dropped> {
    let timestamp = timestamp(&mut body, now)?;
    let mut dropped = Vec::new();
    let alerts = body.shift_remove("alerts").and_then(|alerts| match texts(&alerts) {
        Some(ids) => Some(Some(ids)),
        None if alerts.is_null() => Some(None),
        None => {
            let problem = format!("expected a list of alert ids or null, found {}", shown(&alerts));
            dropped.push(attribute("alerts", problem));
            None
        }
    });
    let details = match body.shift_remove("alert_details") {
        None | Some(Json::Null) => Map::new(),
        Some(Json::Object(details)) => details,
        Some(other) => {
            let problem = format!("expected an object from alert id to details, found {}", shown(&other));
            dropped.push(attribute("alert_details", problem));
            Map::new()
        }
    };
    let fields = manifest.map(|manifest| &manifest.blueprint.telemetry);
    let attributes = fitting(fields, "telemetry", body, &mut dropped);
    Ok(Verdict { kept: Telemetry { timestamp, attributes, alerts, details }, dropped })
}

/// Holds properties against a blueprint. Children belong to a parent, and their
/// types must be among those that its blueprint names.
pub fn properties(
    manifest: Option<&Manifest>,
    types: Option<&BTreeSet<String>>,
    is_child: bool,
    mut body: Map<String, Json>,
    now: Time,
) -> Result<Verdict<Properties>, Dropped> {
    timestamp(&mut body, now)?;
    let mut dropped = Vec::new();
    let children = body.shift_remove("children").and_then(|announced| match announced {
        _ if is_child => {
            dropped.push(attribute("children", "is reserved; only the parent's properties can hold it".into()));
            None
        }
        Json::Object(announced) => Some(children(types, announced, &mut dropped)),
        other => {
            let problem = format!("expected an object from child id to {{\"type\": …}}, found {}", shown(&other));
            dropped.push(attribute("children", problem));
            None
        }
    });
    let fields = manifest.map(|manifest| &manifest.blueprint.properties);
    let attributes = fitting(fields, "properties", body, &mut dropped);
    Ok(Verdict { kept: Properties { attributes, children }, dropped })
}

/// Each bad child is rejected alone; the set is replaced all the same.
fn children(
    types: Option<&BTreeSet<String>>,
    announced: Map<String, Json>,
    dropped: &mut Vec<Dropped>,
) -> BTreeMap<String, String> {
    let mut kept = BTreeMap::new();
    for (id, child) in announced {
        let problem = match child.get("type") {
            _ if !is_child_id(&id) => format!("expected a child id of 1 to {MAX_NAME} letters, digits, _ and single -"),
            Some(Json::String(kind)) => match types {
                Some(types) if !types.contains(kind) => {
                    let known = types.iter().map(|kind| format!("{kind:?}")).collect::<Vec<_>>().join(", ");
                    let known = if known.is_empty() { "none".to_owned() } else { known };
                    format!("expected a type that the parent's blueprint names ({known}), found {:?}", short(kind))
                }
                _ => {
                    kept.insert(id, short(kind));
                    continue;
                }
            },
            Some(other) => format!("type: expected a text, found {}", shown(other)),
            None => format!("expected {{\"type\": …}}, found {}", shown(&child)),
        };
        dropped.push(attribute(&format!("children.{id}"), problem));
    }
    kept
}

/// A guess: the page says "arbitrary". `--` joins parent and child.
fn is_child_id(id: &str) -> bool {
    (1..=MAX_NAME).contains(&id.len())
        && !id.contains("--")
        && !id.starts_with('-')
        && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
}

/// Reads a line from the log topic.
pub fn line(mut body: Map<String, Json>, now: Time) -> Result<Line, Dropped> {
    let timestamp = timestamp(&mut body, now)?;
    let wrong = |name: &str, expected: &str, found: Option<&Json>| {
        Err(attribute(name, format!("expected {expected}, found {}", found.map_or("nothing".into(), shown))))
    };
    let message = match body.get("message") {
        Some(Json::String(message)) => message.clone(),
        other => return wrong("message", "a text", other),
    };
    let severity = match body.get("severity") {
        Some(Json::String(name)) if ["debug", "info", "warning", "error"].contains(&name.as_str()) => name.clone(),
        other => return wrong("severity", "one of debug, info, warning, error", other),
    };
    let persist = match body.get("persist") {
        None | Some(Json::Null) => false,
        Some(Json::Bool(persist)) => *persist,
        other => return wrong("persist", "a boolean", other),
    };
    Ok(Line { timestamp, severity, message, persist })
}

/// Reads a response to a command.
pub fn response(mut body: Map<String, Json>) -> Result<Response, Dropped> {
    let id = match body.remove("id") {
        Some(Json::String(id)) if !id.is_empty() => id,
        other => return Err(attribute("id", format!("expected a text, found {}", found(other.as_ref())))),
    };
    let state = match body.get("state").and_then(Json::as_str) {
        Some("log") => Said::Log,
        Some("completed") => Said::Completed,
        Some("error") => Said::Error,
        _ => {
            let found = found(body.get("state"));
            return Err(attribute("state", format!("expected one of log, completed, error, found {found}")));
        }
    };
    let payload = match body.remove("payload") {
        None | Some(Json::Null) => Map::new(),
        Some(Json::Object(payload)) => payload,
        Some(other) => return Err(attribute("payload", format!("expected an object, found {}", shown(&other)))),
    };
    Ok(Response { id, state, payload })
}

/// Takes the timestamp out of a message: required, whole seconds.
fn timestamp(body: &mut Map<String, Json>, now: Time) -> Result<u64, Dropped> {
    const EXPECTED: &str = "expected whole seconds since the epoch";
    let value = body.shift_remove("timestamp");
    let problem = match value.as_ref().map(|value| (value, value.as_u64())) {
        Some((_, Some(seconds))) if seconds <= now / 1000 + AHEAD => return Ok(seconds),
        Some((_, Some(number))) if number >= MILLISECONDS => format!("{EXPECTED}, found milliseconds: {number}"),
        Some((_, Some(seconds))) => format!("{EXPECTED}, found a time in the future: {seconds}"),
        Some((other, None)) => format!("{EXPECTED}, found {}", shown(other)),
        None => format!("{EXPECTED}, found nothing"),
    };
    Err(attribute("timestamp", problem))
}

/// Keeps the attributes that are declared and fit. Without a blueprint every
/// name that could be declared is kept.
fn fitting(
    fields: Option<&BTreeMap<String, Field>>,
    section: &str,
    body: Map<String, Json>,
    dropped: &mut Vec<Dropped>,
) -> Map<String, Json> {
    let check = |name: &str, value: &Json| match fields {
        _ if !is_name(name) => Err("expected a name of letters, digits and _, starting with a letter".to_owned()),
        None => Ok(()),
        Some(fields) => match fields.get(name) {
            Some(field) => field.check_json(value),
            None => Err(format!("expected an attribute that the blueprint declares under {section}")),
        },
    };
    let keep = |(name, value): (String, Json)| match check(&name, &value) {
        Ok(()) => Some((name, value)),
        Err(problem) => {
            dropped.push(attribute(&name, problem));
            None
        }
    };
    body.into_iter().filter_map(keep).collect()
}

fn is_name(name: &str) -> bool {
    name.len() <= MAX_NAME
        && name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn texts(value: &Json) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect()
}

fn whole(problem: String) -> Dropped {
    Dropped { attribute: None, problem }
}

fn attribute(name: &str, problem: String) -> Dropped {
    Dropped { attribute: Some(short(name)), problem }
}

fn found(value: Option<&Json>) -> String {
    value.map_or("nothing".into(), shown)
}

fn shown(value: &Json) -> String {
    match value {
        Json::Array(_) => "an array".into(),
        Json::Object(_) => "an object".into(),
        other => short(&other.to_string()),
    }
}

#[cfg(test)]
mod tests;
