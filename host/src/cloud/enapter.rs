//! The Enapter MQTT API: topics `v1/from|to/<hardware>/<channel>/…`, JSON
//! payloads, seconds since the epoch, children of one parent.
//!
//! Source of every rule: the public page "MQTT API" and, for logs, alerts and
//! command payloads, the behaviour of Enapter's Python SDK 0.24.

mod id;

use std::sync::Arc;

use serde_json::{Map, Value as Json, json};

use id::readable_id;

use super::{Channel, Cloud, DecodeError, Encode, Greeting, kind_of, write_alerts};
use crate::clock::{Stamp, TimeFormat};
use crate::config::{Endpoint, PropertiesTopic};
use crate::message::{
    Attribute, CommandRequest, DeviceId, Publication, Time, Uplink, json_object, write_json, write_json_text,
};

/// Larger requests are refused: arguments are a few numbers and texts.
const MAX_REQUEST: usize = 256 << 10;
/// Ids are UUIDs; a longer one would bloat the journal.
const MAX_COMMAND_ID: usize = 128;
/// The channel of a v1 UCM itself, beside the one of its device.
const UCM: &str = "ucm";

/// One parent device on the Enapter API.
#[derive(Debug, Clone)]
pub struct Enapter {
    /// The parent's hardware id.
    pub hardware_id: String,
    /// The parent's channel id.
    pub channel_id: String,
    /// The name of the properties topic.
    pub properties_topic: PropertiesTopic,
    /// Whether a v1 blob asks for the channel `ucm` beside the parent.
    pub needs_ucm: bool,
}

impl Enapter {
    fn topic(&self, channel: &str, end: &str) -> String {
        format!("v1/from/{}/{channel}/{end}", self.hardware_id)
    }

    fn properties(&self, channel: &str) -> String {
        match self.properties_topic {
            PropertiesTopic::Properties => self.topic(channel, "v1/properties"),
            PropertiesTopic::Register => self.topic(channel, "v1/register"),
        }
    }

    fn channel(&self, name: String) -> Channel {
        let telemetry = self.topic(&name, "v1/telemetry").into();
        Channel { encoder: Arc::new(Encoder { cloud: self.clone(), channel: name.clone(), telemetry }), name }
    }

    /// The whole set of children, always: each message replaces the one before.
    pub fn greet(&self, time: Time, greeting: &Greeting) -> Vec<Publication> {
        let mut body = start(time, &greeting.properties);
        let children: Map<String, Json> =
            greeting.children.iter().map(|(id, kind)| (id.to_string(), json!({ "type": kind }))).collect();
        body.extend_from_slice(b",\"children\":");
        body.extend_from_slice(Json::Object(children).to_string().as_bytes());
        body.push(b'}');
        let mut all = vec![publication(self.properties(&self.channel_id), body)];
        all.extend(self.ucm_properties(time));
        all
    }

    /// What a v1 UCM says of itself, at first and every 30 s; on this topic,
    /// whatever the one of its device is.
    pub fn ucm_properties(&self, time: Time) -> Option<Publication> {
        let payload = json!({"timestamp": time / 1000, "virtual": true, "lua_api_ver": 1});
        self.needs_ucm.then(|| publication(self.topic(UCM, "v1/register"), payload.to_string()))
    }

    /// What is published every second: a v1 UCM must be heard.
    pub fn keep_alive(&self, time: Time) -> Option<Publication> {
        let payload = json!({"timestamp": time / 1000, "alerts": null});
        self.needs_ucm.then(|| publication(self.topic(UCM, "v1/telemetry"), payload.to_string()))
    }

    /// What a v1 UCM answers to a command for itself, `reboot` or
    /// `upload_lua_script`: that it has none, as Enapter's SDK does.
    pub fn answer_as_ucm(&self, channel: &str, command: &str) -> Option<[Publication; 2]> {
        let response = |state: &str, text: &str| {
            let body = json!({"id": command, "state": state, "payload": {"message": text}});
            publication(self.topic(UCM, "v1/command/responses"), body.to_string())
        };
        let is_meant = self.needs_ucm && channel == UCM;
        is_meant
            .then(|| [response("log", "Executing command..."), response("error", "Command handler not implemented.")])
    }

