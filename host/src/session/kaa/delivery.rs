//! Delivering what waits in the outbox: several entries as one message, proved
//! by Kaa's answer and by nothing else; and what becomes of refused ones.

use bytes::Bytes;
use serde_json::Value as Json;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio::time::Instant;

use super::commands::Name;
use super::requests::Request;
use super::{KaaDialogue, Purpose, extension, pause};
use crate::cloud::kaa::answer::{Failure, Remedy};
use crate::cloud::kaa::channel_name;
use crate::cloud::kaa::topic::Resource;
use crate::message::{DeviceId, Publication};
use crate::outbox::{Batch, Sequence};
use crate::question::NoAnswer;
use crate::session::dialogue::Outgoing;

/// A message that is refused while others of its device pass is dropped when
/// it was refused this many times.
const TRIES: u32 = 3;

/// What one message delivers.
#[derive(Debug)]
pub(super) struct Delivery {
    pub device: DeviceId,
    /// The entries of the outbox.
    pub sequences: Vec<Sequence>,
    /// The commands whose results they are.
    pub results: Vec<Name>,
}

/// A device, whole or one topic of it.
type Waiting = (DeviceId, Option<Arc<str>>);

/// What Kaa did not take, and when it is tried again. Plain state.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// How often in a row what waits was refused, and until when it waits.
    paused: HashMap<Waiting, (u32, Instant)>,
    /// Messages that wait by themselves while their device goes on.
    aside: BTreeMap<(Instant, Sequence), Vec<Sequence>>,
    /// How often such a message was refused, and how many of its device had passed at first.
    suspects: HashMap<Sequence, (u32, u64)>,
    /// How many messages of a device passed; of those with suspects.
    passed: HashMap<DeviceId, u64>,
}

impl Refusals {
    /// A device's messages wait, or those on a topic. Says how long, at the
    /// first refusal only; all messages that were under way together count as one.
    fn pause(&mut self, device: &DeviceId, topic: Option<&Arc<str>>, now: Instant) -> (Instant, bool) {
        let key = (device.clone(), topic.cloned());
        let (refusals, until) = self.paused.get(&key).copied().unwrap_or((0, now));
        if until > now {
            return (until, false);
        }
        let until = now + pause(refusals);
        self.paused.insert(key, (refusals + 1, until));
        (until, refusals == 0)
    }

    /// A message waits by itself; false when it was refused often enough while others passed.
    fn put_aside(&mut self, device: &DeviceId, sequences: Vec<Sequence>, now: Instant) -> bool {
        let Some(first) = sequences.first().copied() else { return false };
        let passed = self.passed.entry(device.clone()).or_default();
        let (refused, passed_before) = self.suspects.entry(first).or_insert((0, *passed));
        *refused += 1;
        if *refused >= TRIES && *passed > *passed_before {
            self.suspects.remove(&first);
            return false;
        }
        self.aside.insert((now + pause(*refused - 1), first), sequences);
        true
    }

    /// A message passed; true when the device was not welcome before.
    fn pass(&mut self, device: &DeviceId, topic: Option<Arc<str>>, sequences: &[Sequence]) -> bool {
        if let Some(passed) = self.passed.get_mut(device) {
            *passed += 1;
            self.suspects.retain(|sequence, _| !sequences.contains(sequence));
        }
        if self.paused.is_empty() {
            return false;
        }
        let was_paused = self.paused.remove(&(device.clone(), None)).is_some();
        self.paused.remove(&(device.clone(), topic));
        was_paused
    }

    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.aside.keys().next().map(|(due, _)| *due)
    }

    /// Takes a message whose time has come.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Vec<Sequence>> {
        self.aside.first_entry().filter(|entry| entry.key().0 <= now).map(|entry| entry.remove())
    }
}

impl KaaDialogue {
    /// Makes one message of what the outbox gave.
    pub(super) fn deliver(&mut self, batch: Batch, now: Instant) -> Option<Outgoing> {
        let (sequences, publications): (Vec<_>, Vec<_>) = batch.parts.into_iter().unzip();
        let first = publications.first()?;
        let resource = Resource::parse(&first.topic)?;
        let channel = channel_name(resource.app_version, resource.token);
        let extension = extension(resource.extension)?;
        let path = resource.path.to_owned();
        let kind = path.strip_prefix("result/").filter(|_| extension == "cex");
        let number = |publication: &Publication| {
            serde_json::from_slice::<Json>(&publication.payload).ok()?.get("id").and_then(Json::as_i64)
        };
        let results = kind.map(|kind| {
            publications.iter().filter_map(number).map(|number| (kind.to_owned(), number)).collect::<Vec<_>>()
        });
        let payload = if first.joins { join(&publications) } else { first.payload.clone() };
        let delivery = Delivery { device: batch.device, sequences, results: results.unwrap_or_default() };
        let purpose = Purpose::Deliver(delivery);
        Some(self.send(Request { channel, extension, path, purpose }, payload, None, now))
    }

    /// Kaa has it.
    pub(super) fn delivered_to(&mut self, channel: &str, delivery: &Delivery) {
        let topic = delivery.sequences.first().and_then(|first| self.outbox.look(*first)).map(|(_, topic)| topic);
        self.outbox.acknowledge_all(&delivery.sequences);
        delivery.results.iter().for_each(|name| self.commands.finished(channel, name));
        if self.refusals.pass(&delivery.device, topic, &delivery.sequences)
            && let Some(recipient) = self.table.find(channel).cloned()
        {
            // Nothing was pushed to it meanwhile.
            self.ask_again(&recipient);
        }
    }

