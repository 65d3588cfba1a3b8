//! Commands (11/CEP, extension `cex`): what an endpoint is asked to do, until it reports a result.
//!
//! The service calls it. A command is pending until its result comes or its time to live
//! has passed; one with a time to live of 0 is pushed once and never listed.

use std::collections::{HashMap, VecDeque};

use serde::Serialize;
use serde_json::{Map, Value as Json, json};

use super::answer::{Answer, Outcome, Refusal, standard_phrase};
use super::{body, topic};

/// Maximum commands of an endpoint; finished ones make room for new ones.
pub const MAX_COMMANDS: usize = 1000;

/// Maximum bytes of a result's payload.
pub const MAX_RESULT: usize = 64 << 10;

/// How long a command waits unless told otherwise: 30 days.
pub const DEFAULT_TTL: u64 = 720 * 3_600_000;

/// How long a one-time command counts as pending: as long as a caller can wait for its result.
const ONE_TIME: u64 = 60_000;

/// The commands of one endpoint.
#[derive(Debug, Default)]
pub struct Commands {
    list: VecDeque<Command>,
    last_id: i32,
    observed: HashMap<String, bool>,
}

/// One command.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Command {
    /// Unique for its endpoint.
    pub id: i32,
    /// The command type.
    pub command_type: String,
    /// What the device gets, if anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<Json>,
    /// When it was invoked, in milliseconds since 1970.
    pub created: u64,
    /// How long it waits, in milliseconds.
    pub ttl: u64,
    /// Where it stands.
    pub state: State,
    /// What the device reported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<CommandResult>,
}

/// Where a command stands; there is no "delivered".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum State {
    /// Invoked, no result.
    Pending,
    /// A result came, whatever it says.
    Executed,
    /// No result came in time.
    Expired,
}

/// A device's report.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CommandResult {
    /// As of HTTP: 200 to 299 is success.
    pub status_code: i64,
    /// A few words.
    pub reason_phrase: String,
    /// Whatever else the device tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<Json>,
}

/// What a report brought.
#[derive(Debug, Default, PartialEq)]
pub struct Report {
    /// Ids of commands that are executed now.
    pub executed: Vec<i64>,
    /// Ids whose result had come before; the first one stays.
    pub repeated: Vec<i64>,
    /// Ids that nobody waits for.
    pub unknown: Vec<i64>,
}

impl Commands {
    /// Adds a command.
    pub fn invoke(
        &mut self,
        now: u64,
        command_type: &str,
        payload: Option<Json>,
        ttl: u64,
    ) -> Result<Command, Refusal> {
        if !topic::is_name(command_type) || command_type.bytes().all(|byte| byte.is_ascii_digit()) {
            let found = body::shortened(command_type);
            return Err(Refusal::malformed(format!(
                "command type {found:?}: expected letters, digits, _ and -, and not digits alone"
            )));
        }
        self.expire(now);
        if self.list.len() >= MAX_COMMANDS {
            let finished = self.list.iter().position(|command| command.state != State::Pending);
            let Some(finished) = finished else {
                return Err(Refusal::full(format!("commands: {MAX_COMMANDS} are pending")));
            };
            self.list.remove(finished);
        }
        // A device remembers ids for longer than this stand-in may live, so they go on from the clock's seconds.
        let seconds = i32::try_from(now / 1000).unwrap_or_default();
        self.last_id = self.last_id.max(seconds).checked_add(1).unwrap_or(1);
        let (id, command_type) = (self.last_id, command_type.to_owned());
        let command = Command { id, command_type, payload, created: now, ttl, state: State::Pending, result: None };
        self.list.push_back(command.clone());
        Ok(command)
    }

    /// Answers a request for outstanding commands and notes whether the endpoint observes.
    pub fn poll(&mut self, now: u64, command_type: &str, payload: &[u8]) -> Outcome {
        let request = body::object(payload, &["observe"])?;
        if let Some(observe) = body::boolean(&request, "observe")? {
            if self.observed.len() >= MAX_COMMANDS && !self.observed.contains_key(command_type) {
                return Err(Refusal::full(format!("commands: {MAX_COMMANDS} types are observed")));
            }
            self.observed.insert(command_type.to_owned(), observe);
        }
        self.expire(now);
        let waiting = |command: &&Command| {
            command.command_type == command_type && command.state == State::Pending && command.ttl > 0
        };
        Ok(Answer::json(&self.list.iter().filter(waiting).map(Command::wire).collect()))
    }

