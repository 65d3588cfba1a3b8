//! The platform's side of the core: what people do, and the pushes that follow.
//!
//! `cloud` and the HTTP side call it.

use std::time::Duration;

use serde_json::Value as Json;

use super::answer::Refusal;
use super::cmp;
use super::commands::Command;
use super::configurations::Document;
use super::endpoint::{Endpoint, TokenState};
use super::faults::Fault;
use super::service::{Destination, Dispatch, Service};
use super::software::{self, Offer};
use super::topic;

impl Service {
    /// The endpoint, or a 404.
    pub fn endpoint(&mut self, token: &str) -> Result<&mut Endpoint, Refusal> {
        let missing =
            || Refusal::missing(format!("endpoint {token}: not known; it appears when its token is first used"));
        self.endpoints.get_mut(token).ok_or_else(missing)
    }

    /// Adds a command and pushes it.
    pub fn invoke(
        &mut self,
        now: u64,
        token: &str,
        command_type: &str,
        payload: Option<Json>,
        ttl: u64,
    ) -> Result<Command, Refusal> {
        let endpoint = self.endpoint(token)?;
        let command = endpoint.commands.invoke(now, command_type, payload, ttl)?;
        let pushed = endpoint.commands.is_pushed(command_type);
        let connected = self.routes.find(token).is_some();
        let how = match (pushed, connected) {
            (true, true) => "pushed",
            (true, false) => "waits, the endpoint is not connected",
            (false, _) => "waits, the endpoint does not observe",
        };
        self.events.note(now, "command", Some(token), format!("{command_type} {}: {how}", command.id));
        if pushed {
            let body = Json::Array(vec![command.wire()]).to_string().into_bytes();
            self.push(token, "cex", &format!("command/{command_type}"), body);
        }
        Ok(command)
    }

    /// Assigns a configuration to one endpoint and pushes it.
    pub fn put_config(
        &mut self,
        now: u64,
        token: &str,
        (app_version, name): (&str, &str),
        config: Json,
        if_match: Option<&str>,
    ) -> Result<Document, Refusal> {
        check_config(app_version, name)?;
        self.application(app_version)?;
        let form = self.rules.config_id;
        let endpoint = self.endpoint(token)?;
        let document = endpoint.configurations.overrides.put(now, (app_version, name), config, form, if_match)?;
        self.events.note(now, "configuration", Some(token), format!("{} assigned", document.config_id));
        self.push_configurations(now, token, Some(name));
        Ok(document)
    }

    /// Assigns a configuration to all endpoints of an app version and pushes it.
    pub fn put_default_config(
        &mut self,
        now: u64,
        (app_version, name): (&str, &str),
        config: Json,
        if_match: Option<&str>,
    ) -> Result<Document, Refusal> {
        check_config(app_version, name)?;
        self.application(app_version)?;
        let document = self.defaults.put(now, (app_version, name), config, self.rules.config_id, if_match)?;
        let text = format!("{} is the default of {app_version}", document.config_id);
        self.events.note(now, "configuration", None, text);
        let has_version = |(_, endpoint): &(&String, &Endpoint)| endpoint.app_version == app_version;
        let tokens: Vec<String> = self.endpoints.iter().filter(has_version).map(|(token, _)| token.clone()).collect();
        for token in tokens {
            self.push_configurations(now, &token, Some(name));
        }
        Ok(document)
    }

    /// Offers software and pushes it to the endpoints that should have it.
    pub fn put_offer(&mut self, now: u64, offer: Offer) -> Result<(), Refusal> {
        let text = format!("{} offered to application {}", offer.version, offer.application);
        let (application, version) = (offer.application.clone(), offer.version.clone());
        self.catalogue.put(offer)?;
        self.events.note(now, "software", None, text);
        let tokens: Vec<String> = self
            .endpoints
            .iter()
            .filter(|(token, endpoint)| {
                let has = endpoint.software.version();
                let found = has.and_then(|has| self.catalogue.find(&endpoint.application, token, has));
                endpoint.application == application && found.is_some_and(|offer| offer.version == version)
            })
            .map(|(token, _)| token.clone())
            .collect();
        for token in tokens {
            self.push_software(now, &token);
        }
        Ok(())
    }