    /// Reads a command: its channel and what it asks for.
    pub fn decode(&self, topic: &str, payload: &[u8]) -> Result<(String, CommandRequest), DecodeError> {
        let fail = |problem: String, reply_to| Err(DecodeError { topic: shorten(topic), problem, reply_to });
        let prefix = format!("v1/to/{}/", self.hardware_id);
        let channel = topic
            .strip_prefix(&prefix)
            .and_then(|rest| rest.strip_suffix("/v1/command/requests"))
            .filter(|channel| !channel.is_empty() && !channel.contains('/'));
        let Some(channel) = channel else {
            return fail("expected a topic v1/to/<hardware>/<channel>/v1/command/requests".into(), None);
        };
        // Whoever waits for an answer gets one, whatever else is wrong.
        let reply_to = || Some((channel.to_owned(), readable_id(payload)?));
        if payload.len() > MAX_REQUEST {
            return fail(format!("expected at most {MAX_REQUEST} bytes, found {}", payload.len()), reply_to());
        }
        let mut body: Map<String, Json> = match serde_json::from_slice(payload) {
            Ok(Json::Object(body)) => body,
            Ok(other) => return fail(format!("expected a JSON object, found {}", kind_of(&other)), None),
            Err(error) => return fail(format!("expected a JSON object: {error}"), reply_to()),
        };
        let id = match body.remove("id") {
            Some(Json::String(id)) if !id.is_empty() && id.len() <= MAX_COMMAND_ID => id,
            Some(Json::String(id)) => {
                let problem = format!("id: expected 1 to {MAX_COMMAND_ID} bytes, found {}", id.len());
                return fail(problem, (!id.is_empty()).then(|| (channel.to_owned(), id)));
            }
            other => return fail(format!("id: expected a text, found {}", describe(other.as_ref())), None),
        };
        let reply_to = Some((channel.to_owned(), id.clone()));
        let name = match body.remove("name") {
            Some(Json::String(name)) if !name.is_empty() => name,
            other => return fail(format!("name: expected a text, found {}", describe(other.as_ref())), reply_to),
        };
        let arguments = match body.remove("arguments") {
            None | Some(Json::Null) => Map::new(),
            Some(Json::Object(arguments)) => arguments,
            other => {
                return fail(format!("arguments: expected an object, found {}", describe(other.as_ref())), reply_to);
            }
        };
        // Further keys are ignored: the cloud may add some.
        Ok((channel.to_owned(), CommandRequest { id, session: None, name, arguments }))
    }
}

impl Cloud for Enapter {
    fn device(&self, device: &DeviceId, _: Option<&Endpoint>) -> Option<Channel> {
        Some(self.channel(format!("{}--{device}", self.channel_id)))
    }

    fn gateway(&self) -> Option<Channel> {
        Some(self.channel(self.channel_id.clone()))
    }

    fn kind(&self, topic: &str) -> String {
        topic.splitn(5, '/').nth(4).unwrap_or(topic).to_owned()
    }

    fn shown(&self, topic: &str) -> String {
        topic.to_owned()
    }

    fn subscriptions(&self, channel: &str) -> Vec<String> {
        let ucm = (self.needs_ucm && channel == self.channel_id).then_some(UCM);
        let channels = [channel].into_iter().chain(ucm);
        channels.map(|channel| format!("v1/to/{}/{channel}/v1/command/requests", self.hardware_id)).collect()
    }
}

/// Writes to one channel.
struct Encoder {
    cloud: Enapter,
    channel: String,
    /// The topic of most messages.
    telemetry: Arc<str>,
}

impl Encoder {
    fn response(&self, body: &Json) -> Publication {
        publication(self.cloud.topic(&self.channel, "v1/command/responses"), body.to_string())
    }
}

