//! The state of one connection: what was handed to the MQTT client and has no
//! proof yet, and what is subscribed to. The session's, and gone with its end.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use rumqttc::{AsyncClient, QoS, Request, SubAck, Subscribe, SubscribeFilter, SubscribeReasonCode, Unsubscribe};
use tokio::time::Instant;

use super::dialogue::Proof;
use super::window::{MOST, Window};
use crate::outbox::Sequence;

/// Answered pings without any other answer, after which the connection counts as stalled.
const STALLED: u32 = 2;
/// Filters in one SUBSCRIBE packet.
const FILTERS: usize = 100;
/// How long a refused subscription waits, at first and at most.
const SHORTEST_REFUSAL: Duration = Duration::from_secs(10);
const LONGEST_REFUSAL: Duration = Duration::from_secs(600);

/// A message without a PUBACK.
#[derive(Debug, Clone, Copy)]
struct Message {
    proof: Proof,
    /// Its size in bytes.
    size: usize,
}

/// See the module documentation.
pub(super) struct Connection {
    pub client: AsyncClient,
    /// What was handed to the client and has no packet id yet.
    handed: VecDeque<Message>,
    /// Requests other than messages in the client's channel.
    in_channel: usize,
    /// What has no PUBACK, by packet id: the client uses ids up to `MOST`.
    unproved: Vec<Option<Message>>,
    /// How many those are.
    open: usize,
    /// The size of all that was handed over and has no PUBACK.
    bytes: usize,
    window: Window,
    /// Whether each message goes by itself.
    pub is_careful: bool,
    /// How many PUBACKs came.
    proofs: u64,
    /// Whether no PUBACK comes, and whether no SUBACK does.
    messages_stall: Stall,
    subscriptions_stall: Stall,
    pub subscriptions: Subscriptions,
    pub since: Instant,
    /// Whether a burst may be written: what has arrived was looked at since the last one.
    pub may_burst: bool,
    /// Whether the last burst left something to say.
    pub has_more: bool,
}

impl Connection {
    pub(super) fn new(client: AsyncClient) -> Self {
        Connection {
            client,
            handed: VecDeque::new(),
            in_channel: 0,
            unproved: vec![None; usize::from(MOST) + 1],
            open: 0,
            bytes: 0,
            window: Window::new(),
            is_careful: false,
            proofs: 0,
            messages_stall: Stall::default(),
            subscriptions_stall: Stall::default(),
            subscriptions: Subscriptions::default(),
            since: Instant::now(),
            may_burst: true,
            has_more: false,
        }
    }

    /// A message was handed to the client.
    pub(super) fn handed(&mut self, proof: Proof, size: usize) {
        self.handed.push_back(Message { proof, size });
        self.bytes += size;
    }

    /// A request that is no message was put into the client's channel.
    pub(super) fn queued(&mut self) {
        self.in_channel += 1;
    }

    /// The client tells that it wrote a request that is no message.
    pub(super) fn wrote_request(&mut self) {
        self.in_channel = self.in_channel.saturating_sub(1);
    }

    /// The client tells that it wrote a SUBSCRIBE, by this packet id.
    pub(super) fn wrote_subscription(&mut self, packet: u16) {
        self.wrote_request();
        self.subscriptions.wrote(packet);
    }

    /// The client tells that it wrote a message, by this packet id. Gives the
    /// entry of the outbox that has all the proof there will be: with quality
    /// of service 0 there are no ids.
    pub(super) fn wrote_message(&mut self, packet: u16) -> Option<Sequence> {
        let message = self.handed.pop_front()?;
        if packet == 0 {
            self.bytes -= message.size;
            return message.entry();
        }
        if let Some(place) = self.unproved.get_mut(usize::from(packet)) {
            self.open += usize::from(place.replace(message).is_none());
            self.window.wrote(packet);
        }
        None
    }

    /// A PUBACK came; gives the entry of the outbox that it proves.
    pub(super) fn proved(&mut self, packet: u16) -> Option<Sequence> {
        self.proofs += 1;
        let message = self.unproved.get_mut(usize::from(packet))?.take()?;
        self.open -= 1;
        self.bytes -= message.size;
        self.window.proved(packet);
        message.entry()
    }

