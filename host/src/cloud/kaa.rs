//! The Kaa device API, protocol 1/KP over MQTT: topics `kp1/…`, JSON
//! payloads, one token for each endpoint, several endpoints on a connection.
//!
//! Sources: the public RFCs 1/KP, 2/DCP, 7/CMP, 10/EPMP and 11/CEP, the page
//! "MQTT Topics", and, where those disagree or are silent, the behaviour of
//! Kaa's own clients. What a session sends and expects in which order is in
//! `session::kaa`.

pub mod answer;
pub mod topic;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value as Json, json};

use self::topic::{Answer, Topic};
use super::{Channel, Cloud, Encode, write_alerts};
use crate::clock::{Stamp, TimeFormat};
use crate::config::Endpoint;
use crate::message::{
    Alerts, Attribute, CommandError, CommandResult, DeviceId, Offer, OfferKind, Publication, Time, Uplink, Value,
    json_object, json_of, write_json, write_json_text,
};

/// A tenant's endpoints of one application.
#[derive(Debug, Clone)]
pub struct Kaa {
    /// The application version of endpoints that name none.
    pub app_version: String,
    /// The token of the gateway's own endpoint, if it has one.
    pub token: Option<String>,
    /// The name of a sample's time.
    pub timestamp_field: Arc<str>,
    /// How a sample's time is written.
    pub timestamp_format: TimeFormat,
}

/// Where one endpoint's messages go, and how they are written.
struct EndpointEncoder {
    app_version: String,
    token: String,
    /// The topic of most messages.
    samples: Arc<str>,
    timestamp_field: Arc<str>,
    timestamp_format: TimeFormat,
    /// Measurements that go as plain numbers: name and unit.
    plain: BTreeMap<String, String>,
}

impl Kaa {
    fn channel(&self, app_version: &str, token: &str, plain: BTreeMap<String, String>) -> Channel {
        let encoder = EndpointEncoder {
            app_version: app_version.to_owned(),
            token: token.to_owned(),
            samples: topic(app_version, token, "dcx/json").into(),
            timestamp_field: Arc::clone(&self.timestamp_field),
            timestamp_format: self.timestamp_format,
            plain,
        };
        Channel { name: channel_name(app_version, token), encoder: Arc::new(encoder) }
    }
}

impl Cloud for Kaa {
    fn device(&self, _: &DeviceId, endpoint: Option<&Endpoint>) -> Option<Channel> {
        let Some(Endpoint::Kaa(endpoint)) = endpoint else { return None };
        let app_version = endpoint.app_version.as_ref().unwrap_or(&self.app_version);
        Some(self.channel(app_version, endpoint.token()?, endpoint.plain.clone()))
    }

    fn gateway(&self) -> Option<Channel> {
        Some(self.channel(&self.app_version, self.token.as_ref()?, BTreeMap::new()))
    }

    /// The extension and the first level of the path, which do not hold the token.
    fn kind(&self, topic: &str) -> String {
        let resource = topic::Resource::parse(topic);
        resource.map_or_else(String::new, |resource| {
            format!("{}/{}", resource.extension, resource.path.split('/').next().unwrap_or_default())
        })
    }

    /// The token stands in the fourth level.
    fn shown(&self, topic: &str) -> String {
        let levels = topic.split('/').enumerate().map(|(index, level)| if index == 3 { "***" } else { level });
        levels.collect::<Vec<_>>().join("/")
    }

    /// Answers and pushes at every depth that they have, and nothing of what is sent: between here and Kaa there
    /// may be a broker that sends to whoever subscribes.
    fn subscriptions(&self, channel: &str) -> Vec<String> {
        let Some((app_version, token)) = channel.split_once('/') else { return Vec::new() };
        let paths = ["+", "+/+", "+/+/+", "+/+/+/+"];
        let filter = |path, answer| {
            Topic { app_version, extension: "+", token, path, request: None, answer: Some(answer) }.to_string()
        };
        paths.into_iter().flat_map(|path| [filter(path, Answer::Status), filter(path, Answer::Error)]).collect()
    }
}

/// `<app version>/<token>`.
pub fn channel_name(app_version: &str, token: &str) -> String {
    format!("{app_version}/{token}")
}

/// The topic without a request id; `end` is the extension and the path.
fn topic(app_version: &str, token: &str, end: &str) -> String {
    let (extension, path) = end.split_once('/').unwrap_or((end, ""));
    Topic { app_version, extension, token, path, request: None, answer: None }.to_string()
}

/// The id of a command in this gateway: its number is unique for its endpoint
/// and type only.
pub fn command_id(session: &str, device: &DeviceId, kind: &str, number: i64) -> String {
    format!("{session}/{device}/{kind}/{number}")
}

/// The type and the number in a command's id.
fn kind_and_number(id: &str) -> Option<(&str, i64)> {
    let mut levels = id.rsplit('/');
    let number = levels.next()?.parse().ok()?;
    Some((levels.next()?, number))
}