impl Encode for Encoder {
    fn encode(&self, uplink: &Uplink<'_>) -> Vec<Publication> {
        let (cloud, channel) = (&self.cloud, &self.channel);
        let publication = match uplink {
            Uplink::Telemetry { time, is_own, attributes, alerts, .. } => {
                let mut payload = start(*time, attributes);
                write_alerts(&mut payload, alerts);
                payload.push(b'}');
                let stamp = is_own.then(|| stamp(*time));
                Publication { stamp, ..publication(Arc::clone(&self.telemetry), payload) }
            }
            Uplink::Properties { time, attributes } => {
                let mut payload = start(*time, attributes);
                payload.push(b'}');
                Publication { stamp: Some(stamp(*time)), ..publication(cloud.properties(channel), payload) }
            }
            Uplink::Log { time, severity, text, persist } => {
                let body = json!({
                    "timestamp": time / 1000, "message": text, "severity": severity.name(), "persist": persist,
                });
                Publication {
                    stamp: Some(stamp(*time)),
                    ..publication(cloud.topic(channel, "v3/logs"), body.to_string())
                }
            }
            Uplink::CommandLog { command, text } => {
                self.response(&json!({"id": command, "state": "log", "payload": {"message": text}}))
            }
            Uplink::CommandResult { command, result: Ok(attributes) } => {
                let payload = Json::Object(json_object(attributes));
                self.response(&json!({"id": command, "state": "completed", "payload": payload}))
            }
            Uplink::CommandResult { command, result: Err(error) } => {
                let payload = json!({"message": error.text(), "code": error.code()});
                self.response(&json!({"id": command, "state": "error", "payload": payload}))
            }
            // It offers nothing but commands.
            Uplink::Applied { .. } => return Vec::new(),
        };
        vec![publication]
    }
}

fn publication(topic: impl Into<Arc<str>>, payload: impl Into<bytes::Bytes>) -> Publication {
    Publication { topic: topic.into(), payload: payload.into(), joins: false, stamp: None }
}

/// What all payloads with a time begin with.
const TIMESTAMP: &str = "{\"timestamp\":";

/// Where the time of this machine stands in such a payload.
fn stamp(time: Time) -> Stamp {
    Stamp { place: TIMESTAMP.len(), time, format: TimeFormat::Seconds }
}

/// `{"timestamp":<seconds>,"name":value,…` without the closing brace.
fn start(time: Time, attributes: &[Attribute]) -> Vec<u8> {
    let mut body = Vec::with_capacity(64 + attributes.len() * 32);
    body.extend_from_slice(TIMESTAMP.as_bytes());
    drop(serde_json::to_writer(&mut body, &(time / 1000)));
    for attribute in attributes {
        body.push(b',');
        write_json_text(&mut body, &attribute.name);
        body.push(b':');
        write_json(&mut body, &attribute.value);
    }
    body
}

fn describe(value: Option<&Json>) -> &'static str {
    match value {
        None => "nothing",
        Some(Json::String(text)) if text.is_empty() => "an empty text",
        Some(value) => kind_of(value),
    }
}

