//! The dialogue with Enapter: the set of children is announced after every
//! connect and every change, and the broker's PUBACK is all the proof there is.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Picture;
use super::dialogue::{Dialogue, Event, Outgoing, Proof};
use crate::clock::Moment;
use crate::cloud::Greeting;
use crate::cloud::enapter::Enapter;
use crate::message::{DeviceId, Publication, SessionName, Time, now};
use crate::outbox::{Class, Outbox, Sequence};
use crate::question::{NoAnswer, Question};
use crate::router::{GATEWAY, Table};

/// How often a v1 UCM must be heard.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// Beats between two repetitions of its properties.
const BEATS: u32 = 30;
/// How long a connection waits for the last words of a child that is gone.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// See the module documentation.
pub struct EnapterDialogue {
    session: SessionName,
    cloud: Enapter,
    outbox: Arc<Outbox>,
    table: Table,
    /// What is announced: the gateway's properties and its children.
    greeting: Greeting,
    /// Children that are gone, but have something in the outbox: they stay
    /// announced until it is sent, for the cloud drops what comes after.
    leaving: HashMap<DeviceId, Leaving>,
    /// What goes before the outbox.
    first: VecDeque<Publication>,
    keep_alive: Option<Instant>,
    /// Keep-alives since the connect.
    beats: u32,
}

/// A child that is gone.
struct Leaving {
    kind: String,
    /// What it has not sent by then is dropped.
    until: Instant,
}

impl EnapterDialogue {
    /// A dialogue that has not begun.
    pub fn new(session: &SessionName, cloud: Enapter, outbox: Arc<Outbox>) -> Self {
        EnapterDialogue {
            session: session.clone(),
            cloud,
            outbox,
            table: Table::default(),
            greeting: Greeting::default(),
            leaving: HashMap::new(),
            first: VecDeque::new(),
            keep_alive: None,
            beats: 0,
        }
    }

    /// Announces the children, those that are leaving among them; only after
    /// that their messages may go.
    fn announce_children(&mut self, now: Time) {
        let mut greeting = self.greeting.clone();
        greeting.children.extend(self.leaving.iter().map(|(device, child)| (device.clone(), child.kind.clone())));
        self.first.extend(self.cloud.greet(now, &greeting));
        let children = greeting.children.into_iter().map(|(device, _)| device);
        self.outbox.admit(children.chain([DeviceId::new(GATEWAY)]).collect());
    }

    /// Lets go of children that have said their last words, or had time to.
    fn let_go(&mut self, now: Instant, time: Time) {
        let outbox = &self.outbox;
        let before = self.leaving.len();
        self.leaving.retain(|device, child| {
            let is_done = outbox.count(device) == 0;
            if !is_done && child.until <= now {
                let number = outbox.discard(device);
                tracing::warn!(
                    device = device.as_str(),
                    "dropped {number} messages: the device is gone, and the cloud takes nothing more of it"
                );
            }
            !is_done && child.until > now
        });
        if self.leaving.len() < before {
            self.announce_children(time);
        }
    }
}

impl Dialogue for EnapterDialogue {
    fn connected(&mut self, picture: &Picture, now: Time) {
        self.first.clear();
        self.outbox.rewind();
        self.keep_alive = self.cloud.needs_ucm.then(Instant::now);
        for child in self.leaving.values_mut() {
            child.until = Instant::now() + LAST_WORDS;
        }
        self.changed(picture, now);
    }

    fn changed(&mut self, picture: &Picture, now: Time) {
        self.table = picture.table.clone();
        let before = std::mem::replace(&mut self.greeting, picture.greeting.clone());
        let children: HashSet<&DeviceId> = self.greeting.children.iter().map(|(device, _)| device).collect();
        self.leaving.retain(|device, _| !children.contains(device));
        let gone = before.children.into_iter().filter(|(device, _)| !children.contains(device));
        for (device, kind) in gone.filter(|(device, _)| self.outbox.count(device) > 0).collect::<Vec<_>>() {
            self.leaving.insert(device, Leaving { kind, until: Instant::now() + LAST_WORDS });
        }
        self.announce_children(now);
    }

    /// A broker may allow a child's topics only when the child is announced.
    fn announce(&mut self) -> Option<Publication> {
        self.first.pop_front()
    }

    fn next(&mut self, now: Instant) -> Option<Outgoing> {
        let (sequence, publication) = self.outbox.take(now)?.parts.pop()?;
        Some(Outgoing { publication, proof: Proof::Packet(sequence) })
    }

    fn delivered(&mut self, sequence: Sequence) {
        self.outbox.acknowledge(sequence);
        if !self.leaving.is_empty() {
            self.let_go(Instant::now(), now());
        }
    }

    fn receive(&mut self, topic: &str, payload: &[u8], _: Instant) -> Vec<Event> {
        let event = match self.cloud.decode(topic, payload) {
            Ok((channel, mut request)) => match self.table.find(&channel) {
                Some(recipient) => {
                    request.session = Some(self.session.clone());
                    Event::Command { recipient: recipient.clone(), request }
                }
                None => match self.cloud.answer_as_ucm(&channel, &request.id) {
                    Some(answers) => {
                        let (gateway, moment) = (DeviceId::new(GATEWAY), Moment::now());
                        let answers = answers.into_iter();
                        answers.for_each(|answer| self.outbox.append(&gateway, Class::Answer, moment, answer));
                        return Vec::new();
                    }
                    None => Event::Refused(format!("a command for the unknown channel {channel:?}")),
                },
            },
            Err(error) => {
                let text = format!("a message on {error}");
                let told = error.reply_to.and_then(|(channel, id)| Some((self.table.find(&channel)?.clone(), id)));
                match told {
                    Some((recipient, command)) => Event::Unusable { recipient, command, problem: error.problem },
                    None => Event::Refused(text),
                }
            }
        };
        vec![event]
    }