    /// Records a report; a wrong payload records nothing.
    pub fn report(&mut self, now: u64, command_type: &str, payload: &[u8]) -> Result<Report, Refusal> {
        let results = read_results(payload)?;
        self.expire(now);
        let mut report = Report::default();
        for (id, result) in results {
            let same = |command: &&mut Command| i64::from(command.id) == id && command.command_type == command_type;
            match self.list.iter_mut().find(same) {
                // A one-time command that has been pushed can still be answered.
                Some(command) if command.state == State::Pending || (command.ttl == 0 && command.result.is_none()) => {
                    (command.state, command.result) = (State::Executed, Some(result));
                    report.executed.push(id);
                }
                Some(command) if command.state == State::Executed => report.repeated.push(id),
                _ => report.unknown.push(id),
            }
        }
        Ok(report)
    }

    /// Whether new commands of a type are pushed: unless the endpoint said no.
    pub fn is_pushed(&self, command_type: &str) -> bool {
        self.observed.get(command_type) != Some(&false)
    }

    /// Forgets what the endpoint observes, as a new connection begins.
    pub fn forget_observers(&mut self) {
        self.observed.clear();
    }

    /// All commands, oldest first.
    pub fn all(&mut self, now: u64) -> impl Iterator<Item = &Command> {
        self.expire(now);
        self.list.iter()
    }

    /// One command.
    pub fn find(&mut self, now: u64, command_type: &str, id: i32) -> Option<&Command> {
        self.expire(now);
        self.list.iter().find(|command| command.id == id && command.command_type == command_type)
    }

    /// Takes a command back; false if there is none.
    pub fn delete(&mut self, command_type: &str, id: i32) -> bool {
        let before = self.list.len();
        self.list.retain(|command| command.id != id || command.command_type != command_type);
        self.list.len() < before
    }

    fn expire(&mut self, now: u64) {
        for command in self.list.iter_mut().filter(|command| command.state == State::Pending) {
            let lifetime = if command.ttl == 0 { ONE_TIME } else { command.ttl };
            if now.saturating_sub(command.created) >= lifetime {
                command.state = State::Expired;
            }
        }
    }
}

impl Command {
    /// The command as a device gets it, in an array.
    pub fn wire(&self) -> Json {
        let mut wire = Map::from_iter([("id".to_owned(), json!(self.id))]);
        if let Some(payload) = &self.payload {
            wire.insert("payload".to_owned(), payload.clone());
        }
        Json::Object(wire)
    }
}

fn read_results(payload: &[u8]) -> Result<Vec<(i64, CommandResult)>, Refusal> {
    let items = match body::json(payload)? {
        Json::Array(items) => items,
        other => {
            let found = body::kind(&other);
            return Err(Refusal::malformed(format!("payload: expected an array of results, found {found}")));
        }
    };
    let read = |(index, item): (usize, Json)| {
        read_result(item).map_err(|refusal| Refusal::new(refusal.status, format!("result {index}: {}", refusal.reason)))
    };
    items.into_iter().enumerate().map(read).collect()
}

