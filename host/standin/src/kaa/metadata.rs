//! Endpoint metadata (10/EPMP, extension `epmx`): key-values that an endpoint and the platform share.
//!
//! The service calls `handle` for devices, who may not touch hidden and read-only keys,
//! and `replace` and `merge` for people.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value as Json};

use super::answer::{Answer, Outcome, Refusal};
use super::body;

/// Maximum keys of an endpoint …
pub const MAX_KEYS: usize = 1000;
/// … and their bytes of JSON.
pub const MAX_BYTES: usize = 32 << 10;

/// What devices may not do with which keys.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Keys that devices can read only.
    pub read_only: BTreeSet<String>,
    /// Keys that devices can neither read nor write.
    pub hidden: BTreeSet<String>,
}

/// The metadata of one endpoint.
#[derive(Debug, Default)]
pub struct Metadata {
    values: BTreeMap<String, Json>,
}

impl Metadata {
    /// Answers a device.
    pub fn handle(&mut self, resource: &[&str], payload: &[u8], access: &Access) -> Outcome {
        match resource {
            ["get", "keys"] => Ok(Answer::json(&self.keys(access))),
            ["get"] => self.get(payload, access),
            ["update"] => self.update(read_values(payload)?, access, false),
            ["update", "keys"] => self.update(read_values(payload)?, access, true),
            ["delete", "keys"] => self.delete(&read_keys(&body::json(payload)?, "payload", 1)?, access),
            _ => {
                let known = "get, get/keys, update, update/keys or delete/keys";
                Err(Refusal::missing(format!("resource {:?}: expected {known}", resource.join("/"))))
            }
        }
    }

    /// All values.
    pub fn all(&self) -> &BTreeMap<String, Json> {
        &self.values
    }

    /// Replaces everything, as the platform may.
    pub fn replace(&mut self, values: Map<String, Json>) -> Result<(), Refusal> {
        check_keys(&values)?;
        self.put(values.into_iter().collect())
    }

    /// Replaces some values, as the platform may.
    pub fn merge(&mut self, values: Map<String, Json>) -> Result<(), Refusal> {
        check_keys(&values)?;
        let mut next = self.values.clone();
        next.extend(values);
        self.put(next)
    }

    fn keys(&self, access: &Access) -> Json {
        self.values.keys().filter(|key| !access.hidden.contains(*key)).cloned().collect()
    }

    fn get(&self, payload: &[u8], access: &Access) -> Outcome {
        let request = body::object(payload, &["keys"])?;
        let visible = self.values.iter().filter(|(key, _)| !access.hidden.contains(*key));
        let Some(keys) = request.get("keys") else {
            let all: Map<String, Json> = visible.map(|(key, value)| (key.clone(), value.clone())).collect();
            return Ok(Answer::json(&Json::Object(all)));
        };
        let keys = read_keys(keys, "keys", 0)?;
        if let Some(key) = keys.intersection(&access.hidden).next() {
            return Err(Refusal::forbidden(format!("key {key}: devices may not read it")));
        }
        // A key that does not exist is left out; what the platform does is not documented.
        let wanted = visible.filter(|(key, _)| keys.contains(*key));
        let found: Map<String, Json> = wanted.map(|(key, value)| (key.clone(), value.clone())).collect();
        Ok(Answer::json(&Json::Object(found)))
    }

    fn update(&mut self, values: Map<String, Json>, access: &Access, merge: bool) -> Outcome {
        if let Some(key) = values.keys().find(|key| !access.is_writable(key)) {
            return Err(Refusal::forbidden(format!("key {key}: devices may not write it")));
        }
        let mut next = self.values.clone();
        // Replacing deletes what is not listed, but never what the device may not write.
        next.retain(|key, _| merge || !access.is_writable(key));
        next.extend(values);
        self.put(next)?;
        Ok(Answer::Done)
    }

    fn delete(&mut self, keys: &BTreeSet<String>, access: &Access) -> Outcome {
        if let Some(key) = keys.iter().find(|key| !access.is_writable(key)) {
            return Err(Refusal::forbidden(format!("key {key}: devices may not delete it")));
        }
        self.values.retain(|key, _| !keys.contains(key));
        Ok(Answer::Done)
    }

    fn put(&mut self, next: BTreeMap<String, Json>) -> Result<(), Refusal> {
        let bytes: usize = next.iter().map(|(key, value)| key.len() + value.to_string().len()).sum();
        if next.len() > MAX_KEYS || bytes > MAX_BYTES {
            return Err(Refusal::full(format!("metadata: expected at most {MAX_KEYS} keys and {MAX_BYTES} bytes")));
        }
        self.values = next;
        Ok(())
    }
}

impl Access {
    fn is_writable(&self, key: &str) -> bool {
        !self.read_only.contains(key) && !self.hidden.contains(key)
    }
}

