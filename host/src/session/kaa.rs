//! The dialogue with Kaa: one connection, many endpoints.
//!
//! After a connect every endpoint is attached: its commands, configurations
//! and software are asked for and observed. A message counts as delivered
//! when Kaa has answered its request; without an answer it is sent again.

mod attachment;
mod commands;
mod delivery;
mod intake;
mod requests;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value as Json, json};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::dialogue::{Dialogue, Event, Outgoing, Proof};
use super::{Facts, Picture};
use crate::cloud::kaa::answer::{self, Failure};
use crate::cloud::kaa::topic::{Answer, RequestId, Topic};
use crate::cloud::kaa::{channel_name, metadata_of};
use crate::message::{Attribute, Publication, SessionName, Time, now};
use crate::outbox::{Outbox, Sequence};
use crate::question::{NoAnswer, Query, Question};
use crate::router::{Recipient, Table};
use commands::Commands;
use delivery::{Delivery, Refusals, arrived};
use requests::{Request, Requests};

/// Messages of devices on the way without an answer, and as many requests of
/// the gateway's own: a cloud that leaves the ones unanswered must not stop the others.
const UNANSWERED: usize = 1024;
/// Larger pushes are refused: commands and configurations are small.
const MAX_PUSH: usize = 256 << 10;
/// So are larger answers; a long list of commands or of metadata may be asked for.
const MAX_ANSWER: usize = 4 << 20;
/// How long an endpoint that Kaa refuses is left alone: at first, at most.
const SHORTEST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(120);
/// How often missing answers are told.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);
/// A clock that is further off is told.
const CLOCK_TOLERANCE: u64 = 5_000;

/// How a session speaks; from its settings.
#[derive(Debug, Clone)]
pub struct Manner {
    /// How long an answer is waited for.
    pub reply_timeout: Duration,
    /// Named configurations to observe.
    pub configurations: Vec<String>,
    /// Whether software is asked for.
    pub software: bool,
    /// Whether to ask what became of unanswered messages.
    pub request_status: bool,
    /// Whether to compare clocks.
    pub check_time: bool,
    /// How often everything is asked for again that a push should have told.
    pub poll_every: Duration,
}

/// What a request is for.
#[derive(Debug)]
enum Purpose {
    /// To deliver entries of the outbox.
    Deliver(Delivery),
    /// To learn whether an earlier request delivered them.
    Ascertain(Delivery),
    /// To attach or to report; it is repeated until it is answered. With how
    /// often it failed.
    Attach { payload: Bytes, failures: u32 },
    /// To compare clocks.
    Time,
    /// To answer a driver.
    Question(oneshot::Sender<Result<Bytes, NoAnswer>>),
}

impl Purpose {
    /// Whether the answer is proof for entries of the outbox.
    fn is_delivery(&self) -> bool {
        matches!(self, Purpose::Deliver { .. } | Purpose::Ascertain { .. })
    }
}

/// See the module documentation.
pub struct KaaDialogue {
    session: SessionName,
    manner: Manner,
    outbox: Arc<Outbox>,
    table: Table,
    requests: Requests<Purpose>,
    /// How many of them deliver something.
    deliveries: usize,
    /// What goes before the outbox, with its payload and, for a request that
    /// must not get a new one, its number.
    first: VecDeque<(Request<Purpose>, Bytes, Option<RequestId>)>,
    /// Refused attachments, by the time when they are tried again.
    later: BTreeMap<(Instant, u64), (Request<Purpose>, Bytes)>,
    /// What each endpoint was attached with: its channel and facts.
    attached: HashMap<Recipient, (String, Facts)>,
    /// Resources that were asked for and have not answered: topics without numbers.
    asked: HashSet<String>,
    poll_at: Option<Instant>,
    properties: Vec<Attribute>,
    commands: Commands,
    refusals: Refusals,
    complained: Option<Instant>,
    counter: u64,
}

impl KaaDialogue {
    /// A dialogue that has not begun.
    pub fn new(session: &SessionName, manner: Manner, outbox: Arc<Outbox>) -> Self {
        KaaDialogue {
            session: session.clone(),
            manner,
            outbox,
            table: Table::default(),
            // Not from 1: answers to a gateway that ran before must not count.
            requests: Requests::new(fastrand::u32(..1 << 30)),
            deliveries: 0,
            first: VecDeque::new(),
            later: BTreeMap::new(),
            attached: HashMap::new(),
            asked: HashSet::new(),
            poll_at: None,
            properties: Vec::new(),
            commands: Commands::default(),
            refusals: Refusals::default(),
            complained: None,
            counter: 0,
        }
    }

