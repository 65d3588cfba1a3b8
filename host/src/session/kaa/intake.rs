//! What Kaa wants of devices: commands, configurations, software. It comes as
//! an answer and as a push, and the same may come as both.

use serde_json::json;
use tokio::time::Instant;

use super::{KaaDialogue, extension};
use crate::cloud::kaa::answer::{self, Offered};
use crate::cloud::kaa::topic::Topic;
use crate::cloud::kaa::{channel_name, command_id};
use crate::message::{CommandRequest, DeviceId, Offer, OfferKind};
use crate::router::Recipient;
use crate::session::dialogue::Event;

impl KaaDialogue {
    /// Takes what the cloud offers on `command/…` and `config/json…`.
    pub(super) fn take_data(
        &mut self,
        topic: &Topic<'_>,
        recipient: &Recipient,
        payload: &[u8],
        now: Instant,
    ) -> Vec<Event> {
        match (topic.extension, topic.path.split_once('/')) {
            ("cex", Some(("command", kind))) => self.take_commands(topic, kind, payload, now),
            ("cmx", Some(("config", rest))) => match (rest, rest.strip_prefix("json/")) {
                ("json", _) => self.take_offer(OfferKind::Configuration(None), topic, recipient, payload),
                (_, Some(name)) if self.manner.configurations.iter().any(|wanted| wanted == name) => {
                    self.take_offer(OfferKind::Configuration(Some(name.to_owned())), topic, recipient, payload)
                }
                // Pushed although nobody asked for this one.
                _ => Vec::new(),
            },
            ("cmx_ota", Some(("config", "json"))) if self.manner.software => {
                self.take_offer(OfferKind::Software, topic, recipient, payload)
            }
            _ => Vec::new(),
        }
    }

    fn take_commands(&mut self, topic: &Topic<'_>, kind: &str, payload: &[u8], now: Instant) -> Vec<Event> {
        let channel = channel_name(topic.app_version, topic.token);
        let device = DeviceId::new(&self.name_of(&channel));
        let place = format!("cex/command/{kind} of {device}");
        let commands = match answer::commands(payload) {
            Ok(commands) => commands,
            Err(problem) => return vec![Event::Refused(format!("{place}: {problem}"))],
        };
        let mut events = Vec::new();
        for command in commands {
            let (number, arguments) = match command {
                Ok(command) => command,
                Err(problem) => {
                    events.push(Event::Refused(format!("{place}: {problem}")));
                    continue;
                }
            };
            let id = command_id(self.session.as_str(), &device, kind, number);
            let session = Some(self.session.clone());
            let request = CommandRequest { id, session, name: kind.to_owned(), arguments };
            self.commands.take(&channel, (kind.to_owned(), number), request, now);
        }
        events
    }

    fn take_offer(&mut self, kind: OfferKind, topic: &Topic<'_>, recipient: &Recipient, payload: &[u8]) -> Vec<Event> {
        let channel = channel_name(topic.app_version, topic.token);
        let refuse = |text: String| vec![Event::Refused(text)];
        match (answer::offered(payload), recipient) {
            (Ok(Offered::Unchanged | Offered::Nothing), _) => Vec::new(),
            (Ok(Offered::Document { id, document }), Recipient::Device(device)) => {
                let offer = Offer { kind, id };
                vec![Event::Offered { device: device.clone(), offer, document }]
            }
            (Ok(Offered::Document { id, .. }), Recipient::Gateway) => {
                let report = json!({"configId": id, "statusCode": 400,
                    "reasonPhrase": "a gateway takes neither configuration nor software from the cloud"});
                let Some(extension) = extension(topic.extension) else { return Vec::new() };
                self.attach(&channel, extension, topic.path.replacen("config", "applied", 1), &report);
                Vec::new()
            }
            (Err(failure), _) => {
                refuse(format!("{}/{} of {}: {failure}", topic.extension, topic.path, self.name_of(&channel)))
            }
        }
    }
}
