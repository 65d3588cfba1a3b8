//! Reads the payloads of requests; says in one sentence what is wrong with one.
//!
//! The extensions call it. Keys with the value null count as absent, because a vendor
//! client always sends all keys.

use serde_json::{Map, Value as Json};

use super::answer::Refusal;

/// Larger payloads are refused with 413.
pub const MAX_LENGTH: usize = 1 << 20;

/// Reads any JSON; nesting is limited to 128.
pub fn json(payload: &[u8]) -> Result<Json, Refusal> {
    if payload.is_empty() {
        return Err(Refusal::malformed("payload: expected JSON, found nothing"));
    }
    serde_json::from_slice(payload).map_err(|error| Refusal::malformed(format!("payload: {error}")))
}

/// Reads an object that has no other keys than these; nothing counts as an empty one.
pub fn object(payload: &[u8], keys: &[&str]) -> Result<Map<String, Json>, Refusal> {
    if payload.is_empty() {
        return Ok(Map::new());
    }
    match json(payload)? {
        Json::Object(object) => only(object, "payload", keys),
        other => Err(Refusal::malformed(format!("payload: expected an object, found {}", kind(&other)))),
    }
}

/// Refuses an object with keys other than these; those that are null count as absent, whatever they are called.
pub fn only(object: Map<String, Json>, place: &str, keys: &[&str]) -> Result<Map<String, Json>, Refusal> {
    let object: Map<String, Json> = object.into_iter().filter(|(_, value)| !value.is_null()).collect();
    if let Some(key) = object.keys().find(|key| !keys.contains(&key.as_str())) {
        let keys = keys.join(", ");
        return Err(Refusal::malformed(format!("{place}: unknown key {:?}, expected {keys}", shortened(key))));
    }
    Ok(object)
}

/// A text, or None if the key is absent.
pub fn text(object: &Map<String, Json>, key: &str) -> Result<Option<String>, Refusal> {
    match object.get(key) {
        None => Ok(None),
        Some(Json::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(Refusal::malformed(format!("{key}: expected a string, found {}", kind(other)))),
    }
}

/// A boolean, or None if the key is absent.
pub fn boolean(object: &Map<String, Json>, key: &str) -> Result<Option<bool>, Refusal> {
    match object.get(key) {
        None => Ok(None),
        Some(Json::Bool(value)) => Ok(Some(*value)),
        Some(other) => Err(Refusal::malformed(format!("{key}: expected a boolean, found {}", kind(other)))),
    }
}

/// An integer, or None if the key is absent.
pub fn integer(object: &Map<String, Json>, key: &str) -> Result<Option<i64>, Refusal> {
    match object.get(key) {
        None => Ok(None),
        Some(value) => match value.as_i64() {
            Some(number) => Ok(Some(number)),
            None => Err(Refusal::malformed(format!("{key}: expected an integer, found {}", kind(value)))),
        },
    }
}

/// The name of a JSON type, for errors.
pub fn kind(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "a boolean",
        Json::Number(_) => "a number",
        Json::String(_) => "a string",
        Json::Array(_) => "an array",
        Json::Object(_) => "an object",
    }
}

/// A reason that a device gives, cut where it gets too long to keep.
pub fn reason(object: &Map<String, Json>, key: &str) -> Result<Option<String>, Refusal> {
    Ok(text(object, key)?.map(|reason| cut(&reason, 500)))
}

/// A text that is short enough for an error.
pub fn shortened(text: &str) -> String {
    cut(text, 40)
}

/// The first characters of a text.
pub fn cut(text: &str, length: usize) -> String {
    match text.char_indices().nth(length) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}