    /// Publishes a request under its number.
    fn send(&mut self, request: Request<Purpose>, payload: Bytes, id: Option<RequestId>, now: Instant) -> Outgoing {
        let deadline = now + self.manner.reply_timeout;
        self.deliveries += usize::from(request.purpose.is_delivery());
        let proof = match &request.purpose {
            Purpose::Deliver(Delivery { sequences, .. }) => {
                sequences.first().map_or(Proof::None, |s| Proof::Answer(*s))
            }
            _ => Proof::None,
        };
        let (extension, path, channel) = (request.extension, request.path.clone(), request.channel.clone());
        let id = match id {
            Some(id) => {
                self.requests.begin_as(id, request, deadline);
                id
            }
            None => self.requests.begin(request, deadline),
        };
        let (app_version, token) = channel.split_once('/').unwrap_or((&channel, ""));
        let topic = Topic { app_version, extension, token, path: &path, request: Some(id), answer: None }.to_string();
        let publication = Publication { topic: topic.into(), payload, joins: false, stamp: None };
        Outgoing { publication, proof }
    }

    /// Takes the answer to a request of ours.
    fn answered(&mut self, request: Request<Purpose>, answer: Answer, payload: &[u8], now: Instant) {
        let outcome = match answer {
            Answer::Status => answer::confirmation(payload),
            Answer::Error => Err(Failure::parse(payload)),
        };
        let Request { channel, extension, path, purpose } = request;
        self.deliveries = self.deliveries.saturating_sub(usize::from(purpose.is_delivery()));
        match (purpose, outcome) {
            (Purpose::Deliver(delivery), Ok(())) => self.delivered_to(&channel, &delivery),
            (Purpose::Deliver(delivery), Err(failure)) => {
                self.refused(&channel, delivery, (extension, &path), &failure, now);
            }
            (Purpose::Ascertain(delivery), outcome) => match outcome.is_ok() && arrived(payload) {
                true => self.delivered_to(&channel, &delivery),
                false => self.outbox.send_again(&delivery.sequences, false),
            },
            (Purpose::Question(reply), outcome) => {
                let result = outcome.map(|()| Bytes::copy_from_slice(payload));
                // The driver may be gone.
                let _ = reply.send(result.map_err(|failure| NoAnswer::Refused(failure.code, failure.reason)));
            }
            (Purpose::Time, Ok(())) => compare_clocks(self.session.as_str(), payload),
            (Purpose::Attach { .. }, Ok(())) => drop(self.asked.remove(&resource(&channel, extension, &path))),
            (Purpose::Time, Err(failure)) => {
                tracing::warn!(session = self.session.as_str(), "asking the time: {failure}")
            }
            (Purpose::Attach { payload, failures }, Err(failure)) => {
                let purpose = Purpose::Attach { payload: payload.clone(), failures: failures + 1 };
                self.attach_later(Request { channel, extension, path, purpose }, payload, &failure, now);
            }
        }
    }

    /// The device behind a channel, for the log.
    fn name_of(&self, channel: &str) -> String {
        match self.table.find(channel) {
            Some(Recipient::Device(device)) => device.to_string(),
            Some(Recipient::Gateway) => "(gateway)".into(),
            None => "(unknown)".into(),
        }
    }

    /// A request had no answer in time.
    fn expire(&mut self, id: RequestId, request: Request<Purpose>, now: Instant) {
        let seconds = self.manner.reply_timeout.as_secs_f32();
        if self.complained.is_none_or(|time| now - time >= COMPLAIN_EVERY) {
            self.complained = Some(now);
            let device = self.name_of(&request.channel);
            let (extension, path) = (request.extension, &request.path);
            tracing::warn!(
                session = self.session.as_str(),
                device,
                "{extension}/{path}: no answer within {seconds} s; sending again"
            );
        }
        self.deliveries = self.deliveries.saturating_sub(usize::from(request.purpose.is_delivery()));
        let Request { channel, extension, path, purpose } = request;
        match purpose {
            Purpose::Deliver(delivery) => {
                self.outbox.send_again(&delivery.sequences, false);
                let purpose = Purpose::Deliver(delivery);
                self.requests.remember_late(id, Request { channel, extension, path, purpose });
            }
            Purpose::Ascertain(delivery) => self.outbox.send_again(&delivery.sequences, false),
            // An endpoint that is no longer configured has nothing to ask.
            Purpose::Attach { .. } if self.table.find(&channel).is_none() => {}
            Purpose::Attach { payload, failures } => {
                let purpose = Purpose::Attach { payload: payload.clone(), failures };
                self.first.push_back((Request { channel, extension, path, purpose }, payload, None));
            }
            Purpose::Time => {}
            Purpose::Question(reply) => drop(reply.send(Err(NoAnswer::TimedOut))),
        }
    }

