//! What is subscribed to on one connection, and the requests that make it so.
//! What the broker refuses is asked for again now and then. Time comes in.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use rumqttc::{QoS, Request, SubAck, Subscribe, SubscribeFilter, SubscribeReasonCode, Unsubscribe};
use tokio::time::Instant;

use super::stall::Stall;

/// Filters in one SUBSCRIBE packet.
const FILTERS: usize = 100;
/// How long a refused subscription waits, at first and at most.
const SHORTEST_REFUSAL: Duration = Duration::from_secs(10);
const LONGEST_REFUSAL: Duration = Duration::from_secs(600);

/// See the module documentation.
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
    stall: Stall,
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

    /// The client tells that it wrote a SUBSCRIBE, by this packet id.
    pub(super) fn wrote(&mut self, packet: u16) {
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

    /// Whether every SUBSCRIBE has its answer.
    pub(super) fn all_answered(&self) -> bool {
        self.unanswered == 0
    }

    /// A ping was answered. Whether the broker answers pings, and no SUBSCRIBE.
    pub(super) fn is_stalled(&mut self) -> bool {
        self.stall.pinged(!self.all_answered(), self.answers)
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
}
