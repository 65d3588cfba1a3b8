//! All that the cloud knows: devices, their telemetry, commands, and what was
//! dropped.
//!
//! Pure: bytes and times come in, lines and messages go out. The broker and
//! the HTTP side of the stand-in call it, one at a time.

mod command;

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value as Json};

use super::blueprints::Blueprints;
use super::channel::{Alerts, Channel};
use super::event::{Events, Kind};
use super::execution::{Executions, MOST_OPEN};
use super::rules::{self, Dropped};
use super::topic::{self, Address, Subject, short};
use crate::broker::Link;
use crate::time::Time;
use sandgate_manifest::Manifest;

/// Maximum devices, those that are gone included.
const MOST_CHANNELS: usize = 2000;
/// About the maximum bytes of telemetry of all devices together.
const HISTORY_BYTES: usize = 64 << 20;
/// Maximum drops of one message that get a line each.
const MOST_TOLD: usize = 20;
/// A sample that is older than this is called back-dated.
const BACK_DATED: Time = 5000;

/// The cloud's side of everything.
#[derive(Debug, Default)]
pub struct Platform {
    blueprints: Blueprints,
    /// The only hardware id that may publish; none for any.
    hardware: Option<String>,
    channels: BTreeMap<Address, Channel>,
    clients: HashMap<Link, String>,
    executions: Executions,
    events: Events,
    history: usize,
}

/// A request that cannot be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is no such device, or it is not clear which one is meant.
    #[error("{0}")]
    NotFound(String),
    /// It was removed from the children of its parent.
    #[error("{0} is no longer among the children of its parent")]
    Gone(String),
    /// Too many commands wait for their end.
    #[error("expected at most {MOST_OPEN} commands that wait for their end")]
    TooMany,
}

/// A command on its way to a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Where the device listens.
    pub topic: String,
    /// The request.
    pub payload: Vec<u8>,
}

impl Platform {
    /// Makes a cloud that has heard nothing yet.
    pub fn new(blueprints: Blueprints, hardware: Option<String>) -> Platform {
        Platform { blueprints, hardware, ..Platform::default() }
    }

    /// Lets other blueprints count from now on.
    pub fn know(&mut self, blueprints: Blueprints) {
        self.blueprints = blueprints;
    }

    /// All devices.
    pub fn channels(&self) -> impl Iterator<Item = (&Address, &Channel)> {
        self.channels.iter()
    }

    /// One device.
    pub fn channel(&self, address: &Address) -> Option<&Channel> {
        self.channels.get(address)
    }

    /// All commands.
    pub fn executions(&self) -> &Executions {
        &self.executions
    }

    /// All that happened.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// Finds a device by its channel id, or by hardware id and channel id as
    /// `HARDWARE:CHANNEL`.
    pub fn find(&self, name: &str) -> Result<Address, Refused> {
        let mut found = self.channels.keys().filter(|address| address.channel == name || address.to_string() == name);
        match (found.next(), found.next()) {
            (Some(address), None) => Ok(address.clone()),
            (Some(first), Some(second)) => Err(Refused::NotFound(format!(
                "{:?} is more than one device; expected {first}, {second} or another full id",
                short(name)
            ))),
            (None, _) => {
                let known: Vec<_> = self.channels.keys().take(20).map(|address| address.channel.as_str()).collect();
                let known = if known.is_empty() { "none (nothing has published yet)".into() } else { known.join(", ") };
                Err(Refused::NotFound(format!("no device {:?}; expected one of: {known}", short(name))))
            }
        }
    }

    /// The blueprint of a device.
    pub fn blueprint(&self, address: &Address) -> Option<&Manifest> {
        manifest(&self.blueprints, address, self.channels.get(address)?.kind.as_deref())
    }

    /// Notes that a client has connected.
    pub fn connected(&mut self, link: Link, client: &str, now: Time) {
        self.events.tell(now, Kind::Connected, None, &format!("client {:?}", short(client)));
        self.clients.insert(link, short(client));
    }

