//! Requests without an answer: their numbers, what each is for, and until when
//! the answer is waited for. Plain state.

use std::collections::{BTreeSet, HashMap, VecDeque};
use tokio::time::Instant;

use crate::cloud::kaa::topic::{LAST_REQUEST, RequestId};

/// Requests that are remembered after they were given up.
const LATE: usize = 1024;

/// What was asked, and where: an answer must come on the same resource.
#[derive(Debug)]
pub(super) struct Request<P> {
    pub channel: String,
    pub extension: &'static str,
    pub path: String,
    pub purpose: P,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Requests<P> {
    last: RequestId,
    open: HashMap<RequestId, (Request<P>, Instant)>,
    deadlines: BTreeSet<(Instant, RequestId)>,
    /// Requests that were given up; their answers may still come.
    late: VecDeque<(RequestId, Request<P>)>,
}

impl<P> Requests<P> {
    /// Begins behind a number; any will do.
    pub(super) fn new(last: RequestId) -> Self {
        let last = last.min(LAST_REQUEST);
        Requests { last, open: HashMap::new(), deadlines: BTreeSet::new(), late: VecDeque::new() }
    }

    /// How many have no answer yet.
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// Those that have no answer yet.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Request<P>> {
        self.open.values().map(|(request, _)| request)
    }

    /// Takes a request and gives it a number: the next one, from 1 again after
    /// the last, without those that have no answer yet.
    pub(super) fn begin(&mut self, request: Request<P>, deadline: Instant) -> RequestId {
        loop {
            self.last = if self.last >= LAST_REQUEST { 1 } else { self.last + 1 };
            if !self.open.contains_key(&self.last) {
                break;
            }
        }
        self.begin_as(self.last, request, deadline);
        self.last
    }

    /// Takes a request that has a number already.
    pub(super) fn begin_as(&mut self, id: RequestId, request: Request<P>, deadline: Instant) {
        if let Some((_, before)) = self.open.insert(id, (request, deadline)) {
            self.deadlines.remove(&(before, id));
        }
        self.deadlines.insert((deadline, id));
    }

    /// Ends a request, if one with this number waits for this resource.
    pub(super) fn answer(&mut self, id: RequestId, channel: &str, extension: &str, path: &str) -> Option<Request<P>> {
        let (request, _) = self.open.get(&id)?;
        if request.channel != channel || request.extension != extension || request.path != path {
            return None;
        }
        let (request, deadline) = self.open.remove(&id)?;
        self.deadlines.remove(&(deadline, id));
        Some(request)
    }

    /// When the first one is given up.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Takes one that has waited long enough.
    pub(super) fn expired(&mut self, now: Instant) -> Option<(RequestId, Request<P>)> {
        let (deadline, id) = *self.deadlines.first().filter(|(deadline, _)| *deadline <= now)?;
        self.deadlines.remove(&(deadline, id));
        self.open.remove(&id).map(|(request, _)| (id, request))
    }

    /// Takes all: their connection is gone.
    pub(super) fn take(&mut self) -> Vec<(RequestId, Request<P>)> {
        self.deadlines.clear();
        let mut all: Vec<_> = self.open.drain().map(|(id, (request, _))| (id, request)).collect();
        all.sort_unstable_by_key(|(id, _)| *id);
        all
    }

    /// Remembers a request that was given up: a late answer counts as well.
    pub(super) fn remember_late(&mut self, id: RequestId, request: Request<P>) {
        self.late.push_back((id, request));
        if self.late.len() > LATE {
            self.late.pop_front();
        }
    }