    /// What has no PUBACK. Those that a cloud answers are not among them.
    pub(super) fn unproved(&self) -> Vec<Option<Sequence>> {
        let all = self.unproved.iter().flatten().chain(&self.handed);
        let is_answered = |message: &&Message| matches!(message.proof, Proof::Answer(_));
        all.filter(|message| !is_answered(message)).map(Message::entry).collect()
    }

    /// Whether nothing is on the way.
    pub(super) fn is_empty(&self) -> bool {
        self.handed.is_empty() && self.open == 0
    }

    /// A ping was answered. Whether the broker answers pings, but acknowledges
    /// no message, or no subscription, of those that wait.
    pub(super) fn is_stalled(&mut self) -> bool {
        let messages = self.messages_stall.pinged(self.open > 0, self.proofs);
        let subscriptions = &self.subscriptions;
        self.subscriptions_stall.pinged(!subscriptions.all_answered(), subscriptions.answers) || messages
    }

    /// Whether the client has told of everything that it was handed, so that
    /// what is handed next is told of next.
    pub(super) fn is_quiet(&self) -> bool {
        self.handed.is_empty() && self.in_channel == 0 && self.has_room()
    }

    pub(super) fn has_room(&self) -> bool {
        let messages = self.handed.len() + self.open;
        self.window.has_room(messages, self.bytes) && !(self.is_careful && messages > 0)
    }
}

impl Message {
    /// The entry of the outbox that its PUBACK proves.
    fn entry(&self) -> Option<Sequence> {
        match self.proof {
            Proof::Packet(sequence) => Some(sequence),
            Proof::Answer(_) | Proof::None => None,
        }
    }
}

/// Whether a broker that answers pings answers nothing else.
#[derive(Debug, Default)]
struct Stall {
    /// Answers until the last ping.
    answers: u64,
    /// Pings that were answered in a row while nothing else was.
    pings: u32,
}

impl Stall {
    fn pinged(&mut self, something_waits: bool, answers: u64) -> bool {
        self.pings = if something_waits && answers == self.answers { self.pings + 1 } else { 0 };
        self.answers = answers;
        self.pings >= STALLED
    }
}

/// What is subscribed to, and the requests that make it so. What the broker
/// refuses is asked for again now and then. Time comes in.
#[derive(Default)]
pub(super) struct Subscriptions {
    filters: HashSet<String>,
    /// What is to be written, in order.
    requests: VecDeque<Request>,
    /// The filters of SUBSCRIBE packets that have no packet id yet, in order.
    handed: VecDeque<Vec<SubscribeFilter>>,
    /// Those that were written, by packet id.
    written: HashMap<u16, Vec<SubscribeFilter>>,
    /// SUBSCRIBE packets, written or not, without an answer.
    unanswered: usize,
    /// SUBACK packets that came.
    answers: u64,
    refused: Vec<SubscribeFilter>,
    /// How often in a row something was refused.
    refusals: u32,
    /// When what was refused is asked for again.
    again_at: Option<Instant>,
}

impl Subscriptions {
    /// Subscribes to what is missing and unsubscribes from what is too much.
    pub(super) fn want(&mut self, wanted: HashSet<String>, qos: QoS) {
        let missing: Vec<_> =
            wanted.difference(&self.filters).map(|filter| SubscribeFilter::new(filter.clone(), qos)).collect();
        self.ask(&missing);
        let surplus = self.filters.difference(&wanted);
        self.requests.extend(surplus.map(|filter| Request::Unsubscribe(Unsubscribe::new(filter))));
        self.refused.retain(|filter| wanted.contains(&filter.path));
        self.filters = wanted;
    }

    fn ask(&mut self, filters: &[SubscribeFilter]) {
        for filters in filters.chunks(FILTERS) {
            self.requests.push_back(Request::Subscribe(Subscribe::new_many(filters.to_vec())));
            self.unanswered += 1;
        }
    }

