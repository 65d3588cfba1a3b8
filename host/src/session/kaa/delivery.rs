//! Delivering what waits in the outbox: several entries as one message, proved
//! by Kaa's answer and by nothing else.

use std::time::Instant;

use bytes::Bytes;
use serde_json::Value as Json;

use super::requests::Request;
use super::{KaaDialogue, Purpose, extension, pause};
use crate::cloud::kaa::answer::{Failure, Remedy};
use crate::cloud::kaa::channel_name;
use crate::cloud::kaa::topic::Topic;
use crate::message::{DeviceId, Publication};
use crate::outbox::{Parcel, Sequence};
use crate::session::dialogue::{NoAnswer, Outgoing};

impl KaaDialogue {
    /// Makes one message of what the outbox gave.
    pub(super) fn deliver(&mut self, parcel: Parcel, now: Instant) -> Option<Outgoing> {
        let (sequences, publications): (Vec<_>, Vec<_>) = parcel.parts.into_iter().unzip();
        let first = publications.first()?;
        let topic = Topic::parse(&first.topic).ok()?;
        let channel = channel_name(topic.app_version, topic.token);
        let extension = extension(topic.extension)?;
        let path = topic.path.to_owned();
        let kind = path.strip_prefix("result/").filter(|_| extension == "cex");
        let number = |publication: &Publication| {
            serde_json::from_slice::<Json>(&publication.payload).ok()?.get("id").and_then(Json::as_i64)
        };
        let results = kind.map(|kind| {
            publications.iter().filter_map(number).map(|number| (kind.to_owned(), number)).collect::<Vec<_>>()
        });
        let payload = if first.joins { join(&publications) } else { first.payload.clone() };
        let purpose = Purpose::Deliver { device: parcel.device, sequences, results: results.unwrap_or_default() };
        Some(self.send(Request { channel, extension, path, purpose }, payload, None, now))
    }

    /// Kaa did not take a message of a device.
    pub(super) fn refused(
        &mut self,
        device: &DeviceId,
        sequences: &[Sequence],
        resource: &str,
        failure: &Failure,
        now: Instant,
    ) {
        let session = &*self.session;
        match failure.remedy() {
            Remedy::Drop if sequences.len() > 1 => self.outbox.send_again(sequences, true),
            Remedy::Drop => {
                tracing::warn!(
                    session,
                    device = device.as_str(),
                    "{resource}: dropped, the cloud refused it: {failure}"
                );
                sequences.iter().for_each(|sequence| self.outbox.reject(*sequence));
            }
            Remedy::Later => {
                let refusals = self.refusals.entry(device.clone()).or_default();
                let pause = pause(*refusals);
                if *refusals == 0 {
                    let seconds = pause.as_secs();
                    tracing::warn!(
                        session,
                        device = device.as_str(),
                        "{resource}: kept, the cloud refused it: {failure}; trying again in {seconds} s, then less often"
                    );
                }
                *refusals += 1;
                self.outbox.send_again(sequences, false);
                self.outbox.pause(device, now + pause);
            }
        }
    }

    /// Takes what the connection before left without an answer.
    pub(super) fn reconsider(&mut self) {
        self.deliveries = 0;
        for (id, request) in self.requests.take() {
            let Request { channel, extension, path, purpose } = request;
            match purpose {
                Purpose::Deliver { sequences, .. }
                    if self.manner.request_status && extension == "dcx" && path == "json" =>
                {
                    let purpose = Purpose::Ascertain { sequences };
                    let request = Request { channel, extension: "rsx", path: "dcx".into(), purpose };
                    self.first.push_back((request, Bytes::new(), Some(id)));
                }
                Purpose::Deliver { sequences, .. } | Purpose::Ascertain { sequences } => {
                    self.outbox.send_again(&sequences, false);
                }
                Purpose::Attach { .. } | Purpose::Time => {}
                Purpose::Question(reply) => drop(reply.send(Err(NoAnswer::Unavailable))),
            }
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
