//! What a resource answers: a confirmation, data, or a refusal, as 1/KP wants them.

use axum::http::StatusCode;
use serde_json::json;

/// What came of a request.
pub type Outcome = Result<Answer, Refusal>;

/// A positive answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Nothing to tell; without a request id nothing is sent.
    Done,
    /// A body; without a request id it goes to the topic of pushes.
    Data(Vec<u8>),
    /// The endpoint has the newest configuration or software; the body depends on the knob `unchanged`.
    Unchanged,
}

/// A negative answer: `{"statusCode": …, "reasonPhrase": …}`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{status}: {reason}")]
pub struct Refusal {
    /// An HTTP status code.
    pub status: u16,
    /// What was wrong and what was expected.
    pub reason: String,
}

impl Answer {
    /// Makes data of JSON.
    pub fn json(value: &serde_json::Value) -> Answer {
        Answer::Data(value.to_string().into_bytes())
    }
}

impl Refusal {
    /// Makes a refusal with a reason.
    pub fn new(status: u16, reason: impl Into<String>) -> Refusal {
        Refusal { status, reason: reason.into() }
    }

    /// Makes a 400: the payload is not what the resource takes.
    pub fn malformed(reason: impl Into<String>) -> Refusal {
        Refusal::new(400, reason)
    }

    /// Makes a 403.
    pub fn forbidden(reason: impl Into<String>) -> Refusal {
        Refusal::new(403, reason)
    }

    /// Makes a 404.
    pub fn missing(reason: impl Into<String>) -> Refusal {
        Refusal::new(404, reason)
    }

    /// Makes a 507: a store is full.
    pub fn full(reason: impl Into<String>) -> Refusal {
        Refusal::new(507, reason)
    }

    /// Makes a refusal with the standard words for its code.
    pub fn standard(status: u16) -> Refusal {
        Refusal::new(status, standard_phrase(status))
    }

    /// The error object of 1/KP.
    pub fn body(&self) -> Vec<u8> {
        json!({"statusCode": self.status, "reasonPhrase": self.reason}).to_string().into_bytes()
    }
}

/// The standard words for a status code.
pub fn standard_phrase(status: u16) -> &'static str {
    StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("Unknown")
}