    /// Changes the state of a token; makes the endpoint if it is not known. A refused one loses its connection.
    pub fn set_token(
        &mut self,
        now: u64,
        token: &str,
        state: TokenState,
        app_version: Option<&str>,
    ) -> Result<(), Refusal> {
        if !topic::is_token(token) {
            return Err(Refusal::malformed(format!("token {token:?}: expected characters other than + # / .")));
        }
        if !self.endpoints.contains_key(token) {
            let app_version = app_version.ok_or_else(|| {
                Refusal::missing(format!("endpoint {token}: not known; to make it, name its app version"))
            })?;
            self.provision(now, token, app_version)?;
        }
        self.endpoint(token)?.set_state(state)?;
        let word = serde_json::to_value(state).unwrap_or_default();
        self.events.note(now, "token", Some(token), word.as_str().unwrap_or_default().to_owned());
        if matches!(state, TokenState::Suspended | TokenState::Revoked) {
            self.uploads.revoke(token);
            if self.routes.detach(token) {
                self.events.note(now, "detached", Some(token), "its token is not valid any more".to_owned());
            }
        }
        Ok(())
    }

    /// Sets a fault.
    pub fn set_fault(&mut self, now: u64, fault: Fault) -> Result<(), Refusal> {
        let text = format!("{fault} set");
        if !self.faults.set(fault) {
            return Err(Refusal::full("faults: too many are set"));
        }
        self.events.note(now, "fault", None, text);
        Ok(())
    }

    /// Clears faults.
    pub fn clear_faults(&mut self, now: u64, name: Option<&str>) -> usize {
        let count = self.faults.clear(name);
        self.events.note(now, "fault", None, format!("{count} cleared"));
        count
    }

    /// Pushes the configurations that an endpoint has not applied yet; of one name, or all.
    pub(super) fn push_configurations(&mut self, now: u64, token: &str, only: Option<&str>) {
        let strict = self.faults.is_strict();
        let connected = self.routes.find(token).is_some();
        let mut bodies = Vec::new();
        if let Some(endpoint) = self.endpoints.get_mut(token) {
            let Endpoint { configurations, app_version, .. } = endpoint;
            let mut names = configurations.unapplied(app_version, &self.defaults);
            names.retain(|name| only.is_none_or(|only| only == name));
            for name in names {
                let Some(document) = configurations.current(app_version, &name, &self.defaults) else { continue };
                let (id, body) =
                    (document.config_id.clone(), cmp::response(&document.config_id, &document.config, strict));
                if connected {
                    configurations.history.note_dispatch(now, &name, &id);
                }
                bodies.push((name, id, body));
            }
        }
        for (name, id, body) in bodies {
            if connected {
                self.events.note(now, "configuration", Some(token), format!("{id} pushed"));
            }
            let path = if name.is_empty() { "config/json".to_owned() } else { format!("config/json/{name}") };
            self.push(token, "cmx", &path, body);
        }
    }

    /// Pushes the software that an endpoint should have, if there is any and it is connected.
    pub(super) fn push_software(&mut self, now: u64, token: &str) {
        let strict = self.faults.is_strict();
        if self.routes.find(token).is_none() {
            return;
        }
        let Some(endpoint) = self.endpoints.get_mut(token) else { return };
        let Endpoint { application, software, .. } = endpoint;
        if !software.is_pushed() {
            return;
        }
        let context = software::Context { now, application, token, catalogue: &self.catalogue, strict };
        if let Some(body) = software.offer(&context) {
            self.events.note(now, "software", Some(token), "an offer pushed".to_owned());
            self.push(token, "cmx_ota", "config/json", body);
        }
    }

    fn push(&mut self, token: &str, extension: &str, path: &str, payload: Vec<u8>) {
        let Some(endpoint) = self.endpoints.get(token) else { return };
        let topic = format!("kp1/{}/{extension}/{token}/{path}/status", endpoint.app_version);
        let qos = self.routes.find(token).map_or(0, |route| route.qos);
        let to = Destination::Endpoint(token.to_owned());
        for _ in 0..self.faults.pushes(extension, token) {
            let (to, topic, payload) = (to.clone(), topic.clone(), payload.clone());
            self.outgoing.push(Dispatch { to, topic, payload, qos, delay: Duration::ZERO });
        }
    }
}

fn check_config(app_version: &str, name: &str) -> Result<(), Refusal> {
    if !name.is_empty() && (!topic::is_name(name) || name.bytes().all(|byte| byte.is_ascii_digit())) {
        return Err(Refusal::malformed(format!("configuration {name:?}: expected letters, digits, _ and -")));
    }
    if app_version.is_empty() {
        return Err(Refusal::malformed("app version: expected a name"));
    }
    Ok(())
}
