//! What the sessions see of the gateway.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::time::Instant;

use super::Supervisor;
use super::devices::{DeviceEntry, Kind};
use crate::cloud::Greeting;
use crate::device::Firmware;
use crate::gateway;
use crate::manifest::Manifest;
use crate::message::{DeviceId, SessionName};
use crate::router::{Recipient, Table};
use crate::session::{Facts, Picture};

impl Supervisor {
    /// Gives each session the present picture. Until the type of every child
    /// is known no session begins: a partial set of children would make the
    /// cloud remove the others. That takes a look at the drivers' files, and not
    /// that they are compiled.
    pub(super) fn publish(&mut self) {
        let begin = Instant::now();
        // What has changed is kept over a restart as well.
        self.memory.save();
        let is_partial = self.devices.values().any(|entry| entry.kind == Kind::Unread);
        let names: Vec<SessionName> = self.sessions.keys().cloned().collect();
        for name in names {
            let picture = self.picture(&name);
            let Some(session) = self.sessions.get_mut(&name) else { continue };
            if is_partial && session.waiting.is_some() {
                continue;
            }
            session.picture.send_replace(Arc::new(picture));
            if let Some(waiting) = session.waiting.take() {
                session.running = Some(waiting.start());
            }
        }
        self.pace.told(begin, Instant::now());
    }

    fn picture(&self, session: &SessionName) -> Picture {
        let Some(entry) = self.sessions.get(session) else { return Picture::default() };
        let own: Vec<(DeviceId, &DeviceEntry)> = self
            .devices
            .iter()
            .filter(|(_, device)| self.config.sessions_of(&device.config).contains(session.as_str()))
            .map(|(id, device)| (DeviceId::new(id), device))
            .collect();
        let channels = own.iter().filter_map(|(id, device)| {
            // While another one is being prepared the old one goes on, with its own address.
            let running = device.handle.as_ref().and_then(|handle| handle.spec.capabilities.outlet.channel(session));
            let configured = || entry.cloud.device(id, device.config.endpoints.get(session.as_str()));
            Some((Recipient::Device(id.clone()), running.cloned().or_else(configured)?))
        });
        let gateway = entry.cloud.gateway().map(|channel| (Recipient::Gateway, channel));
        let running = own.iter().filter_map(|(id, device)| Some((id.clone(), device.handle.clone()?)));
        Picture {
            table: Table::new(channels.chain(gateway)),
            greeting: Greeting { properties: gateway::properties(), children: self.children(&own) },
            devices: running.collect::<HashMap<_, _>>(),
            facts: self.facts(session, &own),
        }
    }

    fn children(&self, own: &[(DeviceId, &DeviceEntry)]) -> Vec<(DeviceId, String)> {
        let child = |(id, device): &(DeviceId, &DeviceEntry)| {
            let kind = device.config.kind.clone().or_else(|| device.kind.get().cloned());
            let kind = kind.or_else(|| self.memory.kind(id.as_str()));
            if kind.is_none() && device.kind != Kind::Unread {
                tracing::warn!(
                    device = id.as_str(),
                    "is not announced: its driver was never loaded and no type is configured"
                );
            }
            Some((id.clone(), kind?))
        };
        own.iter().filter_map(child).collect()
    }

    fn facts(&self, session: &SessionName, own: &[(DeviceId, &DeviceEntry)]) -> HashMap<Recipient, Facts> {
        let commands = |manifest: &Manifest| manifest.blueprint.commands.keys().cloned().collect();
        let devices = own.iter().filter_map(|(id, device)| {
            let status = device.handle.as_ref()?.status.borrow();
            let facts = Facts {
                commands: commands(&status.driver.manifest),
                version: match &status.firmware {
                    Firmware::Driver => Some(status.driver.manifest.driver.version.clone()),
                    Firmware::Version(version) => Some(version.clone()),
                    Firmware::Unknown => None,
                },
                applied: self.memory.applied(id.as_str(), session),
            };
            Some((Recipient::Device(id.clone()), facts))
        });
        let gateway = Facts { commands: commands(&self.manifest), ..Facts::default() };
        devices.chain([(Recipient::Gateway, gateway)]).collect()
    }
}