fn shorten(topic: &str) -> String {
    topic.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Alerts, CommandError, Severity, Value};

    fn cloud() -> Enapter {
        Enapter {
            hardware_id: "S01".into(),
            channel_id: "s".into(),
            properties_topic: PropertiesTopic::Properties,
            needs_ucm: false,
        }
    }

    fn attribute(name: &str, value: Value) -> Attribute {
        Attribute { name: name.into(), value }
    }

    fn check(uplink: &Uplink<'_>, topic: &str, body: &Json) {
        let publication = cloud().channel("s--meter".into()).encoder.encode(uplink).remove(0);
        assert_eq!(&*publication.topic, topic);
        assert_eq!(&serde_json::from_slice::<Json>(&publication.payload).unwrap(), body);
    }

    #[test]
    fn every_uplink_has_its_topic_and_body() {
        let attributes = [attribute("power", Value::Float(4.5)), attribute("until", Value::Unknown)];
        let active = Alerts::Active(vec![("hot".into(), Some("90 C".into())), ("slow".into(), None)]);
        check(
            &Uplink::Telemetry {
                time: 1_759_212_723_999,
                is_own: true,
                attributes: &attributes,
                alerts: &active,
                tells_alerts: false,
            },
            "v1/from/S01/s--meter/v1/telemetry",
            &json!({"timestamp": 1_759_212_723, "power": 4.5, "until": null, "alerts": ["hot", "slow"],
                "alert_details": {"hot": {"errmsg": "90 C"}}}),
        );
        check(
            &Uplink::Telemetry {
                time: 1000,
                is_own: true,
                attributes: &[],
                alerts: &Alerts::Active(vec![]),
                tells_alerts: false,
            },
            "v1/from/S01/s--meter/v1/telemetry",
            &json!({"timestamp": 1, "alerts": []}),
        );
        check(
            &Uplink::Telemetry {
                time: 1000,
                is_own: true,
                attributes: &[],
                alerts: &Alerts::Unknown,
                tells_alerts: false,
            },
            "v1/from/S01/s--meter/v1/telemetry",
            &json!({"timestamp": 1, "alerts": null}),
        );
        check(
            &Uplink::Telemetry {
                time: 1000,
                is_own: true,
                attributes: &[],
                alerts: &Alerts::None,
                tells_alerts: false,
            },
            "v1/from/S01/s--meter/v1/telemetry",
            &json!({"timestamp": 1}),
        );
        check(
            &Uplink::Properties { time: 1000, attributes: &[attribute("model", Value::Text("PM".into()))] },
            "v1/from/S01/s--meter/v1/properties",
            &json!({"timestamp": 1, "model": "PM"}),
        );
        check(
            &Uplink::Log { time: 1000, severity: Severity::Warning, text: "hm", persist: true },
            "v1/from/S01/s--meter/v3/logs",
            &json!({"timestamp": 1, "message": "hm", "severity": "warning", "persist": true}),
        );
        check(
            &Uplink::CommandLog { command: "c1", text: "half way" },
            "v1/from/S01/s--meter/v1/command/responses",
            &json!({"id": "c1", "state": "log", "payload": {"message": "half way"}}),
        );
        check(
            &Uplink::CommandResult { command: "c1", result: &Ok(vec![attribute("new_power", Value::Integer(4700))]) },
            "v1/from/S01/s--meter/v1/command/responses",
            &json!({"id": "c1", "state": "completed", "payload": {"new_power": 4700}}),
        );
        check(
            &Uplink::CommandResult { command: "c1", result: &Err(CommandError::Busy("later".into())) },
            "v1/from/S01/s--meter/v1/command/responses",
            &json!({"id": "c1", "state": "error", "payload": {"message": "later", "code": "busy"}}),
        );
    }

    #[test]
    fn the_greeting_names_all_children_even_when_there_are_none() {
        let mut greeting =
            Greeting { properties: vec![attribute("version", Value::Text("1".into()))], children: vec![] };
        let body = |greeting: &Greeting| {
            let all = cloud().greet(5000, greeting);
            assert_eq!(&*all[0].topic, "v1/from/S01/s/v1/properties");
            serde_json::from_slice::<Json>(&all[0].payload).unwrap()
        };
        assert_eq!(body(&greeting), json!({"timestamp": 5, "version": "1", "children": {}}));
        greeting.children.push((DeviceId::new("inverter_a"), "inverter".into()));
        assert_eq!(
            body(&greeting),
            json!({"timestamp": 5, "version": "1", "children": {"inverter_a": {"type": "inverter"}}})
        );
    }

    #[test]
    fn the_older_properties_topic_and_the_ucm_channel_are_settings() {
        let cloud = Enapter { properties_topic: PropertiesTopic::Register, needs_ucm: true, ..cloud() };
        let all = cloud.greet(5000, &Greeting::default());
        assert_eq!(&*all[0].topic, "v1/from/S01/s/v1/register");
        assert_eq!(&*all[1].topic, "v1/from/S01/ucm/v1/register");
        let alive = cloud.keep_alive(7000).unwrap();
        assert_eq!(&*alive.topic, "v1/from/S01/ucm/v1/telemetry");
        assert_eq!(alive.payload, "{\"timestamp\":7,\"alerts\":null}");
        let topic = |channel: &str| format!("v1/to/S01/{channel}/v1/command/requests");
        assert_eq!(cloud.subscriptions("s"), [topic("s"), topic("ucm")]);
        assert_eq!(cloud.subscriptions("s--meter"), [topic("s--meter")]);
    }

    #[test]
    fn a_v1_ucm_answers_its_own_commands_as_the_sdk_does() {
        let cloud = Enapter { needs_ucm: true, ..cloud() };
        let said = cloud.answer_as_ucm("ucm", "c1").unwrap();
        assert!(said.iter().all(|publication| &*publication.topic == "v1/from/S01/ucm/v1/command/responses"));
        let body = |publication: &Publication| serde_json::from_slice::<Json>(&publication.payload).unwrap();
        assert_eq!(body(&said[0]), json!({"id": "c1", "state": "log", "payload": {"message": "Executing command..."}}));
        let payload = json!({"message": "Command handler not implemented."});
        assert_eq!(body(&said[1]), json!({"id": "c1", "state": "error", "payload": payload}));
        assert!(cloud.answer_as_ucm("s", "c1").is_none());
    }

    #[test]
    fn a_command_is_decoded_with_and_without_arguments() {
        let topic = "v1/to/S01/s--meter/v1/command/requests";
        for (payload, arguments) in [
            (json!({"id": "1", "name": "go", "arguments": {"a": 1}}), json!({"a": 1})),
            (json!({"id": "1", "name": "go", "arguments": null, "future": 1}), json!({})),
            (json!({"id": "1", "name": "go"}), json!({})),
        ] {
            let (channel, request) = cloud().decode(topic, payload.to_string().as_bytes()).unwrap();
            assert_eq!((channel.as_str(), request.id.as_str(), request.name.as_str()), ("s--meter", "1", "go"));
            assert_eq!(Json::Object(request.arguments), arguments);
        }
    }

    #[test]
    fn broken_requests_say_where_and_what_and_who_can_be_told() {
        let topic = "v1/to/S01/s--meter/v1/command/requests";
        let long = "x".repeat(200);
        let long = json!({"id": long, "name": "go"}).to_string();
        let huge = " ".repeat(MAX_REQUEST + 1);
        let deep = "[".repeat(500);
        let (huge_named, deep_named) =
            (format!("{{\"a\":\"{huge}\",\"id\":\"1\"}}"), format!("{{\"id\":\"1\",\"arguments\":{deep}"));
        let deep_before = format!("{{\"arguments\":{}{},\"id\":\"1\"}}", "[".repeat(200_000), "]".repeat(200_000));
        for (topic, payload, problem, replies) in [
            (
                "v1/to/S02/s/v1/command/requests",
                "{}",
                "expected a topic v1/to/<hardware>/<channel>/v1/command/requests",
                false,
            ),
            (
                "v1/to/S01//v1/command/requests",
                "{}",
                "expected a topic v1/to/<hardware>/<channel>/v1/command/requests",
                false,
            ),
            (
                "v1/to/S01/a/b/v1/command/requests",
                "{}",
                "expected a topic v1/to/<hardware>/<channel>/v1/command/requests",
                false,
            ),
            ("", "{}", "expected a topic v1/to/<hardware>/<channel>/v1/command/requests", false),
            (topic, "", "expected a JSON object: EOF while parsing a value at line 1 column 0", false),
            (topic, "{\"id\":", "expected a JSON object: EOF while parsing a value at line 1 column 6", false),
            (topic, "[]", "expected a JSON object, found an array", false),
            (topic, "null", "expected a JSON object, found null", false),
            (topic, &deep, "expected a JSON object: recursion limit exceeded at line 1 column 128", false),
            (topic, &huge, "expected at most 262144 bytes, found 262145", false),
            (topic, &huge_named, "expected at most 262144 bytes, found 262162", true),
            (topic, &deep_named, "expected a JSON object: recursion limit exceeded at line 1 column 149", true),
            (topic, &deep_before, "expected at most 262144 bytes, found 400023", true),
            (
                topic,
                "{\"id\":\"1\",\"name\":",
                "expected a JSON object: EOF while parsing a value at line 1 column 17",
                true,
            ),
            (topic, "{\"name\":\"go\"}", "id: expected a text, found nothing", false),
            (topic, "{\"id\":7,\"name\":\"go\"}", "id: expected a text, found a number", false),
            (topic, "{\"id\":\"\",\"name\":\"go\"}", "id: expected 1 to 128 bytes, found 0", false),
            (topic, &long, "id: expected 1 to 128 bytes, found 200", true),
            (topic, "{\"id\":\"1\"}", "name: expected a text, found nothing", true),
            (topic, "{\"id\":\"1\",\"name\":true}", "name: expected a text, found a boolean", true),
            (topic, "{\"id\":\"1\",\"name\":\"\"}", "name: expected a text, found an empty text", true),
            (
                topic,
                "{\"id\":\"1\",\"name\":\"go\",\"arguments\":[1]}",
                "arguments: expected an object, found an array",
                true,
            ),
            (
                topic,
                "{\"id\":\"1\",\"name\":\"go\",\"arguments\":\"x\"}",
                "arguments: expected an object, found a text",
                true,
            ),
        ] {
            let error = cloud().decode(topic, payload.as_bytes()).unwrap_err();
            assert_eq!((error.problem.as_str(), error.reply_to.is_some()), (problem, replies));
        }
        let not_utf8 = cloud().decode(topic, b"{\"id\":\"\xff\"}").unwrap_err();
        assert!(not_utf8.problem.starts_with("expected a JSON object: "));
    }
}
