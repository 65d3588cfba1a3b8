//! The dialogue with Enapter: the set of children is announced after every
//! connect and every change, and the broker's PUBACK is all the proof there is.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Picture;
use super::dialogue::{Dialogue, Event, NoAnswer, Outgoing, Question};
use crate::cloud::enapter::Enapter;
use crate::message::{Publication, Time};
use crate::outbox::{Outbox, Sequence};
use crate::router::Table;

/// How often a v1 UCM must be heard.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// It repeats its properties after so many times.
const BEATS: u32 = 30;

/// See the module documentation.
pub struct EnapterDialogue {
    session: Arc<str>,
    cloud: Enapter,
    outbox: Arc<Outbox>,
    table: Table,
    /// What goes before the outbox.
    first: VecDeque<Publication>,
    keep_alive: Option<Instant>,
    /// Keep-alives since the connect.
    beats: u32,
}

impl EnapterDialogue {
    /// A dialogue that has not begun.
    pub fn new(session: &str, cloud: Enapter, outbox: Arc<Outbox>) -> Self {
        let (table, first) = (Table::default(), VecDeque::new());
        EnapterDialogue { session: session.into(), cloud, outbox, table, first, keep_alive: None, beats: 0 }
    }
}

impl Dialogue for EnapterDialogue {
    fn connected(&mut self, picture: &Picture, now: Time) {
        self.first.clear();
        self.outbox.rewind();
        self.keep_alive = self.cloud.needs_ucm.then(Instant::now);
        self.changed(picture, now);
    }

    fn changed(&mut self, picture: &Picture, now: Time) {
        self.table = picture.table.clone();
        self.first.extend(self.cloud.greet(now, &picture.greeting));
    }

    /// A broker may allow a child's topics only when the child is announced.
    fn announce(&mut self) -> Option<Publication> {
        self.first.pop_front()
    }

    fn next(&mut self, now: Instant) -> Option<Outgoing> {
        let (sequence, publication) = self.outbox.take(now)?.parts.pop()?;
        Some(Outgoing { publication, proof: Some(sequence) })
    }

    fn delivered(&mut self, sequence: Sequence) {
        self.outbox.acknowledge(sequence);
    }

    fn receive(&mut self, topic: &str, payload: &[u8], _: Instant) -> Vec<Event> {
        let event = match self.cloud.decode(topic, payload) {
            Ok((channel, mut request)) => match self.table.find(&channel) {
                Some(recipient) => {
                    request.session = Some(Arc::clone(&self.session));
                    Event::Command { recipient: recipient.clone(), request }
                }
                None => Event::Refused(format!("a command for the unknown channel {channel:?}")),
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
        self.keep_alive
    }

    fn wake(&mut self, now: Instant, time: Time) {
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
        let mut dialogue = EnapterDialogue::new("s", cloud, outbox);
        dialogue.connected(&Picture::default(), 0);
        let topics = |dialogue: &mut EnapterDialogue| -> Vec<String> {
            std::iter::from_fn(|| dialogue.announce()).map(|publication| publication.topic.to_string()).collect()
        };
        assert_eq!(topics(&mut dialogue), ["v1/from/U01/c/v1/properties", "v1/from/U01/ucm/v1/properties"]);
        let begin = Instant::now();
        let mut said = Vec::new();
        for second in 0..60 {
            dialogue.wake(begin + Duration::from_secs(second), second * 1000);
            said.extend(topics(&mut dialogue));
        }
        let count = |end: &str| said.iter().filter(|topic| topic.ends_with(end)).count();
        assert_eq!((count("ucm/v1/telemetry"), count("ucm/v1/properties"), said.len()), (60, 2, 62));
    }
}
