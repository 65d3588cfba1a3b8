//! The messages of 7/CMP, which configurations (`cmx`) and software (`cmx_ota`) share.

use std::collections::VecDeque;

use serde::Serialize;
use serde_json::{Value as Json, json};

use super::answer::Refusal;
use super::body;

/// How many entries of its history an endpoint keeps.
const MAX_HISTORY: usize = 100;

/// Ids and versions that are longer are refused.
const MAX_ID: usize = 256;

/// A request for the current configuration.
#[derive(Debug, Default, PartialEq)]
pub struct Request {
    /// What the endpoint has.
    pub config_id: Option<String>,
    /// Whether it wants pushes.
    pub observe: Option<bool>,
}

/// A report that a configuration was applied or rejected.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Applied {
    /// Of which configuration.
    pub config_id: String,
    /// As of HTTP: 200 to 299 is applied, anything else rejected.
    pub status_code: i64,
    /// Why it was rejected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason_phrase: Option<String>,
}

/// What "not changed" looks like over MQTT; all three have been seen or are specified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unchanged {
    /// `{"statusCode":304,"reasonPhrase":"Not Modified"}`.
    #[default]
    Status,
    /// `{}`, as 7/CMP has it.
    Object,
    /// No payload at all.
    Empty,
}

/// What an endpoint got and what it said about it.
#[derive(Debug, Default)]
pub struct History {
    entries: VecDeque<Entry>,
}

/// One step in the life of a configuration on an endpoint.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// In milliseconds since 1970.
    pub time: u64,
    /// `dispatched`, `applied`, `rejected` or `implicitly applied`.
    pub event: &'static str,
    /// The configuration's name; empty for the default one and for software.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The report's or the document's contents.
    #[serde(flatten)]
    pub applied: Applied,
}

impl Applied {
    /// Whether the endpoint has taken it.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status_code)
    }

    /// A report that nobody sent: asking with an id says that it is applied.
    pub fn implicit(config_id: &str) -> Applied {
        let reason_phrase = Some("Implicitly applied".to_owned());
        Applied { config_id: config_id.to_owned(), status_code: 200, reason_phrase }
    }
}

impl History {
    /// Notes a report.
    pub fn note_report(&mut self, time: u64, name: &str, applied: &Applied) {
        let event = if applied.is_success() { "applied" } else { "rejected" };
        self.note(Entry { time, event, name: name.to_owned(), applied: applied.clone() });
    }

    /// Notes that an id in a request counted as a report.
    pub fn note_implicit(&mut self, time: u64, name: &str, applied: &Applied) {
        self.note(Entry { time, event: "implicitly applied", name: name.to_owned(), applied: applied.clone() });
    }

    /// Notes that a document was sent.
    pub fn note_dispatch(&mut self, time: u64, name: &str, config_id: &str) {
        let applied = Applied { config_id: config_id.to_owned(), status_code: 200, reason_phrase: None };
        self.note(Entry { time, event: "dispatched", name: name.to_owned(), applied });
    }

    fn note(&mut self, entry: Entry) {
        if self.entries.len() >= MAX_HISTORY {
            self.entries.pop_front();
        }
        self.entries.push_back(entry);
    }

    /// All entries, oldest first.
    pub fn entries(&self) -> &VecDeque<Entry> {
        &self.entries
    }
}

/// Reads a request for the current configuration; no payload is `{}`.
pub fn read_request(payload: &[u8]) -> Result<Request, Refusal> {
    let object = body::object(payload, &["configId", "observe"])?;
    let config_id = body::text(&object, "configId")?.map(check_id).transpose()?;
    Ok(Request { config_id, observe: body::boolean(&object, "observe")? })
}

/// Reads a report.
pub fn read_applied(payload: &[u8]) -> Result<Applied, Refusal> {
    let object = body::object(payload, &["configId", "statusCode", "reasonPhrase"])?;
    let config_id = body::text(&object, "configId")?;
    let config_id = check_id(config_id.ok_or_else(|| Refusal::malformed("configId: expected a string"))?)?;
    let status_code = body::integer(&object, "statusCode")?.unwrap_or(200);
    Ok(Applied { config_id, status_code, reason_phrase: body::reason(&object, "reasonPhrase")? })
}

fn check_id(id: String) -> Result<String, Refusal> {
    if id.len() > MAX_ID {
        return Err(Refusal::malformed(format!("configId: expected at most {MAX_ID} bytes")));
    }
    Ok(id)
}

/// The body with a document. The platform adds a status code and a reason to what 7/CMP has.
pub fn response(config_id: &str, config: &Json, strict: bool) -> Vec<u8> {
    let body = if strict {
        json!({"configId": config_id, "config": config})
    } else {
        json!({"configId": config_id, "statusCode": 200, "reasonPhrase": "OK", "config": config})
    };
    body.to_string().into_bytes()
}

impl Unchanged {
    /// The body that says so.
    pub fn body(self) -> Vec<u8> {
        match self {
            Unchanged::Status => Refusal::standard(304).body(),
            Unchanged::Object => b"{}".to_vec(),
            Unchanged::Empty => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_reports_are_read_strictly_but_nulls_are_absent() {
        let request = |config_id: Option<&str>, observe| Request { config_id: config_id.map(str::to_owned), observe };
        for (payload, read) in [
            ("", request(None, None)),
            ("{}", request(None, None)),
            (r#"{"observe":true}"#, request(None, Some(true))),
            (r#"{"configId":"x","observe":null}"#, request(Some("x"), None)),
        ] {
            assert_eq!(read_request(payload.as_bytes()).unwrap(), read, "{payload}");
        }
        for payload in ["[]", "1", r#"{"configId":1}"#, r#"{"observe":"yes"}"#, r#"{"id":42}"#] {
            assert_eq!(read_request(payload.as_bytes()).unwrap_err().status, 400, "{payload}");
        }
        let applied = read_applied(br#"{"configId":"x","statusCode":null,"reasonPhrase":null}"#).unwrap();
        assert_eq!(applied, Applied { config_id: "x".into(), status_code: 200, reason_phrase: None });
        // What Kaa's own Python client sends when it reports its software.
        let vendor = read_applied(br#"{"configId": "1.0", "config": null}"#).unwrap();
        assert_eq!(vendor, Applied { config_id: "1.0".into(), status_code: 200, reason_phrase: None });
        let rejected = read_applied(br#"{"configId":"x","statusCode":400,"reasonPhrase":"no"}"#).unwrap();
        assert!(!rejected.is_success());
        let long = format!(r#"{{"configId":"{}"}}"#, "x".repeat(300));
        for payload in ["", "{}", r#"{"statusCode":200}"#, r#"{"configId":"x","statusCode":"200"}"#, long.as_str()] {
            assert_eq!(read_applied(payload.as_bytes()).unwrap_err().status, 400, "{payload}");
        }
    }
}