    /// What an answered request delivered, before it is taken out of the outbox.
    fn answered_delivery(&self, request: &Request<Purpose>) -> Option<Event> {
        let Purpose::Deliver(Delivery { sequences, .. }) = &request.purpose else { return None };
        let (device, topic) = self.outbox.look(*sequences.first()?)?;
        Some(Event::Answered { sequences: sequences.clone(), device, topic })
    }

    /// Takes an answer to a request that was given up: it was sent again, and
    /// if that is not answered yet, it need not be.
    fn answered_late(&mut self, request: Request<Purpose>, answer: Answer) {
        if let (Purpose::Deliver(delivery), Answer::Status) = (&request.purpose, answer) {
            self.delivered_to(&request.channel, delivery);
        }
    }
}

impl Dialogue for KaaDialogue {
    fn connected(&mut self, picture: &Picture, now: Time) {
        self.later.clear();
        self.attached.clear();
        self.asked.clear();
        self.commands.begin_anew();
        self.properties.clear();
        self.reconsider();
        self.poll_at = Some(Instant::now() + self.manner.poll_every);
        self.changed(picture, now);
        if self.manner.check_time
            && let Some(channel) = self.table.names().next()
        {
            let request =
                Request { channel: channel.clone(), extension: "tsx", path: String::new(), purpose: Purpose::Time };
            self.first.push_back((request, Bytes::new(), None));
        }
    }

    fn changed(&mut self, picture: &Picture, _: Time) {
        self.table = picture.table.clone();
        self.attached.retain(|recipient, _| picture.facts.contains_key(recipient));
        let mut recipients: Vec<_> = picture.facts.iter().collect();
        recipients.sort_by_key(|(recipient, _)| *recipient);
        for (recipient, facts) in recipients {
            self.attach_recipient(recipient, facts);
        }
        let gateway = self.table.channel(&Recipient::Gateway).map(|channel| channel.name.clone());
        if let Some(channel) = gateway
            && self.properties != picture.greeting.properties
        {
            self.properties.clone_from(&picture.greeting.properties);
            let metadata = Json::Object(metadata_of(&self.properties));
            self.attach(&channel, "epmx", "update/keys".into(), &metadata);
        }
    }

    fn next(&mut self, now: Instant) -> Option<Outgoing> {
        if self.requests.len().saturating_sub(self.deliveries) < UNANSWERED
            && let Some((request, payload, id)) = self.first.pop_front()
        {
            return Some(self.send(request, payload, id, now));
        }
        if self.deliveries >= UNANSWERED {
            return None;
        }
        let batch = self.outbox.take(now)?;
        self.deliver(batch, now)
    }

    fn delivered(&mut self, _: Sequence) {}

    fn unanswered(&self) -> Vec<Vec<Sequence>> {
        let deliveries = self.requests.iter().filter_map(|request| match &request.purpose {
            Purpose::Deliver(delivery) => Some(delivery.sequences.clone()),
            _ => None,
        });
        deliveries.collect()
    }

    fn receive(&mut self, topic: &str, payload: &[u8], now: Instant) -> Vec<Event> {
        let topic = match Topic::parse(topic) {
            Ok(topic) => topic,
            Err(expected) => return vec![Event::Refused(format!("a message on a strange topic; {expected}"))],
        };
        // A broker in between may send back what was published.
        let Some(answer) = topic.answer else { return Vec::new() };
        let channel = channel_name(topic.app_version, topic.token);
        let answered = topic.request.and_then(|id| self.requests.answer(id, &channel, topic.extension, topic.path));
        let limit = if answered.is_some() { MAX_ANSWER } else { MAX_PUSH };
        let is_question = matches!(answered, Some(Request { purpose: Purpose::Question(_), .. }));
        let delivered = answered.as_ref().and_then(|request| self.answered_delivery(request));
        let is_known = match (answered, topic.request) {
            (Some(request), _) => {
                self.answered(request, answer, payload, now);
                true
            }
            (None, Some(id)) => match self.requests.late(id, &channel, topic.extension, topic.path) {
                Some(request) => {
                    self.answered_late(request, answer);
                    true
                }
                None => false,
            },
            (None, None) => false,
        };
        let Some(recipient) = self.table.find(&channel).cloned() else {
            // What it had in the outbox may still be answered.
            let unknown = || Event::Refused("a message for an endpoint that is not configured".into());
            return if is_known { Vec::new() } else { vec![unknown()] };
        };
        if payload.len() > limit {
            let (extension, path, size) = (topic.extension, topic.path, payload.len());
            let name = self.name_of(&channel);
            return vec![Event::Refused(format!(
                "{extension}/{path} of {name}: expected at most {limit} bytes, found {size}"
            ))];
        }
        if answer == Answer::Error && topic.request.is_none() {
            let failure = Failure::parse(payload);
            let name = self.name_of(&channel);
            return vec![Event::Refused(format!("{}/{} of {name}: {failure}", topic.extension, topic.path))];
        }
        // Data counts whoever asked for it, and also when nobody did.
        let mut events: Vec<Event> = match answer {
            Answer::Status if !is_question => self.take_data(&topic, &recipient, payload, now),
            _ => Vec::new(),
        };
        while let Some(request) = self.commands.next(&channel, now) {
            events.push(Event::Command { recipient: recipient.clone(), request });
        }
        events.extend(delivered);
        events
    }

