//! The stand-in's core: one message of a device in, answers and pushes out.
//!
//! Pure: it owns all state, does no IO and is told the time. `cloud` calls it and carries
//! out what it has put into `outgoing`; `platform` holds the part that people use.

mod extensions;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use super::answer::{Answer, Outcome, Refusal};
use super::body;
use super::configurations::{Documents, IdForm};
use super::endpoint::Endpoint;
use super::events::Events;
use super::faults::Faults;
use super::metadata::Access;
use super::routes::{ConnectionId, Routes};
use super::software::Catalogue;
use super::topic::{Topic, TopicError};
use super::uploads::Uploads;

/// Maximum endpoints.
pub const MAX_ENDPOINTS: usize = 10_000;
/// Maximum bytes of the samples of all endpoints together; the largest endpoint gives way.
pub const MAX_SAMPLE_BYTES: usize = 256 << 20;

const EXTENSIONS: [&str; 8] = ["dcx", "epmx", "cex", "cmx", "cmx_ota", "bcx", "rsx", "tsx"];

/// How the platform is set up.
#[derive(Debug, Clone)]
pub struct Rules {
    /// App version names and their applications. Empty: every name is accepted, and belongs to
    /// the application whose name is the part before its last `-`.
    pub applications: BTreeMap<String, String>,
    /// Whether an unknown token makes a new endpoint.
    pub auto_provision: bool,
    /// What devices may not do with which metadata.
    pub access: Access,
    /// Whether `dcx` takes plain samples and any path that begins with `json`.
    pub relaxed_path: bool,
    /// How long upload tokens are valid.
    pub upload_token_lifetime: Duration,
    /// What configuration ids look like.
    pub config_id: IdForm,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            applications: BTreeMap::new(),
            auto_provision: true,
            access: Access::default(),
            relaxed_path: true,
            upload_token_lifetime: Duration::from_secs(3600),
            config_id: IdForm::default(),
        }
    }
}

/// The whole state of the stand-in.
#[derive(Debug, Default)]
pub struct Service {
    pub(super) rules: Rules,
    pub(super) endpoints: BTreeMap<String, Endpoint>,
    pub(super) defaults: Documents,
    pub(super) catalogue: Catalogue,
    pub(super) uploads: Uploads,
    pub(super) faults: Faults,
    pub(super) events: Events,
    pub(super) routes: Routes,
    /// What is to be sent, in this order.
    pub(super) outgoing: Vec<Dispatch>,
    sample_bytes: usize,
}

/// A message from a device.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// How it came.
    pub source: Source,
    /// Its topic; over HTTP the path.
    pub topic: &'a str,
    /// Its payload.
    pub payload: &'a [u8],
}

/// How a message came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Over this connection with this QoS.
    Mqtt(ConnectionId, u8),
    /// By the HTTP binding, which has no pushes.
    Http,
}

/// What came of a message.
#[derive(Debug)]
pub struct Reaction {
    /// What the HTTP binding answers; the answer over MQTT is in `outgoing`.
    pub outcome: Outcome,
    /// Whether the connection is to be closed.
    pub close: bool,
}

/// Something to send.
#[derive(Debug, Clone, PartialEq)]
pub struct Dispatch {
    /// To whom.
    pub to: Destination,
    /// The topic.
    pub topic: String,
    /// The payload.
    pub payload: Vec<u8>,
    /// The QoS.
    pub qos: u8,
    /// How long it is held back.
    pub delay: Duration,
}

/// Who gets something.
#[derive(Debug, Clone, PartialEq)]
pub enum Destination {
    /// This connection.
    Connection(ConnectionId),
    /// Whoever speaks for this endpoint when it is sent.
    Endpoint(String),
}

impl Service {
    /// Makes an empty one.
    pub fn new(rules: Rules) -> Service {
        Service { rules, ..Service::default() }
    }

