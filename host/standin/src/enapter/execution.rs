//! Commands that were sent: their states, progress, results and time-outs.
//!
//! State names are those of the platform's HTTP API. `UNSYNC` is among them
//! there; what leads to it is not public, and it never happens here.

use std::collections::VecDeque;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value as Json, json};

use super::ring::Ring;
use super::rules::{self, Dropped, Said};
use super::topic::Address;
use crate::time::Time;

/// Maximum commands that wait for their end.
pub const MOST_OPEN: usize = 100;
/// Maximum ended ones, and their bytes.
const MOST_ENDED: usize = 1000;
const MOST_BYTES: usize = 16 << 20;
/// Maximum lines of progress of one command, and their bytes.
const LINES: usize = 200;
const LINE_BYTES: usize = 64 << 10;

/// How far a command is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum State {
    /// Sent; nothing was heard of it.
    New,
    /// It has told of progress.
    InProgress,
    /// It is done.
    Success,
    /// It failed.
    Error,
    /// Its time is over.
    Timeout,
}

impl State {
    /// The name in the HTTP API.
    pub fn name(self) -> &'static str {
        match self {
            State::New => "NEW",
            State::InProgress => "IN_PROGRESS",
            State::Success => "SUCCESS",
            State::Error => "ERROR",
            State::Timeout => "TIMEOUT",
        }
    }
}

/// What someone wants a device to do.
#[derive(Debug, Clone, PartialEq)]
pub struct Order {
    /// The device.
    pub device: Address,
    /// The command.
    pub name: String,
    /// Its arguments.
    pub arguments: Map<String, Json>,
    /// How long it may take.
    pub timeout: Duration,
}

/// One command.
#[derive(Debug)]
pub struct Execution {
    /// Its id, unique.
    pub id: String,
    /// What was ordered.
    pub order: Order,
    /// When it was sent.
    pub created: Time,
    /// How far it is.
    pub state: State,
    /// What the device said at its end.
    pub response: Option<Answer>,
    /// What the device said before.
    pub log: Ring<Answer>,
    ended: Option<Time>,
}

/// One response of a device.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// `IN_PROGRESS`, `SUCCEEDED` or `ERROR`, as the HTTP API calls them.
    pub state: &'static str,
    /// The words or the result.
    pub payload: Map<String, Json>,
    /// When it came.
    pub received: Time,
}

impl Answer {
    /// The answer as the HTTP API shows it.
    pub fn json(&self) -> Json {
        json!({"state": self.state, "payload": self.payload, "received_at": iso(self.received)})
    }
}

impl Execution {
    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        self.ended.is_some()
    }

    /// The execution as the HTTP API shows it.
    pub fn json(&self, with_log: bool) -> Json {
        let log = with_log.then(|| self.log.from(0).map(Answer::json).collect::<Vec<_>>());
        json!({
            "id": self.id, "device_id": self.order.device, "state": self.state, "created_at": iso(self.created),
            "request": {"name": self.order.name, "arguments": self.order.arguments, "manifest_name": null},
            "response": self.response.as_ref().map(Answer::json), "log": log,
        })
    }

    fn deadline(&self) -> Time {
        self.created.saturating_add(Time::try_from(self.order.timeout.as_millis()).unwrap_or(Time::MAX))
    }

    fn size(&self) -> usize {
        let text = |map: &Map<String, Json>| Json::Object(map.clone()).to_string().len();
        let response = self.response.as_ref().map_or(0, |response| text(&response.payload));
        size_of::<Execution>() + text(&self.order.arguments) + response + self.log.bytes()
    }
}

/// All commands, in the order in which they were sent.
#[derive(Debug, Default)]
pub struct Executions(VecDeque<Execution>);

impl Executions {
    /// Adds a command that is about to be sent; none when too many are open.
    pub fn open(&mut self, id: String, order: Order, now: Time) -> Option<()> {
        if self.0.iter().filter(|execution| !execution.is_over()).count() >= MOST_OPEN {
            return None;
        }
        let log = Ring::new(LINES, LINE_BYTES);
        let execution = Execution { id, order, created: now, state: State::New, response: None, log, ended: None };
        self.0.push_back(execution);
        self.forget();
        Some(())
    }

    /// Finds a command.
    pub fn find(&self, id: &str) -> Option<&Execution> {
        self.0.iter().find(|execution| execution.id == id)
    }

    /// All commands of a device.
    pub fn of<'a>(&'a self, device: &'a Address) -> impl DoubleEndedIterator<Item = &'a Execution> {
        self.0.iter().filter(move |execution| execution.order.device == *device)
    }

    /// Takes a device's response; an error says why it belongs nowhere.
    pub fn respond(&mut self, device: &Address, response: rules::Response, now: Time) -> Result<&Execution, Dropped> {
        let refuse = |problem: String| Err(Dropped { attribute: Some("id".into()), problem });
        let rules::Response { id, state, payload } = response;
        let found = self.0.iter_mut().find(|execution| execution.id == id && execution.order.device == *device);
        let Some(execution) = found else {
            return refuse(format!("expected the id of a command that was sent to this device, found {id:?}"));
        };
        if let Some(ended) = execution.ended {
            let late = Duration::from_millis(now.saturating_sub(ended));
            let state = execution.state.name();
            return refuse(format!("{id:?} ended with {state} {} before", humantime::format_duration(late)));
        }
        let (state, said) = match state {
            Said::Log => (State::InProgress, "IN_PROGRESS"),
            Said::Completed => (State::Success, "SUCCEEDED"),
            Said::Error => (State::Error, "ERROR"),
        };
        execution.state = state;
        let answer = Answer { state: said, payload, received: now };
        if state == State::InProgress {
            let size = size_of::<Answer>() + answer.json().to_string().len();
            execution.log.push(answer, size);
        } else {
            execution.response = Some(answer);
            execution.ended = Some(now);
        }
        Ok(execution)
    }

