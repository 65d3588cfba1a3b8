//! Attaching endpoints: what is asked for after a connect and when a device
//! has changed.

use bytes::Bytes;
use serde_json::{Value as Json, json};
use tokio::time::Instant;

use super::requests::Request;
use super::{KaaDialogue, Purpose, pause, resource};
use crate::cloud::kaa::answer::{Failure, Remedy};
use crate::message::OfferKind;
use crate::router::Recipient;
use crate::session::Facts;

impl KaaDialogue {
    /// Sends a request until it is answered.
    pub(super) fn attach(&mut self, channel: &str, extension: &'static str, path: String, payload: &Json) {
        self.asked.insert(resource(channel, extension, &path));
        let payload = Bytes::from(payload.to_string());
        let purpose = Purpose::Attach { payload: payload.clone(), failures: 0 };
        self.first.push_back((Request { channel: channel.to_owned(), extension, path, purpose }, payload, None));
    }

    /// Asks for what is new in a device's facts.
    pub(super) fn attach_recipient(&mut self, recipient: &Recipient, facts: &Facts) {
        let Some(channel) = self.table.channel(recipient).map(|channel| channel.name.clone()) else { return };
        // With another token or application version it is another endpoint.
        let before = self.attached.get(recipient).filter(|(before, _)| *before == channel).map(|(_, facts)| facts);
        let known = |kind: &String| before.is_some_and(|before| before.commands.contains(kind));
        let new_commands: Vec<&String> = facts.commands.iter().filter(|kind| !known(kind)).collect();
        let new_version =
            facts.version.as_ref().filter(|version| before.and_then(|b| b.version.as_ref()) != Some(version));
        let is_new = before.is_none();
        for kind in new_commands {
            self.attach(&channel, "cex", format!("command/{kind}"), &json!({"observe": true}));
        }
        if is_new {
            self.ask_for_configurations(recipient, &channel, facts);
        }
        if let Some(version) = new_version.filter(|_| self.manner.software) {
            self.attach(&channel, "cmx_ota", "applied/json".into(), &json!({ "configId": version }));
            if is_new {
                self.attach(&channel, "cmx_ota", "config/json".into(), &json!({"observe": true}));
            }
        }
        self.attached.insert(recipient.clone(), (channel, facts.clone()));
    }

    /// Asks for all that a push should have told: pushes get lost, and an
    /// endpoint that was suspended is sent none.
    pub(super) fn ask_again(&mut self, recipient: &Recipient) {
        let Some((channel, facts)) = self.attached.get(recipient).cloned() else { return };
        for kind in &facts.commands {
            let path = format!("command/{kind}");
            if !self.asked.contains(&resource(&channel, "cex", &path)) {
                self.attach(&channel, "cex", path, &json!({"observe": true}));
            }
        }
        self.ask_for_configurations(recipient, &channel, &facts);
        let is_asked = self.asked.contains(&resource(&channel, "cmx_ota", "config/json"));
        if self.manner.software && facts.version.is_some() && !is_asked {
            self.attach(&channel, "cmx_ota", "config/json".into(), &json!({"observe": true}));
        }
    }

    fn ask_for_configurations(&mut self, recipient: &Recipient, channel: &str, facts: &Facts) {
        if *recipient == Recipient::Gateway {
            return;
        }
        let names = std::iter::once(None).chain(self.manner.configurations.clone().into_iter().map(Some));
        for name in names.collect::<Vec<_>>() {
            let path = name.as_ref().map_or("config/json".to_owned(), |name| format!("config/json/{name}"));
            if self.asked.contains(&resource(channel, "cmx", &path)) {
                continue;
            }
            let payload = match facts.applied.get(&OfferKind::Configuration(name)) {
                Some(id) => json!({"configId": id, "observe": true}),
                None => json!({"observe": true}),
            };
            self.attach(channel, "cmx", path, &payload);
        }
    }

    /// Kaa refused an attachment.
    pub(super) fn attach_later(&mut self, request: Request<Purpose>, payload: Bytes, failure: &Failure, now: Instant) {
        let Purpose::Attach { failures, .. } = request.purpose else { return };
        let (session, device) = (self.session.as_str(), self.name_of(&request.channel));
        let (extension, path) = (request.extension, &request.path);
        match failure.remedy(extension, path) {
            Remedy::Drop => {
                tracing::warn!(session, device, "{extension}/{path}: the cloud refused: {failure}");
                self.asked.remove(&resource(&request.channel, extension, path));
            }
            // An endpoint that is no longer configured has nothing to ask.
            _ if self.table.find(&request.channel).is_none() => {}
            Remedy::Later | Remedy::Aside => {
                if failures == 1 {
                    tracing::warn!(session, device, "{extension}/{path}: the cloud refused: {failure}; asking again");
                }
                self.counter += 1;
                self.later.insert((now + pause(failures - 1), self.counter), (request, payload));
            }
        }
    }
}