    /// Takes a message and puts what follows from it into `outgoing`.
    pub fn handle(&mut self, now: u64, message: Message<'_>) -> Reaction {
        let topic = match Topic::parse(message.topic) {
            Ok(topic) => topic,
            Err(error) => return self.reject_topic(now, message, error),
        };
        let interference = self.faults.interfere(&topic.extension, &topic.token);
        if interference.close == Some(false) {
            self.events.note(now, "fault", Some(&topic.token), format!("{topic} lost, connection dropped"));
            return Reaction { outcome: Err(Refusal::standard(503)), close: true };
        }
        let mut delay = Duration::ZERO;
        let mut newly_attached = false;
        let outcome = self.admit(now, &topic).and_then(|()| {
            newly_attached = self.attach(now, message.source, &topic);
            if let Some(status) = interference.error {
                return Err(Refusal::standard(status));
            }
            if let Some(timeout) = interference.reliable_timeout {
                delay = timeout;
                return Err(Refusal::new(504, "a reliable receiver did not answer in time"));
            }
            if message.payload.len() > body::MAX_LENGTH {
                let found = message.payload.len();
                return Err(Refusal::new(
                    413,
                    format!("payload of {found} bytes: expected at most {}", body::MAX_LENGTH),
                ));
            }
            self.carry_out(now, &topic, message.payload)
        });
        self.note_outcome(now, &topic, &outcome);
        let close = interference.close.is_some();
        if !close {
            self.reply(message.source, &topic, &outcome, delay);
        }
        if newly_attached {
            self.greet(now, &topic.token, &topic.extension);
        }
        Reaction { outcome, close }
    }

    /// Forgets a connection and the endpoints on it.
    pub fn close(&mut self, now: u64, connection: ConnectionId) {
        for token in self.routes.close(connection) {
            self.events.note(now, "detached", Some(&token), "connection closed".to_owned());
        }
    }

    fn reject_topic(&mut self, now: u64, message: Message<'_>, error: TopicError) -> Reaction {
        let shown = body::shortened(message.topic);
        let refusal = Refusal::malformed(error.to_string());
        match (error, message.source) {
            (TopicError::Foreign(reason), _) => {
                self.events.note(now, "dropped", None, format!("{shown}: {reason}"));
            }
            (TopicError::Malformed(reason), source) => {
                self.events.note(now, "refused", None, format!("{shown}: {reason}"));
                if let Source::Mqtt(connection, qos) = source {
                    let (to, topic) = (Destination::Connection(connection), format!("{}/error", message.topic));
                    self.outgoing.push(Dispatch { to, topic, payload: refusal.body(), qos, delay: Duration::ZERO });
                }
            }
        }
        Reaction { outcome: Err(refusal), close: self.faults.closes_on_bad_topic() }
    }

    /// Checks app version and token; makes the endpoint if it is new and may be.
    fn admit(&mut self, now: u64, topic: &Topic) -> Result<(), Refusal> {
        let application = self.application(&topic.app_version)?;
        if !self.endpoints.contains_key(&topic.token) {
            if !self.rules.auto_provision {
                return Err(Refusal::missing(format!("token {}: not known", topic.token)));
            }
            self.provision(now, &topic.token, &topic.app_version)?;
        }
        let Some(endpoint) = self.endpoints.get_mut(&topic.token) else {
            return Err(Refusal::missing(format!("token {}: not known", topic.token)));
        };
        if !self.rules.applications.is_empty() && endpoint.application != application {
            let reason = format!("token {}: not known in application {application}", topic.token);
            return Err(Refusal::missing(reason));
        }
        endpoint.admit()?;
        endpoint.last_seen = now;
        Ok(())
    }

    /// The application of an app version.
    pub(super) fn application(&self, app_version: &str) -> Result<String, Refusal> {
        if self.rules.applications.is_empty() {
            let name = app_version.rsplit_once('-').map_or(app_version, |(name, _)| name);
            return Ok(name.to_owned());
        }
        let found = self.rules.applications.get(app_version).cloned();
        found.ok_or_else(|| Refusal::missing(format!("app version {app_version}: not known")))
    }