    /// Kaa did not take a message of a device.
    pub(super) fn refused(
        &mut self,
        channel: &str,
        delivery: Delivery,
        (extension, path): (&str, &str),
        failure: &Failure,
        now: Instant,
    ) {
        let device = delivery.device.clone();
        let (session, name) = (self.session.as_str(), device.as_str());
        let is_gone = self.table.find(channel).is_none();
        match failure.remedy(extension, path) {
            Remedy::Drop if delivery.sequences.len() > 1 => self.outbox.send_again(&delivery.sequences, true),
            Remedy::Aside if delivery.sequences.len() > 1 && !is_gone => {
                // Each by itself from now on; only those that are refused again wait.
                self.outbox.send_again(&delivery.sequences, true);
            }
            Remedy::Aside if !is_gone && self.refusals.put_aside(&device, delivery.sequences.clone(), now) => {
                tracing::debug!(session, device = name, "{extension}/{path}: refused, later again: {failure}");
            }
            Remedy::Later if !is_gone => {
                let place = delivery.sequences.first().and_then(|first| self.outbox.look(*first));
                // One service that is unwell does not hold up what goes to the others.
                let topic = place.map(|(_, topic)| topic).filter(|_| !failure.is_of_endpoint());
                let (until, is_new) = self.refusals.pause(&device, topic.as_ref(), now);
                if is_new {
                    let seconds = until.saturating_duration_since(now).as_secs();
                    tracing::warn!(
                        session,
                        device = name,
                        "{extension}/{path}: kept, the cloud refused it: {failure}; trying again in {seconds} s, then less often"
                    );
                }
                self.outbox.send_again(&delivery.sequences, false);
                self.outbox.pause(&device, topic.as_deref(), until);
            }
            _ => {
                tracing::warn!(session, device = name, "{extension}/{path}: dropped, the cloud refused it: {failure}");
                delivery.sequences.iter().for_each(|sequence| drop(self.outbox.reject(*sequence)));
                delivery.results.iter().for_each(|name| self.commands.finished(channel, name));
            }
        }
    }

    /// Takes what the connection before left unsaid or without an answer.
    pub(super) fn reconsider(&mut self) {
        self.deliveries = 0;
        for (request, ..) in std::mem::take(&mut self.first) {
            self.give_up(request.purpose);
        }
        for (id, request) in self.requests.take() {
            let Request { channel, extension, path, purpose } = request;
            match purpose {
                Purpose::Deliver(delivery) if self.manner.request_status && extension == "dcx" && path == "json" => {
                    let purpose = Purpose::Ascertain(delivery);
                    let request = Request { channel, extension: "rsx", path: "dcx".into(), purpose };
                    self.first.push_back((request, Bytes::new(), Some(id)));
                }
                purpose => self.give_up(purpose),
            }
        }
    }

    /// Ends a request whose connection is gone.
    fn give_up(&mut self, purpose: Purpose) {
        match purpose {
            Purpose::Deliver(delivery) | Purpose::Ascertain(delivery) => {
                self.outbox.send_again(&delivery.sequences, false);
            }
            Purpose::Attach { .. } | Purpose::Time => {}
            Purpose::Question(reply) => drop(reply.send(Err(NoAnswer::Unavailable))),
        }
    }
}

/// Payloads as the elements of one array.
fn join(publications: &[Publication]) -> Bytes {
    let size: usize = publications.iter().map(|publication| publication.payload.len() + 1).sum();
    let mut body = Vec::with_capacity(size + 1);
    for (place, publication) in publications.iter().enumerate() {
        body.push(if place == 0 { b'[' } else { b',' });
        body.extend_from_slice(&publication.payload);
    }
    body.push(b']');
    body.into()
}

/// Whether `rsx` says that a request was carried out.
pub(super) fn arrived(payload: &[u8]) -> bool {
    let body: Json = serde_json::from_slice(payload).unwrap_or_default();
    body.get("statusCode").and_then(Json::as_u64).is_some_and(|code| (200..300).contains(&code))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn messages_that_are_refused_together_count_as_one_refusal() {
        let (mut refusals, device, now) = (Refusals::default(), DeviceId::new("d"), Instant::now());
        let (until, is_new) = refusals.pause(&device, None, now);
        assert_eq!((until - now, is_new), (Duration::from_secs(2), true));
        assert_eq!(refusals.pause(&device, None, now), (until, false));
        let (next, is_new) = refusals.pause(&device, None, until);
        assert_eq!((next - until, is_new), (Duration::from_secs(4), false));
        assert!(refusals.pass(&device, None, &[]));
        assert!(refusals.pause(&device, None, next).1);
    }

    #[test]
    fn a_message_that_is_refused_while_others_pass_is_given_up_and_else_is_not() {
        let (mut refusals, device, now) = (Refusals::default(), DeviceId::new("d"), Instant::now());
        for _ in 0..10 {
            assert!(refusals.put_aside(&device, vec![7], now));
            assert!(refusals.next_wake().is_some());
            assert_eq!(refusals.take_due(now + Duration::from_secs(121)), Some(vec![7]));
        }
        refusals.pass(&device, None, &[8]);
        assert!(!refusals.put_aside(&device, vec![7], now));
        assert_eq!(refusals.next_wake(), None);
    }
}