    /// Notes that a connection has ended: who was heard on it is offline.
    pub fn disconnected(&mut self, link: Link, reason: &str, now: Time) {
        let client = self.clients.remove(&link).unwrap_or_default();
        let mut offline = 0;
        for channel in self.channels.values_mut().filter(|channel| channel.link == Some(link)) {
            channel.link = None;
            offline += usize::from(channel.gone.is_none());
        }
        let devices = match offline {
            0 => String::new(),
            1 => "; 1 device is offline".to_owned(),
            more => format!("; {more} devices are offline"),
        };
        self.events.tell(now, Kind::Disconnected, None, &format!("client {client:?}: {reason}{devices}"));
    }

    /// Notes something about the stand-in itself.
    pub fn note(&mut self, text: &str, now: Time) {
        self.events.tell(now, Kind::Note, None, text);
    }

    /// Takes a message from a device.
    pub fn take(&mut self, link: Link, topic: &str, payload: &[u8], now: Time) {
        let (address, subject) = match topic::parse(topic) {
            Ok(parsed) => parsed,
            Err(problem) => {
                return self.events.drop(now, None, None, &format!("topic {:?}: {problem}", short(topic)));
            }
        };
        if let Err(dropped) = self.sort(link, &address, subject, payload, now) {
            self.drop(&address, &[dropped], now);
        }
    }

    /// Takes a message by its subject; an error drops it whole.
    fn sort(
        &mut self,
        link: Link,
        address: &Address,
        subject: Subject,
        payload: &[u8],
        now: Time,
    ) -> Result<(), Dropped> {
        self.admit(address)?;
        let body = rules::object(payload)?;
        self.enter(address, now)?;
        let Some(channel) = self.channels.get_mut(address) else { return Ok(()) };
        channel.appear(link);
        channel.seen = Some(now);
        match subject {
            Subject::Telemetry => self.telemetry(address, body, now),
            Subject::Properties => self.properties(link, address, body, now),
            Subject::Logs => {
                let line = rules::line(body, now)?;
                let text = format!("{}: {}", line.severity, line.message);
                self.events.tell(now, Kind::Log, Some(address), &text);
                channel.add_line(line, now);
                Ok(())
            }
            Subject::Responses => {
                let response = rules::response(body)?;
                let words = serde_json::to_string(&response.payload).unwrap_or_default();
                let execution = self.executions.respond(address, response, now)?;
                let text = format!("{} {} {words}", execution.order.name, command::progress(execution));
                self.events.tell(now, Kind::Command, Some(address), &text);
                Ok(())
            }
        }
    }

    /// Whether the cloud listens to this device at all.
    fn admit(&self, address: &Address) -> Result<(), Dropped> {
        let refuse = |problem: String| Err(Dropped { attribute: None, problem });
        if let Some(hardware) = self.hardware.as_ref().filter(|hardware| **hardware != address.hardware) {
            return refuse(format!("expected the hardware id {hardware}, found {}", address.hardware));
        }
        match self.channels.get(address) {
            Some(Channel { gone: Some(_), .. }) => refuse("expected an announced child; this one was removed".into()),
            None if address.channel.contains("--") => {
                refuse("expected an announced child; its parent has not named it under children".into())
            }
            _ => Ok(()),
        }
    }

    /// Makes room for a device and enters it, if it is new.
    fn enter(&mut self, address: &Address, now: Time) -> Result<(), Dropped> {
        if self.channels.contains_key(address) {
            return Ok(());
        }
        self.make_room()?;
        self.channels.insert(address.clone(), Channel::new(None, None));
        let blueprint = match manifest(&self.blueprints, address, None) {
            Some(manifest) => format!("held against the blueprint {:?}", manifest.blueprint.display_name),
            None => "no blueprint: every attribute is kept".into(),
        };
        self.events.tell(now, Kind::Note, Some(address), &format!("heard for the first time; {blueprint}"));
        Ok(())
    }