    /// Makes an endpoint.
    pub(super) fn provision(&mut self, now: u64, token: &str, app_version: &str) -> Result<(), Refusal> {
        if self.endpoints.len() >= MAX_ENDPOINTS {
            return Err(Refusal::full(format!("endpoints: expected at most {MAX_ENDPOINTS}")));
        }
        let application = self.application(app_version)?;
        self.endpoints.insert(token.to_owned(), Endpoint::new(&application, app_version));
        self.events.note(now, "token", Some(token), format!("provisioned for application {application}"));
        Ok(())
    }

    /// Notes which connection speaks for the endpoint; true if it is to be told what waits for it.
    fn attach(&mut self, now: u64, source: Source, topic: &Topic) -> bool {
        let Some(endpoint) = self.endpoints.get_mut(&topic.token) else { return false };
        let new_version = endpoint.app_version != topic.app_version;
        if new_version {
            let text = format!("app version {} instead of {}", topic.app_version, endpoint.app_version);
            self.events.note(now, "attached", Some(&topic.token), text);
            endpoint.app_version.clone_from(&topic.app_version);
        }
        let Source::Mqtt(connection, qos) = source else { return false };
        if !self.routes.attach(&topic.token, connection, qos) {
            return new_version;
        }
        endpoint.forget_observers();
        let text = format!("app version {}, connection {}", topic.app_version, connection.0);
        self.events.note(now, "attached", Some(&topic.token), text);
        true
    }

    fn note_outcome(&mut self, now: u64, topic: &Topic, outcome: &Outcome) {
        if let Err(refusal) = outcome {
            let path = body::shortened(&topic.resource.join("/"));
            let text = format!("{}/{path}: {} {}", topic.extension, refusal.status, refusal.reason);
            self.events.note(now, "refused", Some(&topic.token), text);
        }
        let is_known = EXTENSIONS.contains(&topic.extension.as_str()) && topic.extension != "rsx";
        if let (Some(id), Some(endpoint), true) = (&topic.request_id, self.endpoints.get_mut(&topic.token), is_known) {
            endpoint.outcomes.note(&topic.extension, id.number(), outcome);
        }
    }

    fn reply(&mut self, source: Source, topic: &Topic, outcome: &Outcome, delay: Duration) {
        let Source::Mqtt(connection, qos) = source else { return };
        let speaks = self.routes.find(&topic.token).is_some_and(|route| route.connection == connection);
        // A late answer goes to whoever speaks for the endpoint by then.
        let to = if speaks { Destination::Endpoint(topic.token.clone()) } else { Destination::Connection(connection) };
        let payload = match outcome {
            Err(refusal) => {
                let (topic, payload) = (topic.error(), refusal.body());
                return self.outgoing.push(Dispatch { to, topic, payload, qos, delay });
            }
            Ok(Answer::Done) if topic.request_id.is_none() => return,
            Ok(Answer::Done) => Vec::new(),
            Ok(Answer::Data(body)) => body.clone(),
            Ok(Answer::Unchanged) => self.faults.unchanged().body(),
        };
        let can_be_pushed = matches!(topic.extension.as_str(), "cex" | "cmx" | "cmx_ota")
            && matches!(outcome, Ok(Answer::Data(_)))
            && topic.request_id.is_some();
        let fault = self.faults.reply(&topic.extension, &topic.token, can_be_pushed);
        let dispatch = Dispatch { to, topic: topic.status(), payload, qos, delay: fault.late };
        if fault.push_first {
            self.outgoing.push(Dispatch { topic: topic.push(), delay: Duration::ZERO, ..dispatch.clone() });
        }
        if fault.missing {
            return;
        }
        if fault.doubled {
            self.outgoing.push(dispatch.clone());
        }
        self.outgoing.push(dispatch);
    }

    /// Sends a newly attached endpoint what it has not applied yet; not what it is just asking for.
    fn greet(&mut self, now: u64, token: &str, asking: &str) {
        if asking != "cmx" {
            self.push_configurations(now, token, None);
        }
        if asking != "cmx_ota" {
            self.push_software(now, token);
        }
    }
}