    /// The next request to write.
    pub(super) fn next(&mut self) -> Option<Request> {
        let request = self.requests.pop_front()?;
        if let Request::Subscribe(subscribe) = &request {
            self.handed.push_back(subscribe.filters.clone());
        }
        Some(request)
    }

    fn wrote(&mut self, packet: u16) {
        if let Some(filters) = self.handed.pop_front() {
            self.written.insert(packet, filters);
        }
    }

    /// A SUBACK came. Gives the filters that it refuses, the first time.
    pub(super) fn answered(&mut self, ack: &SubAck, now: Instant) -> Vec<String> {
        self.unanswered = self.unanswered.saturating_sub(1);
        self.answers += 1;
        let filters = self.written.remove(&ack.pkid).unwrap_or_default().into_iter();
        let refused: Vec<SubscribeFilter> = filters
            .zip(&ack.return_codes)
            .filter(|(_, code)| **code == SubscribeReasonCode::Failure)
            .map(|(filter, _)| filter)
            .collect();
        if refused.is_empty() {
            return Vec::new();
        }
        let names = refused.iter().map(|filter| filter.path.clone()).collect();
        self.refused.extend(refused);
        let pause = (SHORTEST_REFUSAL * 2_u32.saturating_pow(self.refusals.min(10))).min(LONGEST_REFUSAL);
        self.again_at.get_or_insert(now + pause);
        if self.refusals == 0 { names } else { Vec::new() }
    }

    /// When to look again.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.again_at
    }

    /// Asks again for what was refused, when it is time.
    pub(super) fn wake(&mut self, now: Instant) {
        if self.again_at.is_some_and(|time| time <= now) {
            self.again_at = None;
            self.refusals += 1;
            let refused = std::mem::take(&mut self.refused);
            self.ask(&refused);
        }
    }

    pub(super) fn all_answered(&self) -> bool {
        self.unanswered == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_broker_refuses_is_asked_for_again_later_and_told_once() {
        let now = Instant::now();
        let ack = |pkid, codes: &[SubscribeReasonCode]| SubAck { pkid, return_codes: codes.to_vec() };
        let (yes, no) = (SubscribeReasonCode::Success(QoS::AtLeastOnce), SubscribeReasonCode::Failure);
        let mut subscriptions = Subscriptions::default();
        subscriptions.want(HashSet::from(["a".to_owned(), "b".to_owned()]), QoS::AtLeastOnce);
        let Some(Request::Subscribe(first)) = subscriptions.next() else { panic!("it subscribes") };
        subscriptions.wrote(7);
        let refused = first.filters[1].path.clone();
        assert_eq!(subscriptions.answered(&ack(7, &[yes, no]), now), std::slice::from_ref(&refused));
        subscriptions.wake(now + Duration::from_secs(9));
        assert!(subscriptions.next().is_none());
        subscriptions.wake(now + Duration::from_secs(10));
        let Some(Request::Subscribe(second)) = subscriptions.next() else { panic!("it subscribes again") };
        assert_eq!(second.filters.iter().map(|filter| &filter.path).collect::<Vec<_>>(), [&refused]);
        subscriptions.wrote(8);
        assert_eq!(subscriptions.answered(&ack(8, &[no]), now), Vec::<String>::new());
        assert_eq!(subscriptions.next_wake(), Some(now + Duration::from_secs(20)));
        // What is no longer wanted is not asked for.
        subscriptions.want(HashSet::from(["c".to_owned()]), QoS::AtLeastOnce);
        while subscriptions.next().is_some() {}
        subscriptions.wake(now + Duration::from_secs(60));
        assert!(subscriptions.next().is_none());
    }

    #[test]
    fn a_broker_that_answers_nothing_but_pings_is_found_and_one_that_is_idle_is_not() {
        let mut stall = Stall::default();
        for (something_waits, answers, found) in [
            (false, 0, false),
            (true, 0, false),
            (true, 1, false),
            (true, 1, false),
            (true, 1, true),
            (true, 2, false),
            (false, 2, false),
            (false, 2, false),
        ] {
            assert_eq!(stall.pinged(something_waits, answers), found, "{something_waits} {answers}");
        }
    }
}