    /// Forgets the device that is gone for the longest time, if there are too many.
    fn make_room(&mut self) -> Result<(), Dropped> {
        if self.channels.len() < MOST_CHANNELS {
            return Ok(());
        }
        let gone = self.channels.iter().filter_map(|(address, channel)| Some((channel.gone?, address)));
        let Some(oldest) = gone.min().map(|(_, address)| address.clone()) else {
            let problem = format!("expected at most {MOST_CHANNELS} devices; the stand-in keeps no more");
            return Err(Dropped { attribute: None, problem });
        };
        if let Some(forgotten) = self.channels.remove(&oldest) {
            self.history -= forgotten.samples.bytes();
        }
        Ok(())
    }

    fn telemetry(&mut self, address: &Address, body: Map<String, Json>, now: Time) -> Result<(), Dropped> {
        let Some(channel) = self.channels.get_mut(address) else { return Ok(()) };
        let manifest = manifest(&self.blueprints, address, channel.kind.as_deref());
        let verdict = rules::telemetry(manifest, body, now)?;
        let timestamp = verdict.kept.timestamp;
        let text = format!("{}{}", age(timestamp, now), values(&verdict.kept.attributes));
        self.events.tell(now, Kind::Telemetry, Some(address), &text);
        let (grown, other) = channel.add_sample(manifest, verdict.kept, now);
        self.history = self.history.saturating_add_signed(grown);
        if other {
            self.events.tell(now, Kind::Alerts, Some(address), &channel.alerts.words());
            self.note_undeclared(address, now);
        }
        self.trim();
        self.drop(address, &verdict.dropped, now);
        Ok(())
    }

    /// The cloud shows undeclared alerts, as errors: worth a line, but no drop.
    fn note_undeclared(&mut self, address: &Address, now: Time) {
        let (Some(manifest), Some(channel)) = (self.blueprint(address), self.channels.get(address)) else { return };
        let Alerts::Active(active) = &channel.alerts else { return };
        let unknown: Vec<_> = active.iter().filter(|alert| !manifest.is_alert(&alert.id)).map(|a| &a.id).collect();
        if !unknown.is_empty() {
            let text =
                format!("alerts {unknown:?}: not declared in the blueprint; shown as errors, with their ids as names");
            self.events.tell(now, Kind::Note, Some(address), &text);
        }
    }

    /// Keeps all telemetry together within its bound: whoever has most gives.
    fn trim(&mut self) {
        while self.history > HISTORY_BYTES {
            let largest = self.channels.values_mut().max_by_key(|channel| channel.samples.bytes());
            match largest.map(|channel| channel.samples.drop_oldest()) {
                None | Some(0) => return,
                Some(freed) => self.history -= freed,
            }
        }
    }

    fn properties(&mut self, link: Link, address: &Address, body: Map<String, Json>, now: Time) -> Result<(), Dropped> {
        let Some(channel) = self.channels.get_mut(address) else { return Ok(()) };
        let manifest = manifest(&self.blueprints, address, channel.kind.as_deref());
        let mut verdict = rules::properties(manifest, self.blueprints.types(), channel.parent.is_some(), body, now)?;
        if !verdict.kept.attributes.is_empty() {
            self.events.tell(now, Kind::Properties, Some(address), &values(&verdict.kept.attributes));
        }
        verdict.dropped.extend(channel.set_properties(verdict.kept.attributes));
        if let Some(children) = verdict.kept.children {
            verdict.dropped.extend(self.announce(link, address, children, now));
        }
        self.drop(address, &verdict.dropped, now);
        Ok(())
    }

