//! What differs between clouds: addresses, topics and payloads, as pure
//! functions.
//!
//! No state, no IO, no clock. Routers encode with it; how a cloud talks over
//! one connection is a dialogue of the session.

pub mod enapter;
pub mod kaa;

use std::sync::Arc;

use serde_json::{Map, Value as Json, json};

use crate::config::Endpoint;
use crate::message::{Alerts, Attribute, DeviceId, Publication, Uplink};

/// The device side of one cloud's MQTT API.
pub trait Cloud: Send + Sync {
    /// The address of a device; none when it has none in this cloud.
    fn device(&self, device: &DeviceId, endpoint: Option<&Endpoint>) -> Option<Channel>;

    /// The address of the gateway itself; none when it has none.
    fn gateway(&self) -> Option<Channel>;

    /// What a message on a topic is, whatever its channel: messages of one kind
    /// fare alike on their way.
    fn kind(&self, topic: &str) -> String;

    /// A topic as it may be logged: without what is a secret in it.
    fn shown(&self, topic: &str) -> String;

    /// The topics on which messages for a channel arrive.
    fn subscriptions(&self, channel: &str) -> Vec<String>;
}

/// Encodes the messages of one channel.
pub trait Encode: Send + Sync {
    /// The publications for a message; none when the cloud has no use for it.
    fn encode(&self, uplink: &Uplink<'_>) -> Vec<Publication>;
}

/// An address in a cloud.
#[derive(Clone)]
pub struct Channel {
    /// Its name. For a cloud where the address is a secret, as Kaa's tokens
    /// are, it must not be logged.
    pub name: String,
    /// How to write to it.
    pub encoder: Arc<dyn Encode>,
}

/// What a gateway says about itself.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Greeting {
    /// The gateway's own properties.
    pub properties: Vec<Attribute>,
    /// All devices of the session: id and child type.
    pub children: Vec<(DeviceId, String)>,
}

/// A message from the cloud that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{topic}: {problem}")]
pub struct DecodeError {
    /// Where it arrived.
    pub topic: String,
    /// What was wrong and what was expected.
    pub problem: String,
    /// The channel and the command that can be told so.
    pub reply_to: Option<(String, String)>,
}

/// Appends `,"alerts":…` and their details: `[]` says that all is well, null
/// that nothing is known.
fn write_alerts(body: &mut Vec<u8>, alerts: &Alerts) {
    let active = match alerts {
        Alerts::None => return,
        Alerts::Unknown => return body.extend_from_slice(b",\"alerts\":null"),
        Alerts::Active(active) => active,
    };
    let ids: Vec<&str> = active.iter().map(|(id, _)| id.as_str()).collect();
    body.extend_from_slice(b",\"alerts\":");
    drop(serde_json::to_writer(&mut *body, &ids));
    let details: Map<String, Json> =
        active.iter().filter_map(|(id, details)| Some((id.clone(), json!({ "errmsg": details.as_ref()? })))).collect();
    if !details.is_empty() {
        body.extend_from_slice(b",\"alert_details\":");
        body.extend_from_slice(Json::Object(details).to_string().as_bytes());
    }
}

fn kind_of(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "a boolean",
        Json::Number(_) => "a number",
        Json::String(_) => "a text",
        Json::Array(_) => "an array",
        Json::Object(_) => "an object",
    }
}