    /// The request that a late answer is for, if it waits for this resource.
    pub(super) fn late(&mut self, id: RequestId, channel: &str, extension: &str, path: &str) -> Option<Request<P>> {
        let place = self.late.iter().position(|(other, _)| *other == id)?;
        let (_, request) = self.late.get(place)?;
        if request.channel != channel || request.extension != extension || request.path != path {
            return None;
        }
        self.late.remove(place).map(|(_, request)| request)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever comes in which order: no number is given twice, each
        /// request ends once, by its own answer or by its deadline.
        #[test]
        fn each_request_has_its_own_number_and_ends_once(
            steps in prop::collection::vec((0..4_u8, 0..8_usize), 1..200), start in 0..=LAST_REQUEST,
        ) {
            let begin = Instant::now();
            let mut requests = Requests::new(start);
            let mut open: BTreeMap<RequestId, String> = BTreeMap::new();
            let mut time = begin;
            for (step, number) in steps {
                time += Duration::from_millis(10);
                match step {
                    0 | 1 => {
                        let path = format!("p{number}");
                        let id = requests.begin(request(&path), time + Duration::from_millis(50));
                        prop_assert!((1..=LAST_REQUEST).contains(&id));
                        prop_assert!(open.insert(id, path).is_none());
                    }
                    2 => {
                        let Some((id, path)) = open.iter().nth(number).map(|(id, path)| (*id, path.clone())) else {
                            continue;
                        };
                        prop_assert!(requests.answer(id, "v1/t", "dcx", "another").is_none());
                        prop_assert_eq!(requests.answer(id, "v1/t", "dcx", &path).map(|r| r.path), Some(path.clone()));
                        prop_assert!(requests.answer(id, "v1/t", "dcx", &path).is_none());
                        open.remove(&id);
                    }
                    _ => {
                        while let Some((id, expired)) = requests.expired(time) {
                            prop_assert_eq!(open.remove(&id), Some(expired.path));
                        }
                    }
                }
                prop_assert_eq!(requests.len(), open.len());
            }
            let rest: Vec<RequestId> = requests.take().into_iter().map(|(id, _)| id).collect();
            prop_assert_eq!(rest, open.into_keys().collect::<Vec<_>>());
            prop_assert_eq!(requests.next_deadline(), None);
        }
    }

    fn request(path: &str) -> Request<()> {
        Request { channel: "v1/t".into(), extension: "dcx", path: path.into(), purpose: () }
    }

    #[test]
    fn numbers_begin_anew_after_the_last_and_skip_those_in_use() {
        let now = Instant::now();
        let mut requests = Requests::new(LAST_REQUEST - 2);
        assert_eq!(requests.begin(request("a"), now), LAST_REQUEST - 1);
        assert_eq!(requests.begin(request("a"), now), LAST_REQUEST);
        assert_eq!(requests.begin(request("a"), now), 1);
        requests.last = LAST_REQUEST - 2;
        assert_eq!(requests.begin(request("b"), now), 2);
    }

    #[test]
    fn only_the_same_resource_answers_and_only_once() {
        let mut requests = Requests::new(0);
        let id = requests.begin(request("json"), Instant::now());
        assert!(requests.answer(id, "v1/other", "dcx", "json").is_none());
        assert!(requests.answer(id, "v1/t", "epmx", "json").is_none());
        assert!(requests.answer(id, "v1/t", "dcx", "update").is_none());
        assert!(requests.answer(id, "v1/t", "dcx", "json").is_some());
        assert!(requests.answer(id, "v1/t", "dcx", "json").is_none());
        assert_eq!(requests.next_deadline(), None);
    }

    #[test]
    fn what_was_given_up_can_still_be_proved_once() {
        let now = Instant::now();
        let mut requests = Requests::new(0);
        let id = requests.begin(request("json"), now + Duration::from_secs(1));
        assert!(requests.expired(now).is_none());
        let (expired, given_up) = requests.expired(now + Duration::from_secs(1)).unwrap();
        assert_eq!(expired, id);
        requests.remember_late(id, given_up);
        assert!(requests.late(id, "v1/t", "dcx", "other").is_none());
        assert!(requests.late(id, "v1/t", "dcx", "json").is_some());
        assert!(requests.late(id, "v1/t", "dcx", "json").is_none());
    }
}
