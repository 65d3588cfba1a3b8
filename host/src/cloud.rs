//! What differs between clouds: topics and payloads, as pure functions.
//!
//! No state, no IO, no clock. Sessions and devices call it; adding a cloud is
//! one file here and one variant in the configuration.

pub mod enapter;

use crate::message::{Attribute, DeviceId, Downlink, Publication, Time, Uplink};

/// The device side of one cloud's MQTT API.
pub trait Cloud: Send + Sync {
    /// The address of a device.
    fn channel(&self, device: &DeviceId) -> String;

    /// The address of the gateway itself.
    fn gateway_channel(&self) -> String;

    /// The topics on which messages for a channel arrive.
    fn subscriptions(&self, channel: &str) -> Vec<String>;

    /// What is published after every connect and every change of the children.
    fn greet(&self, greeting: &Greeting) -> Vec<Publication>;

    /// What is published over and over while connected.
    fn keep_alive(&self, time: Time) -> Vec<Publication>;

    /// Encodes a message of a channel.
    fn encode(&self, channel: &str, uplink: &Uplink<'_>) -> Publication;

    /// Decodes what arrived.
    fn decode(&self, topic: &str, payload: &[u8]) -> Result<Downlink, DecodeError>;
}

/// What a gateway says about itself.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Greeting {
    /// The present time.
    pub time: Time,
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
