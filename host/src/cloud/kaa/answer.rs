//! What Kaa answers and pushes, read leniently: the documents, the RFCs and
//! the real servers differ. Pure.

use serde_json::{Map, Value as Json};

use super::super::kind_of;

/// Longer texts of the cloud are cut before they go anywhere.
const MAX_TEXT: usize = 500;

/// A failure that the cloud tells.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code} {reason}")]
pub struct Failure {
    /// An HTTP status code.
    pub code: u16,
    /// The text beside it.
    pub reason: String,
}

/// What becomes of a message that the cloud did not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// The message is wrong: it is dropped.
    Drop,
    /// This resource or the whole endpoint is not welcome: the message is
    /// tried again while others pass, and dropped when they do and it does not.
    Aside,
    /// The endpoint is not welcome or the cloud is unwell: later, in order.
    Later,
}

impl Failure {
    /// Reads an error object; a malformed one counts as a server's fault.
    pub fn parse(payload: &[u8]) -> Failure {
        let body: Json = serde_json::from_slice(payload).unwrap_or_default();
        let code = body.get("statusCode").and_then(Json::as_u64).and_then(|code| u16::try_from(code).ok());
        let reason = body.get("reasonPhrase").and_then(Json::as_str).unwrap_or("no reason given");
        Failure { code: code.unwrap_or(500), reason: cut(reason) }
    }

    /// Whether it is the endpoint that is not welcome, and not a service that is unwell.
    pub fn is_of_endpoint(&self) -> bool {
        matches!(self.code, 401 | 403 | 404)
    }

    /// Whether it is of use to send the same again to a resource.
    pub fn remedy(&self, extension: &str, path: &str) -> Remedy {
        match self.code {
            // The command has expired, or was taken back.
            404 | 410 if extension == "cex" && path.starts_with("result/") => Remedy::Drop,
            408 | 425 | 429 => Remedy::Later,
            // The token may be suspended, or not provisioned yet.
            401 | 403 | 404 if (extension, path) == ("dcx", "json") => Remedy::Later,
            // Or this resource has limits of its own: keys that only the platform writes, a store that is full.
            401 | 403 | 404 | 507 if (extension, path) != ("dcx", "json") => Remedy::Aside,
            400..500 => Remedy::Drop,
            _ => Remedy::Later,
        }
    }
}

/// Whether a `/status` confirms: its body may be empty, or say so, or say
/// otherwise.
///
/// A body that makes no sense confirms all the same: the topic says that the
/// request was carried out (1/KP), and what is sent again would be stored twice.
pub fn confirmation(payload: &[u8]) -> Result<(), Failure> {
    match serde_json::from_slice::<Json>(payload) {
        Ok(body) if body.get("statusCode").and_then(Json::as_u64).is_some_and(|code| code >= 400) => {
            Err(Failure::parse(payload))
        }
        _ => Ok(()),
    }
}

/// A command's number and arguments, or what is wrong with it.
pub type Command = Result<(i64, Map<String, Json>), String>;

/// Reads commands: an array of `{"id": number, "payload": any}`. Elements that
/// are wrong come back as texts, the others are kept.
pub fn commands(payload: &[u8]) -> Result<Vec<Command>, String> {
    let body: Json = serde_json::from_slice(payload).map_err(|error| format!("expected a JSON array: {error}"))?;
    let Json::Array(all) = body else {
        return Err(format!("expected a JSON array, found {}", kind_of(&body)));
    };
    Ok(all.into_iter().map(command).collect())
}

fn command(element: Json) -> Command {
    let Json::Object(mut element) = element else {
        return Err(format!("expected an object, found {}", kind_of(&element)));
    };
    let id = element.remove("id").unwrap_or_default();
    let id = id.as_i64().ok_or_else(|| format!("id: expected an integer, found {}", kind_of(&id)))?;
    let arguments = match element.remove("payload") {
        None | Some(Json::Null) => Map::new(),
        Some(Json::Object(arguments)) => arguments,
        // A lone value; the manifest says whether a command takes it.
        Some(value) => Map::from_iter([("payload".to_owned(), value)]),
    };
    Ok((id, arguments))
}

/// What the cloud says about a configuration or about software.
#[derive(Debug, Clone, PartialEq)]
pub enum Offered {
    /// Nothing new: an empty body, `{}`, null, or status 304.
    Unchanged,
    /// Nothing is assigned.
    Nothing,
    /// This document.
    Document {
        /// Its id; of software, the version.
        id: String,
        /// Its content.
        document: Json,
    },
}