fn read_values(payload: &[u8]) -> Result<Map<String, Json>, Refusal> {
    match body::json(payload)? {
        Json::Object(values) if values.is_empty() => Err(Refusal::malformed("payload: expected at least one key")),
        Json::Object(values) => check_keys(&values).map(|()| values),
        other => Err(Refusal::malformed(format!("payload: expected an object, found {}", body::kind(&other)))),
    }
}

fn check_keys(values: &Map<String, Json>) -> Result<(), Refusal> {
    values.keys().try_for_each(|key| check_key(key))
}

fn check_key(key: &str) -> Result<(), Refusal> {
    if !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return Ok(());
    }
    Err(Refusal::malformed(format!("key {:?}: expected a-z, A-Z, 0-9 and _", body::shortened(key))))
}

fn read_keys(value: &Json, place: &str, least: usize) -> Result<BTreeSet<String>, Refusal> {
    let malformed = |found: &str| Refusal::malformed(format!("{place}: expected an array of unique keys, {found}"));
    let Json::Array(items) = value else {
        return Err(malformed(&format!("found {}", body::kind(value))));
    };
    let mut keys = BTreeSet::new();
    for item in items {
        let key = item.as_str().ok_or_else(|| malformed(&format!("found {} in it", body::kind(item))))?;
        check_key(key)?;
        if !keys.insert(key.to_owned()) {
            return Err(malformed(&format!("found {key} twice")));
        }
    }
    if keys.len() < least {
        return Err(malformed("found an empty one"));
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn access() -> Access {
        let set = |key: &str| BTreeSet::from([key.to_owned()]);
        Access { read_only: set("serial"), hidden: set("secret") }
    }

    fn filled() -> Metadata {
        let mut metadata = Metadata::default();
        let values = json!({"name": "Sensor 1", "location": {"lat": 1}, "serial": "S1", "secret": 7});
        metadata.replace(values.as_object().unwrap().clone()).unwrap();
        metadata
    }

    #[test]
    fn devices_see_and_change_what_they_may() {
        let data = |value: Json| Ok(Answer::json(&value));
        let done = Ok(Answer::Done);
        for (resource, payload, answer, after) in [
            ("get/keys", "", data(json!(["location", "name", "serial"])), None),
            ("get/keys", "rubbish", data(json!(["location", "name", "serial"])), None),
            ("get", "", data(json!({"location": {"lat": 1}, "name": "Sensor 1", "serial": "S1"})), None),
            ("get", r#"{"keys":["name","nothing"]}"#, data(json!({"name": "Sensor 1"})), None),
            ("get", r#"{"keys":[]}"#, data(json!({})), None),
            ("update", r#"{"name":"new"}"#, done.clone(), Some(json!({"name": "new", "secret": 7, "serial": "S1"}))),
            (
                "update/keys",
                r#"{"location":null}"#,
                done.clone(),
                Some(json!({"location": null, "name": "Sensor 1", "secret": 7, "serial": "S1"})),
            ),
            (
                "delete/keys",
                r#"["location","unknown"]"#,
                done.clone(),
                Some(json!({"name": "Sensor 1", "secret": 7, "serial": "S1"})),
            ),
        ] {
            let mut metadata = filled();
            let before = json!(metadata.all());
            let resource: Vec<&str> = resource.split('/').collect();
            assert_eq!(metadata.handle(&resource, payload.as_bytes(), &access()), answer, "{resource:?} {payload}");
            assert_eq!(json!(metadata.all()), after.unwrap_or(before), "{resource:?} {payload}");
        }
    }

    #[test]
    fn a_refused_request_changes_nothing() {
        let many: Map<String, Json> = (0..=MAX_KEYS).map(|key| (format!("k{key}"), json!(1))).collect();
        let many = Json::Object(many).to_string();
        for (resource, payload, status) in [
            ("get", r#"{"keys":["secret"]}"#, 403),
            ("get", r#"{"keys":["name","name"]}"#, 400),
            ("get", r#"{"keys":"name"}"#, 400),
            ("get", r#"{"other":1}"#, 400),
            ("update", "", 400),
            ("update", "{}", 400),
            ("update", "[]", 400),
            ("update", r#"{"a-b":1}"#, 400),
            ("update", r#"{"serial":"x"}"#, 403),
            ("update/keys", r#"{"name":"x","secret":1}"#, 403),
            ("update/keys", r#"["name"]"#, 400),
            ("update", many.as_str(), 507),
            ("delete/keys", "[]", 400),
            ("delete/keys", "[1]", 400),
            ("delete/keys", r#"["serial"]"#, 403),
            ("delete", r#"["name"]"#, 404),
            ("", "", 404),
        ] {
            let mut metadata = filled();
            let resource: Vec<&str> = resource.split('/').collect();
            let refusal = metadata.handle(&resource, payload.as_bytes(), &access()).unwrap_err();
            assert_eq!(refusal.status, status, "{resource:?} {payload}: {}", refusal.reason);
            assert_eq!(metadata.all(), filled().all());
        }
    }
}
