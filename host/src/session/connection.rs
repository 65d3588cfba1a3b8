//! The state of one connection: what was handed to the MQTT client and has no
//! proof yet, and what is subscribed to. The session's, and gone with its end.

use std::collections::{HashMap, HashSet, VecDeque};

use rumqttc::{AsyncClient, QoS, Request, Subscribe, SubscribeFilter, Unsubscribe};
use tokio::time::Instant;

use crate::outbox::Sequence;

/// Messages on the way to the broker without a PUBACK.
pub(super) const IN_FLIGHT: u16 = 256;
/// Filters in one SUBSCRIBE packet.
const FILTERS: usize = 100;

/// See the module documentation.
pub(super) struct Connection {
    pub client: AsyncClient,
    /// What was handed to the client and has no packet id yet; none stands for
    /// a message that is not from the outbox.
    pub handed: VecDeque<Option<Sequence>>,
    /// Packet ids without a PUBACK.
    pub unproved: HashMap<u16, Option<Sequence>>,
    pub subscriptions: Subscriptions,
    pub since: Instant,
}

impl Connection {
    pub(super) fn new(client: AsyncClient) -> Self {
        Connection {
            client,
            handed: VecDeque::new(),
            unproved: HashMap::new(),
            subscriptions: Subscriptions::default(),
            since: Instant::now(),
        }
    }

    /// Whether the client has told of everything that it was handed, so that
    /// what is handed next is told of next.
    pub(super) fn is_quiet(&self) -> bool {
        self.handed.is_empty() && self.has_room()
    }

    pub(super) fn has_room(&self) -> bool {
        self.handed.len() + self.unproved.len() < usize::from(IN_FLIGHT)
    }
}

/// What is subscribed to, and the requests that make it so.
#[derive(Default)]
pub(super) struct Subscriptions {
    filters: HashSet<String>,
    /// What is to be written, in order.
    requests: VecDeque<Request>,
    /// SUBSCRIBE packets, written or not, without an answer.
    unanswered: usize,
}

impl Subscriptions {
    /// Subscribes to what is missing and unsubscribes from what is too much.
    pub(super) fn want(&mut self, wanted: HashSet<String>, qos: QoS) {
        let missing: Vec<_> =
            wanted.difference(&self.filters).map(|filter| SubscribeFilter::new(filter.clone(), qos)).collect();
        for filters in missing.chunks(FILTERS) {
            self.requests.push_back(Request::Subscribe(Subscribe::new_many(filters.to_vec())));
            self.unanswered += 1;
        }
        let surplus = self.filters.difference(&wanted);
        self.requests.extend(surplus.map(|filter| Request::Unsubscribe(Unsubscribe::new(filter))));
        self.filters = wanted;
    }

    /// The next request to write.
    pub(super) fn next(&mut self) -> Option<Request> {
        self.requests.pop_front()
    }

    /// A SUBACK came.
    pub(super) fn answered(&mut self) {
        self.unanswered = self.unanswered.saturating_sub(1);
    }

    pub(super) fn all_answered(&self) -> bool {
        self.unanswered == 0
    }
}
