//! The contract's values and attributes, and what they are in JSON.

use serde_json::{Map, Value as Json};

pub use crate::contract::{Attribute, Rejection, Value};

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