    fn ask(&mut self, question: Question, _: Instant) {
        // Routes of this cloud offer no questions.
        let _ = question.reply.send(Err(NoAnswer::Unavailable));
    }

    fn next_wake(&self, _: bool) -> Option<Instant> {
        self.leaving.values().map(|child| child.until).chain(self.keep_alive).min()
    }

    fn wake(&mut self, now: Instant, time: Time) {
        if !self.leaving.is_empty() {
            self.let_go(now, time);
        }
        if self.keep_alive.is_some_and(|due| due <= now) {
            self.keep_alive = Some(now + KEEP_ALIVE);
            // On a slow way the one before may still wait.
            if self.first.is_empty() {
                self.first.extend(self.cloud.keep_alive(time));
            }
            self.beats = self.beats.wrapping_add(1);
            if self.beats.is_multiple_of(BEATS) {
                self.first.extend(self.cloud.ucm_properties(time));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PropertiesTopic;
    use crate::outbox::Bounds;

    #[test]
    fn a_v1_ucm_is_heard_every_second_and_tells_its_properties_every_thirtieth() {
        let cloud = Enapter {
            hardware_id: "U01".into(),
            channel_id: "c".into(),
            properties_topic: PropertiesTopic::Properties,
            needs_ucm: true,
        };
        let outbox = Arc::new(Outbox::new(Bounds::default()));
        let mut dialogue = EnapterDialogue::new(&SessionName::new("s"), cloud, outbox);
        dialogue.connected(&Picture::default(), 0);
        let topics = |dialogue: &mut EnapterDialogue| -> Vec<String> {
            std::iter::from_fn(|| dialogue.announce()).map(|publication| publication.topic.to_string()).collect()
        };
        assert_eq!(topics(&mut dialogue), ["v1/from/U01/c/v1/properties", "v1/from/U01/ucm/v1/register"]);
        let begin = Instant::now();
        let mut said = Vec::new();
        for second in 0..60 {
            dialogue.wake(begin + Duration::from_secs(second), second * 1000);
            said.extend(topics(&mut dialogue));
        }
        let count = |end: &str| said.iter().filter(|topic| topic.ends_with(end)).count();
        assert_eq!((count("ucm/v1/telemetry"), count("ucm/v1/register"), said.len()), (60, 2, 62));
    }

    #[test]
    fn a_v1_ucm_answers_its_commands_with_what_the_outbox_keeps() {
        let cloud = Enapter {
            hardware_id: "U01".into(),
            channel_id: "c".into(),
            properties_topic: PropertiesTopic::Properties,
            needs_ucm: true,
        };
        let outbox = Arc::new(Outbox::new(Bounds { bytes: 1 << 20, ..Bounds::default() }));
        let mut dialogue = EnapterDialogue::new(&SessionName::new("s"), cloud, Arc::clone(&outbox));
        let request = br#"{"id":"1","name":"reboot"}"#;
        let topic = "v1/to/U01/ucm/v1/command/requests";
        assert!(dialogue.receive(topic, request, Instant::now()).is_empty());
        assert_eq!(outbox.count(&DeviceId::new(GATEWAY)), 2);
    }

    fn child(device: &str) -> (DeviceId, String) {
        (DeviceId::new(device), "meter".into())
    }

    fn picture(children: &[&str]) -> Picture {
        let children = children.iter().map(|device| child(device)).collect();
        Picture { greeting: Greeting { properties: vec![], children }, ..Picture::default() }
    }

    /// All that is said now, in order: the children of an announcement, or the topic.
    fn said(dialogue: &mut EnapterDialogue) -> Vec<String> {
        let mut all = Vec::new();
        loop {
            let Some(publication) = dialogue.announce() else {
                let Some(message) = dialogue.next(Instant::now()) else { return all };
                all.push(message.publication.topic.to_string());
                dialogue.delivered(message.proof.sequence().unwrap());
                continue;
            };
            let body: serde_json::Value = serde_json::from_slice(&publication.payload).unwrap();
            all.push(body["children"].as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" "));
        }
    }

    #[test]
    fn a_child_is_announced_before_its_first_message_and_until_after_its_last() {
        let cloud = Enapter {
            hardware_id: "U01".into(),
            channel_id: "c".into(),
            properties_topic: PropertiesTopic::Properties,
            needs_ucm: false,
        };
        let outbox = Arc::new(Outbox::new(Bounds { bytes: 1 << 20, ..Bounds::default() }));
        let append = |device: &str| {
            let publication = Publication { topic: device.into(), payload: "".into(), joins: false, stamp: None };
            outbox.append(&DeviceId::new(device), crate::outbox::Class::Keep, crate::clock::Moment::now(), publication);
        };
        let mut dialogue = EnapterDialogue::new(&SessionName::new("s"), cloud, Arc::clone(&outbox));
        append("a");
        append("b");
        dialogue.connected(&picture(&["a"]), 0);
        assert_eq!(said(&mut dialogue), ["a", "a"]);
        dialogue.changed(&picture(&["a", "b"]), 0);
        assert_eq!(said(&mut dialogue), ["a b", "b"]);
        append("b");
        dialogue.changed(&picture(&["a"]), 0);
        append("a");
        assert_eq!(said(&mut dialogue), ["a b", "b", "a", "a"]);
        // One whose last words nobody takes is let go in time.
        append("a");
        dialogue.changed(&picture(&[]), 0);
        dialogue.wake(Instant::now() + LAST_WORDS, 0);
        assert_eq!(said(&mut dialogue), ["a", ""]);
        assert_eq!(outbox.count(&DeviceId::new("a")), 0);
    }
}