/// Reads an answer or a push of `config/json`.
pub fn offered(payload: &[u8]) -> Result<Offered, Failure> {
    let wrong = |reason: String| Failure { code: 0, reason };
    if payload.iter().all(u8::is_ascii_whitespace) {
        return Ok(Offered::Unchanged);
    }
    let body: Json =
        serde_json::from_slice(payload).map_err(|error| wrong(format!("expected a JSON object: {error}")))?;
    let mut body = match body {
        Json::Null => return Ok(Offered::Unchanged),
        Json::Object(body) => body,
        other => return Err(wrong(format!("expected a JSON object, found {}", kind_of(&other)))),
    };
    match body.get("statusCode").and_then(Json::as_u64) {
        Some(304) => return Ok(Offered::Unchanged),
        Some(200..300) | None => {}
        Some(_) => return Err(Failure::parse(payload)),
    }
    match (body.remove("configId"), body.remove("config")) {
        (None, None) => Ok(Offered::Unchanged),
        (Some(Json::String(id)), None | Some(Json::Null)) if id.is_empty() => Ok(Offered::Nothing),
        (None | Some(Json::Null), Some(Json::Null)) => Ok(Offered::Nothing),
        (Some(Json::String(id)), Some(document)) if !id.is_empty() && id.len() <= MAX_TEXT => {
            Ok(Offered::Document { id, document })
        }
        (Some(Json::String(_)), Some(_)) => Err(wrong(format!("configId: expected 1 to {MAX_TEXT} bytes"))),
        (Some(Json::String(_)), None) => Err(wrong("expected `config` beside `configId`".into())),
        (id, _) => Err(wrong(format!("configId: expected a text, found {}", kind_of(&id.unwrap_or_default())))),
    }
}

fn cut(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn all_ways_to_say_that_nothing_changed_are_understood() {
        for body in ["", " ", "{}", "null", r#"{"statusCode":304,"reasonPhrase":"Not Modified"}"#] {
            assert_eq!(offered(body.as_bytes()), Ok(Offered::Unchanged), "{body}");
        }
        for body in [r#"{"configId":"","config":null}"#, r#"{"config":null}"#] {
            assert_eq!(offered(body.as_bytes()), Ok(Offered::Nothing), "{body}");
        }
    }

    #[test]
    fn documents_come_with_and_without_a_status() {
        let document = Offered::Document { id: "7".into(), document: json!({"a": 1}) };
        for body in [
            r#"{"configId":"7","config":{"a":1}}"#,
            r#"{"id":42,"configId":"7","statusCode":200,"reasonPhrase":"ok","config":{"a":1}}"#,
        ] {
            assert_eq!(offered(body.as_bytes()), Ok(document.clone()), "{body}");
        }
    }

    #[test]
    fn broken_answers_say_what_was_expected() {
        for (body, text) in [
            ("[]", "0 expected a JSON object, found an array"),
            ("{", "0 expected a JSON object: EOF while parsing an object at line 1 column 1"),
            (r#"{"configId":7,"config":{}}"#, "0 configId: expected a text, found a number"),
            (r#"{"configId":"","config":{}}"#, "0 configId: expected 1 to 500 bytes"),
            (r#"{"configId":"7"}"#, "0 expected `config` beside `configId`"),
            (r#"{"statusCode":404,"reasonPhrase":"Not Found"}"#, "404 Not Found"),
        ] {
            assert_eq!(offered(body.as_bytes()).unwrap_err().to_string(), text, "{body}");
        }
    }

    #[test]
    fn one_broken_command_does_not_take_the_others_along() {
        let all = commands(br#"[{"id":1,"payload":{"a":2}},{"id":"x"},7,{"id":3,"payload":5},{"id":4}]"#).unwrap();
        let texts: Vec<_> = all.iter().map(|one| one.as_ref().map_err(String::as_str)).collect();
        let map = |value: Json| value.as_object().cloned().unwrap();
        assert_eq!(
            texts,
            [
                Ok(&(1, map(json!({"a": 2})))),
                Err("id: expected an integer, found a text"),
                Err("expected an object, found a number"),
                Ok(&(3, map(json!({"payload": 5})))),
                Ok(&(4, Map::new())),
            ]
        );
        assert_eq!(commands(b"{}").unwrap_err(), "expected a JSON array, found an object");
    }

    #[test]
    fn a_status_may_hold_an_error_and_an_error_may_hold_nothing() {
        assert_eq!(confirmation(b""), Ok(()));
        assert_eq!(confirmation(b"[]"), Ok(()));
        assert_eq!(confirmation(br#"{"statusCode":200}"#), Ok(()));
        assert_eq!(confirmation(br#"{"statusCode":413,"reasonPhrase":"big"}"#).unwrap_err().code, 413);
        assert_eq!(Failure::parse(b"junk").to_string(), "500 no reason given");
    }

    #[test]
    fn what_is_refused_is_dropped_or_tried_again_by_its_code_and_its_resource() {
        for (code, extension, path, remedy) in [
            (400, "dcx", "json", Remedy::Drop),
            (413, "epmx", "update/keys", Remedy::Drop),
            (403, "dcx", "json", Remedy::Later),
            (404, "dcx", "json", Remedy::Later),
            (404, "dcx", "plain/x", Remedy::Aside),
            (403, "epmx", "update/keys", Remedy::Aside),
            (507, "epmx", "update/keys", Remedy::Aside),
            (507, "dcx", "json", Remedy::Later),
            (404, "cex", "result/go", Remedy::Drop),
            (403, "cex", "result/go", Remedy::Aside),
            (401, "cmx", "applied/json", Remedy::Aside),
            (429, "cex", "result/go", Remedy::Later),
            (503, "cmx", "applied/json", Remedy::Later),
        ] {
            let failure = Failure { code, reason: String::new() };
            assert_eq!(failure.remedy(extension, path), remedy, "{code} {extension}/{path}");
        }
    }
}