fn read_result(item: Json) -> Result<(i64, CommandResult), Refusal> {
    let Json::Object(object) = item else {
        return Err(Refusal::malformed(format!("expected an object, found {}", body::kind(&item))));
    };
    let mut object = body::only(object, "its keys", &["id", "statusCode", "reasonPhrase", "payload"])?;
    let required = |key: &str| {
        body::integer(&object, key)?.ok_or_else(|| Refusal::malformed(format!("{key}: expected an integer")))
    };
    let (id, status_code) = (required("id")?, required("statusCode")?);
    let standard = || standard_phrase(u16::try_from(status_code).unwrap_or_default()).to_owned();
    let reason_phrase = body::reason(&object, "reasonPhrase")?.unwrap_or_else(standard);
    let payload = object.remove("payload");
    if payload.as_ref().is_some_and(|payload| payload.to_string().len() > MAX_RESULT) {
        return Err(Refusal::new(413, format!("payload: expected at most {MAX_RESULT} bytes")));
    }
    Ok((id, CommandResult { status_code, reason_phrase, payload }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(commands: &mut Commands, now: u64, command_type: &str) -> Json {
        match commands.poll(now, command_type, b"{}").unwrap() {
            Answer::Data(body) => serde_json::from_slice(&body).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_command_is_listed_until_its_result_comes() {
        let mut commands = Commands::default();
        let first = commands.invoke(0, "reboot", Some(json!({"delay": 5})), 1000).unwrap();
        let second = commands.invoke(0, "reboot", None, 1000).unwrap();
        commands.invoke(0, "other", None, 1000).unwrap();
        let both = json!([{"id": first.id, "payload": {"delay": 5}}, {"id": second.id}]);
        assert_eq!(listed(&mut commands, 1, "reboot"), both);

        let result = json!([{"id": first.id, "statusCode": 200, "payload": "Success"}]).to_string();
        let report = commands.report(2, "reboot", result.as_bytes()).unwrap();
        assert_eq!(report.executed, [i64::from(first.id)]);
        assert_eq!(listed(&mut commands, 3, "reboot"), json!([{"id": second.id}]));
        let executed = commands.find(3, "reboot", first.id).unwrap();
        assert_eq!(executed.state, State::Executed);
        let result = executed.result.clone().unwrap();
        assert_eq!((result.reason_phrase.as_str(), result.payload), ("OK", Some(json!("Success"))));
    }

    #[test]
    fn a_result_that_comes_twice_is_tolerated_and_the_first_one_stays() {
        let mut commands = Commands::default();
        let id = commands.invoke(0, "a", None, 1000).unwrap().id;
        let report = |code: i32| json!([{"id": id, "statusCode": code}, {"id": 99, "statusCode": 200}]).to_string();
        let first = commands.report(1, "a", report(200).as_bytes()).unwrap();
        assert_eq!((first.executed, first.unknown), (vec![i64::from(id)], vec![99]));
        let second = commands.report(2, "a", report(500).as_bytes()).unwrap();
        assert_eq!((second.executed, second.repeated), (vec![], vec![i64::from(id)]));
        assert_eq!(commands.find(2, "a", id).unwrap().result.as_ref().unwrap().status_code, 200);
    }

    #[test]
    fn commands_expire_and_one_time_commands_are_never_listed() {
        let mut commands = Commands::default();
        let late = commands.invoke(0, "a", None, 10).unwrap().id;
        let once = commands.invoke(0, "a", None, 0).unwrap().id;
        assert_eq!(listed(&mut commands, 9, "a"), json!([{"id": late}]));
        assert_eq!(listed(&mut commands, 10, "a"), json!([]));
        assert_eq!(commands.find(10, "a", late).unwrap().state, State::Expired);
        let result = json!([{"id": late, "statusCode": 200}, {"id": once, "statusCode": 200}]).to_string();
        let report = commands.report(11, "a", result.as_bytes()).unwrap();
        assert_eq!((report.executed, report.unknown), (vec![i64::from(once)], vec![i64::from(late)]));
    }

    #[test]
    fn wrong_payloads_change_nothing() {
        let mut commands = Commands::default();
        let id = commands.invoke(0, "a", None, 1000).unwrap().id;
        for payload in [
            "".to_owned(),
            json!({"id": id, "statusCode": 200}).to_string(),
            json!([{"id": id}]).to_string(),
            json!([{"id": id, "statusCode": "200"}]).to_string(),
            json!([{"id": id, "statusCode": 200, "other": 1}]).to_string(),
            json!([{"id": id, "statusCode": 200}, {"id": "x", "statusCode": 200}]).to_string(),
            json!([id]).to_string(),
        ] {
            assert_eq!(commands.report(1, "a", payload.as_bytes()).unwrap_err().status, 400, "{payload}");
        }
        for payload in [r#"{"observe":1}"#, "[]", r#"{"else":true}"#] {
            assert_eq!(commands.poll(1, "a", payload.as_bytes()).unwrap_err().status, 400, "{payload}");
        }
        assert_eq!(listed(&mut commands, 2, "a"), json!([{"id": id}]));
        assert!(commands.is_pushed("a"));
        commands.poll(2, "a", br#"{"observe":false}"#).unwrap();
        assert!(!commands.is_pushed("a"));
        for name in ["", "a/b", "5", "ä"] {
            assert!(commands.invoke(0, name, None, 1).is_err(), "{name}");
        }
    }

    #[test]
    fn finished_commands_make_room_and_pending_ones_do_not() {
        let mut commands = Commands::default();
        for _ in 0..MAX_COMMANDS {
            commands.invoke(0, "a", None, 1000).unwrap();
        }
        assert_eq!(commands.invoke(1, "a", None, 1000).unwrap_err().status, 507);
        commands.report(1, "a", br#"[{"id":7,"statusCode":200}]"#).unwrap();
        commands.invoke(2, "a", None, 1000).unwrap();
        assert_eq!(commands.all(2).count(), MAX_COMMANDS);
    }
}