    /// Replaces the set of children: each announcement is the whole set.
    fn announce(
        &mut self,
        link: Link,
        parent: &Address,
        children: BTreeMap<String, String>,
        now: Time,
    ) -> Vec<Dropped> {
        let wanted: BTreeMap<Address, String> =
            children.into_iter().map(|(id, kind)| (parent.child(&id), kind)).collect();
        let mut changes = Vec::new();
        for (address, channel) in &mut self.channels {
            let is_child = channel.parent.as_ref() == Some(parent) && channel.gone.is_none();
            if is_child && !wanted.contains_key(address) {
                (channel.gone, channel.link) = (Some(now), None);
                changes.push(format!("removed {}", address.channel));
            }
        }
        let mut dropped = Vec::new();
        for (address, kind) in wanted {
            let known = self.channels.get(&address).map(|channel| (channel.gone, channel.kind.clone()));
            if known == Some((None, Some(kind.clone()))) {
                continue;
            }
            if let Err(full) = if known.is_none() { self.make_room() } else { Ok(()) } {
                dropped.push(Dropped { attribute: Some(format!("children.{}", short(&address.channel))), ..full });
                continue;
            }
            let blueprint = if self.blueprints.child(&kind).is_none() { ", no blueprint" } else { "" };
            changes.push(format!("added {} ({kind}{blueprint})", address.channel));
            // What comes back is the same device; another type is another device.
            let fresh = || Channel::new(Some(parent.clone()), Some(kind.clone()));
            let channel = self.channels.entry(address).or_insert_with(fresh);
            if channel.kind.as_ref() != Some(&kind) {
                self.history -= channel.samples.bytes();
                *channel = fresh();
            }
            channel.gone = None;
        }
        // A set that is announced again says that the children are there again.
        let children = self.channels.values_mut().filter(|channel| channel.parent.as_ref() == Some(parent));
        let mut count = 0;
        for child in children.filter(|child| child.gone.is_none()) {
            child.appear(link);
            count += 1;
        }
        if !changes.is_empty() {
            self.events.tell(now, Kind::Children, Some(parent), &format!("{count} now: {}", changes.join(", ")));
        }
        dropped
    }

    /// Says what the cloud would not say, each thing once for a connection.
    fn drop(&mut self, address: &Address, dropped: &[Dropped], now: Time) {
        let told = match self.channels.get_mut(address) {
            Some(channel) => channel.count(dropped),
            None => dropped.iter().collect(),
        };
        for Dropped { attribute, problem } in told.iter().take(MOST_TOLD) {
            self.events.drop(now, Some(address), attribute.as_deref(), problem);
        }
        if let Some(more) = told.len().checked_sub(MOST_TOLD).filter(|more| *more > 0) {
            self.events.drop(now, Some(address), None, &format!("{more} more attributes of the same message"));
        }
    }
}

/// The blueprint of a device: the parent's own, or that of the child's type.
/// The channel `ucm` of older blobs has none.
fn manifest<'a>(blueprints: &'a Blueprints, address: &Address, kind: Option<&str>) -> Option<&'a Manifest> {
    match kind {
        Some(kind) => blueprints.child(kind),
        None if address.channel == "ucm" => None,
        None => blueprints.parent(),
    }
}

/// Attributes for a line.
fn values(attributes: &Map<String, Json>) -> String {
    let show = |(name, value): (&String, &Json)| match value {
        Json::String(text) => format!("{name}={}", short(text)),
        other => format!("{name}={}", short(&other.to_string())),
    };
    let shown = attributes.iter().take(30).map(show).collect::<Vec<_>>().join(" ");
    if shown.is_empty() { "no attributes".into() } else { shown }
}

/// How old a sample is, if it is worth saying.
fn age(timestamp: u64, now: Time) -> String {
    let age = now.saturating_sub(timestamp.saturating_mul(1000));
    if age < BACK_DATED {
        return String::new();
    }
    format!("({} old) ", humantime::format_duration(std::time::Duration::from_secs(age / 1000)))
}

#[cfg(test)]
mod tests;