    /// Ends the commands whose time is over and returns them.
    pub fn expire(&mut self, now: Time) -> Vec<&Execution> {
        let late = self.0.iter_mut().filter(|execution| !execution.is_over() && execution.deadline() <= now);
        late.map(|execution| {
            execution.state = State::Timeout;
            execution.ended = Some(now);
            &*execution
        })
        .collect()
    }

    /// When the next command's time is over.
    pub fn next_deadline(&self) -> Option<Time> {
        self.0.iter().filter(|execution| !execution.is_over()).map(Execution::deadline).min()
    }

    /// Forgets the oldest ended ones that are too many or too large.
    fn forget(&mut self) {
        let (mut count, mut bytes) = (0, 0);
        let mut keep = Vec::with_capacity(self.0.len());
        for execution in self.0.iter().rev() {
            if execution.is_over() {
                count += 1;
                bytes += execution.size();
            }
            keep.push(!execution.is_over() || (count <= MOST_ENDED && bytes <= MOST_BYTES));
        }
        self.0.retain(|_| keep.pop().unwrap_or_default());
    }
}

/// A time as the HTTP API writes it.
pub fn iso(time: Time) -> String {
    humantime::format_rfc3339_millis(std::time::UNIX_EPOCH + Duration::from_millis(time)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> Address {
        Address { hardware: "S01".into(), channel: "s--meter".into() }
    }

    fn order(seconds: u64) -> Order {
        Order { device: device(), name: "x".into(), arguments: Map::new(), timeout: Duration::from_secs(seconds) }
    }

    fn says(id: &str, state: Said, text: &str) -> rules::Response {
        let payload = json!({ "message": text }).as_object().cloned().unwrap();
        rules::Response { id: id.into(), state, payload }
    }

    #[test]
    fn a_command_goes_from_new_over_progress_to_its_end() {
        for (said, state, name) in
            [(Said::Completed, State::Success, "SUCCEEDED"), (Said::Error, State::Error, "ERROR")]
        {
            let mut all = Executions::default();
            all.open("c1".into(), order(10), 1000).unwrap();
            assert_eq!((all.find("c1").unwrap().state, all.next_deadline()), (State::New, Some(11_000)));
            for text in ["one", "two"] {
                all.respond(&device(), says("c1", Said::Log, text), 2000).unwrap();
            }
            assert_eq!(all.find("c1").unwrap().state, State::InProgress);
            all.respond(&device(), says("c1", said, "end"), 3500).unwrap();
            let ended = all.find("c1").unwrap();
            assert_eq!((ended.state, ended.is_over(), all.next_deadline()), (state, true, None));
            let json = ended.json(true);
            assert_eq!(json["device_id"], "S01:s--meter");
            assert_eq!(
                (&json["created_at"], &json["state"]),
                (&json!("1970-01-01T00:00:01.000Z"), &json!(state.name()))
            );
            assert_eq!(json["log"][1]["payload"]["message"], "two");
            let response =
                json!({"state": name, "payload": {"message": "end"}, "received_at": "1970-01-01T00:00:03.500Z"});
            assert_eq!(json["response"], response);
            assert_eq!(ended.json(false)["log"], Json::Null);
        }
    }

    #[test]
    fn a_command_without_an_end_times_out_and_late_answers_belong_nowhere() {
        let mut all = Executions::default();
        all.open("c1".into(), order(1), 1000).unwrap();
        all.open("c2".into(), order(5), 1000).unwrap();
        assert!(all.expire(1999).is_empty());
        let ids: Vec<_> = all.expire(2000).iter().map(|execution| execution.id.clone()).collect();
        assert_eq!((ids, all.next_deadline()), (vec!["c1".to_owned()], Some(6000)));
        assert!(all.expire(2001).is_empty());
        let other = Address { hardware: "S01".into(), channel: "s".into() };
        for (device, id, expected) in [
            (device(), "c1", "\"c1\" ended with TIMEOUT 1s 500ms before"),
            (device(), "c9", "expected the id of a command that was sent to this device, found \"c9\""),
            (other, "c2", "expected the id of a command that was sent to this device, found \"c2\""),
        ] {
            let dropped = all.respond(&device, says(id, Said::Completed, ""), 3500).unwrap_err();
            assert_eq!(dropped.problem, expected);
        }
        assert_eq!(all.find("c1").unwrap().json(false)["response"], Json::Null);
    }

    #[test]
    fn open_and_ended_commands_are_bounded() {
        let mut all = Executions::default();
        for number in 0..MOST_OPEN {
            all.open(number.to_string(), order(1), 0).unwrap();
        }
        assert!(all.open("one too many".into(), order(1), 0).is_none());
        all.expire(5000);
        for number in 0..2000 {
            all.open(format!("n{number}"), order(1), 0).unwrap();
            all.expire(5000);
        }
        assert!(all.0.len() <= MOST_ENDED + 1);
        assert!(all.find("n1999").is_some() && all.find("0").is_none());
    }
}
