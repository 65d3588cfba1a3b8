//! The import `metadata`: key-values that the cloud holds.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value as Json};

use super::contract::sandgate::driver::metadata::MetadataError;
use super::state::State;
use crate::message::{Attribute, Value, attributes_of, check_document, json_object, size_of_attribute};
use crate::question::{NoAnswer, Query, ask};

const MAX_KEY: usize = 256;
const MAX_SIZE: usize = 64 << 10;
/// Shorter than what a call may take, so that the driver gets the answer.
const PATIENCE: Duration = Duration::from_secs(8);

impl State {
    async fn ask_metadata(&mut self, query: Query) -> Result<Bytes, MetadataError> {
        let route = self.outlet.routes.iter().find_map(|route| Some((route.questions.clone()?, &route.channel.name)));
        let (questions, channel) = route.ok_or(MetadataError::Unsupported)?;
        let answer = ask(&questions, channel, query);
        let answer = tokio::time::timeout(PATIENCE, answer).await;
        answer.unwrap_or(Err(NoAnswer::TimedOut)).map_err(|error| match error {
            NoAnswer::Unavailable => MetadataError::Unavailable,
            NoAnswer::TimedOut => MetadataError::TimedOut,
            NoAnswer::Refused(code, reason) => MetadataError::Refused(format!("{code} {reason}")),
        })
    }
}

impl State {
    pub(super) async fn metadata_keys(&mut self) -> Result<Vec<String>, MetadataError> {
        let answer = self.ask_metadata(Query::MetadataKeys).await?;
        serde_json::from_slice(&answer).map_err(|error| wrong("an array of texts", &error))
    }

    pub(super) async fn metadata(&mut self, keys: Vec<String>) -> Result<Vec<Attribute>, MetadataError> {
        let answer = self.ask_metadata(Query::Metadata(checked(keys)?)).await?;
        let all: Map<String, Json> = serde_json::from_slice(&answer).map_err(|error| wrong("an object", &error))?;
        Ok(attributes_of(all))
    }

    pub(super) async fn replace_metadata(&mut self, entries: Vec<Attribute>) -> Result<(), MetadataError> {
        self.ask_metadata(Query::ReplaceMetadata(object(entries)?)).await.map(drop)
    }

    pub(super) async fn merge_metadata(&mut self, entries: Vec<Attribute>) -> Result<(), MetadataError> {
        self.ask_metadata(Query::MergeMetadata(object(entries)?)).await.map(drop)
    }

    pub(super) async fn delete_metadata(&mut self, keys: Vec<String>) -> Result<(), MetadataError> {
        let keys = checked(keys)?;
        if keys.is_empty() {
            return Err(MetadataError::InvalidArgument("expected at least one key".into()));
        }
        self.ask_metadata(Query::DeleteMetadata(keys)).await.map(drop)
    }
}

/// Entries as a JSON object.
fn object(entries: Vec<Attribute>) -> Result<Map<String, Json>, MetadataError> {
    let invalid = |text: String| Err(MetadataError::InvalidArgument(text));
    if entries.is_empty() {
        return invalid("expected at least one entry".into());
    }
    if entries.iter().map(size_of_attribute).sum::<usize>() > MAX_SIZE {
        return Err(MetadataError::TooLarge(u32::try_from(MAX_SIZE).unwrap_or(u32::MAX)));
    }
    checked(entries.iter().map(|entry| entry.name.clone()).collect())?;
    for entry in &entries {
        match &entry.value {
            Value::Json(text) => {
                if let Err(problem) = check_document(text) {
                    return invalid(format!("{}: {problem}", entry.name));
                }
            }
            Value::Float(number) if !number.is_finite() => {
                return invalid(format!("{}: expected a finite number", entry.name));
            }
            _ => {}
        }
    }
    Ok(json_object(&entries))
}

fn checked(keys: Vec<String>) -> Result<Vec<String>, MetadataError> {
    let mut seen = HashSet::new();
    for key in &keys {
        let is_key = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if key.is_empty() || key.len() > MAX_KEY || !key.chars().all(is_key) {
            let shown: String = key.chars().take(60).collect();
            let text = format!("key {shown:?}: expected 1 to {MAX_KEY} letters, digits and _");
            return Err(MetadataError::InvalidArgument(text));
        }
        if !seen.insert(key) {
            return Err(MetadataError::InvalidArgument(format!("key {key:?} stands twice")));
        }
    }
    Ok(keys)
}

fn wrong(expected: &str, error: &serde_json::Error) -> MetadataError {
    MetadataError::InvalidResponse(format!("expected {expected}: {error}"))
}