/// A command error as an HTTP status: what a gateway would answer.
fn status_of(error: &CommandError) -> u16 {
    match error {
        CommandError::InvalidArgument(_) => 400,
        CommandError::Failed(_) => 500,
        CommandError::Unsupported(_) => 501,
        CommandError::DeviceUnreachable(_) => 502,
        CommandError::Busy(_) => 503,
        CommandError::TimedOut(_) => 504,
    }
}

impl EndpointEncoder {
    fn publication(&self, end: &str, payload: impl Into<bytes::Bytes>, joins: bool) -> Publication {
        Publication {
            topic: topic(&self.app_version, &self.token, end).into(),
            payload: payload.into(),
            joins,
            stamp: None,
        }
    }

    fn samples(&self, time: Time, is_own: bool, attributes: &[Attribute], alerts: &Alerts) -> Vec<Publication> {
        let mut all = Vec::with_capacity(1);
        let (mut body, stamp) = self.start(time);
        let empty = body.len();
        for attribute in attributes {
            if let Some(number) = self.plain_number(attribute) {
                all.push(self.publication(&format!("dcx/plain/{}", attribute.name), number, false));
                continue;
            }
            body.push(b',');
            write_json_text(&mut body, &attribute.name);
            body.push(b':');
            write_json(&mut body, &attribute.value);
        }
        write_alerts(&mut body, alerts);
        if body.len() > empty {
            body.push(b'}');
            let stamp = is_own.then_some(stamp);
            all.push(Publication { topic: Arc::clone(&self.samples), payload: body.into(), joins: true, stamp });
        }
        all
    }

    /// `{"timestamp":…` without the closing brace, and where the time stands.
    fn start(&self, time: Time) -> (Vec<u8>, Stamp) {
        let mut body = Vec::with_capacity(128);
        body.push(b'{');
        write_json_text(&mut body, &self.timestamp_field);
        body.push(b':');
        let stamp = Stamp { place: body.len(), time, format: self.timestamp_format };
        body.extend_from_slice(stamp.format.write(time).as_bytes());
        (body, stamp)
    }

    /// A number with its unit right behind it, if the attribute goes so.
    fn plain_number(&self, attribute: &Attribute) -> Option<String> {
        let unit = self.plain.get(&attribute.name)?;
        match attribute.value {
            Value::Integer(number) => Some(format!("{number}{unit}")),
            Value::Float(number) => Some(format!("{number}{unit}")),
            _ => None,
        }
    }

    /// One element of a result message.
    fn result(&self, command: &str, result: &CommandResult) -> Option<Publication> {
        let (kind, number) = kind_and_number(command)?;
        let body = match result {
            Ok(attributes) => {
                let payload = Json::Object(json_object(attributes));
                json!({"id": number, "statusCode": 200, "reasonPhrase": "OK", "payload": payload})
            }
            Err(error) => json!({
                "id": number, "statusCode": status_of(error), "reasonPhrase": error.text(),
                "payload": {"code": error.code(), "message": error.text()},
            }),
        };
        Some(self.publication(&format!("cex/result/{kind}"), body.to_string(), true))
    }

    fn applied(&self, offer: &Offer, result: Result<(), &str>) -> Publication {
        let body = match result {
            Ok(()) => json!({"configId": offer.id, "statusCode": 200, "reasonPhrase": "OK"}),
            Err(reason) => json!({"configId": offer.id, "statusCode": 400, "reasonPhrase": reason}),
        };
        let end = match &offer.kind {
            OfferKind::Configuration(None) => "cmx/applied/json".to_owned(),
            OfferKind::Configuration(Some(name)) => format!("cmx/applied/json/{name}"),
            OfferKind::Software => "cmx_ota/applied/json".to_owned(),
        };
        self.publication(&end, body.to_string(), false)
    }
}

impl Encode for EndpointEncoder {
    fn encode(&self, uplink: &Uplink<'_>) -> Vec<Publication> {
        match uplink {
            Uplink::Telemetry { time, is_own, attributes, alerts, .. } => {
                self.samples(*time, *is_own, attributes, alerts)
            }
            Uplink::Properties { attributes, .. } => {
                let body = metadata_of(attributes);
                vec![self.publication("epmx/update/keys", Json::Object(body).to_string(), false)]
            }
            Uplink::CommandResult { command, result } => self.result(command, result).into_iter().collect(),
            Uplink::Applied { offer, result } => vec![self.applied(offer, *result)],
            // The protocol has neither logs nor progress of a command.
            Uplink::Log { .. } | Uplink::CommandLog { .. } => Vec::new(),
        }
    }
}

/// Properties as metadata: keys are letters, digits and `_`.
pub fn metadata_of(attributes: &[Attribute]) -> Map<String, Json> {
    let is_key = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let key = |name: &str| name.chars().map(|c| if is_key(c) { c } else { '_' }).collect();
    attributes.iter().map(|attribute| (key(&attribute.name), json_of(&attribute.value))).collect()
}