    fn ask(&mut self, question: Question, _: Instant) {
        let Question { channel, query, reply } = question;
        let (extension, path, payload) = request_of(query);
        let request = Request { channel, extension, path: path.to_owned(), purpose: Purpose::Question(reply) };
        self.first.push_back((request, payload, None));
    }

    fn next_wake(&self, ready: bool) -> Option<Instant> {
        let later = self.later.keys().next().map(|(due, _)| *due);
        let ripe = (ready && self.deliveries < UNANSWERED).then(|| self.outbox.next_wake()).flatten();
        let aside = self.refusals.next_wake();
        [self.requests.next_deadline(), later, ripe, aside, self.poll_at].into_iter().flatten().min()
    }

    fn wake(&mut self, now: Instant, _: Time) {
        while let Some((id, request)) = self.requests.expired(now) {
            self.expire(id, request, now);
        }
        while let Some(entry) = self.later.first_entry().filter(|entry| entry.key().0 <= now) {
            let (request, payload) = entry.remove();
            self.first.push_back((request, payload, None));
        }
        while let Some(sequences) = self.refusals.take_due(now) {
            self.outbox.send_again(&sequences, true);
        }
        if self.poll_at.is_some_and(|due| due <= now) {
            self.poll_at = Some(now + self.manner.poll_every);
            let mut all: Vec<Recipient> = self.attached.keys().cloned().collect();
            all.sort();
            all.iter().for_each(|recipient| self.ask_again(recipient));
        }
    }
}

/// The extension, resource and payload of a driver's query.
fn request_of(query: Query) -> (&'static str, &'static str, Bytes) {
    let text = |json: Json| Bytes::from(json.to_string());
    match query {
        Query::MetadataKeys => ("epmx", "get/keys", Bytes::new()),
        Query::Metadata(keys) if keys.is_empty() => ("epmx", "get", Bytes::new()),
        Query::Metadata(keys) => ("epmx", "get", text(json!({ "keys": keys }))),
        Query::ReplaceMetadata(entries) => ("epmx", "update", text(entries.into())),
        Query::MergeMetadata(entries) => ("epmx", "update/keys", text(entries.into())),
        Query::DeleteMetadata(keys) => ("epmx", "delete/keys", text(keys.into())),
        Query::UploadToken => ("bcx", "token", Bytes::new()),
    }
}

/// Names a resource of an endpoint.
fn resource(channel: &str, extension: &str, path: &str) -> String {
    format!("{channel}/{extension}/{path}")
}

/// 2 s, 4 s, 8 s, … 120 s.
fn pause(refusals: u32) -> Duration {
    SHORTEST_PAUSE.saturating_mul(1 << refusals.min(16)).min(LONGEST_PAUSE)
}

/// The extensions that are spoken.
fn extension(name: &str) -> Option<&'static str> {
    ["dcx", "epmx", "cex", "cmx", "cmx_ota"].into_iter().find(|known| *known == name)
}

fn compare_clocks(session: &str, payload: &[u8]) {
    let body: Json = serde_json::from_slice(payload).unwrap_or_default();
    let Some(cloud) = body.get("timestamp").and_then(Json::as_u64) else {
        return tracing::warn!(session, "tsx: expected a `timestamp` in milliseconds");
    };
    let own = now();
    if own.abs_diff(cloud) > CLOCK_TOLERANCE {
        let seconds = own.abs_diff(cloud) / 1000;
        let way = if own > cloud { "ahead of" } else { "behind" };
        tracing::warn!(session, "the clock of this machine is {seconds} s {way} the cloud's");
    }
}

#[cfg(test)]
mod tests;
