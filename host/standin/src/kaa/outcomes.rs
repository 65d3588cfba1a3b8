//! What became of an endpoint's requests (extension `rsx`), so that one that was cut off can ask.

use std::collections::{BTreeMap, VecDeque};

use serde_json::json;

use super::answer::{Answer, Outcome, Refusal, standard_phrase};
use super::body;

/// How many outcomes are kept for each endpoint and extension.
pub const MAX_OUTCOMES: usize = 100;

/// The newest outcomes of one endpoint.
#[derive(Debug, Default)]
pub struct Outcomes(BTreeMap<String, VecDeque<(u32, u16, String)>>);

impl Outcomes {
    /// Notes the outcome of a request that had an id.
    pub fn note(&mut self, extension: &str, request_id: u32, outcome: &Outcome) {
        let (status, reason) = match outcome {
            Ok(Answer::Unchanged) => (304, standard_phrase(304).to_owned()),
            Ok(_) => (200, "Ok".to_owned()),
            Err(refusal) => (refusal.status, body::cut(&refusal.reason, 200)),
        };
        let ring = self.0.entry(extension.to_owned()).or_default();
        ring.retain(|(id, ..)| *id != request_id);
        if ring.len() >= MAX_OUTCOMES {
            ring.pop_front();
        }
        ring.push_back((request_id, status, reason));
    }

    /// Answers a device that asks for the outcome of a request.
    pub fn find(&self, extension: &str, request_id: u32) -> Outcome {
        let ring = self.0.get(extension).into_iter().flatten();
        let Some((id, status, reason)) = ring.rev().find(|(id, ..)| *id == request_id) else {
            return Err(Refusal::missing(format!("request {request_id} to {extension}: not known")));
        };
        Ok(Answer::json(&json!({"requestId": id, "statusCode": status, "reasonPhrase": reason})))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_outcomes_of_each_extension_are_known() {
        let mut outcomes = Outcomes::default();
        outcomes.note("dcx", 1, &Err(Refusal::malformed("wrong")));
        outcomes.note("dcx", 1, &Ok(Answer::Done));
        outcomes.note("epmx", 1, &Err(Refusal::malformed("wrong")));
        let found = |status: u16, reason: &str| {
            Ok(Answer::json(&json!({"requestId": 1, "statusCode": status, "reasonPhrase": reason})))
        };
        assert_eq!(outcomes.find("dcx", 1), found(200, "Ok"));
        assert_eq!(outcomes.find("epmx", 1), found(400, "wrong"));
        assert_eq!(outcomes.find("dcx", 2).unwrap_err().status, 404);
        for id in 10..10 + MAX_OUTCOMES as u32 {
            outcomes.note("dcx", id, &Ok(Answer::Done));
        }
        assert_eq!(outcomes.find("dcx", 1).unwrap_err().status, 404);
    }
}
