//! What is known of each device's commands, and the lines that say so. Plain
//! state: time comes in.

use std::collections::{HashMap, VecDeque};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use crate::clock::{Moment, Time, boot};
use crate::message::{
    CommandError, CommandRequest, CommandResult, DeviceId, SessionName, attributes_of, json_object, size_of_attribute,
    size_of_request,
};

/// Answered commands that are remembered of each device. One that comes again
/// is not carried out a second time.
const REMEMBERED: usize = 1000;
/// Bytes of their ids and answers; old answers are forgotten before ids are.
const REMEMBERED_BYTES: usize = 256 << 10;
/// The same for all devices together, which share it: the file is written anew
/// as a whole, and read at the start.
const ALL_BYTES: usize = 16 << 20;

/// See the module documentation.
#[derive(Default)]
pub(super) struct Memory {
    devices: HashMap<DeviceId, Commands>,
    /// Commands that came so far.
    numbers: u64,
}

/// The commands of one device.
#[derive(Default)]
struct Commands {
    known: HashMap<Key, Known>,
    /// What is answered, oldest first, and its size.
    answered: VecDeque<Key>,
    bytes: usize,
    /// How many of those, at the front, have lost their answer.
    bare: usize,
}

/// Ids are unique in their session only.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub session: Option<SessionName>,
    pub id: String,
}

/// One command.
#[derive(Debug, Clone)]
pub(super) struct Known {
    /// When it came; none when that was before the machine's last start.
    pub came: Option<Moment>,
    /// By the wall clock.
    pub time: Time,
    /// Its place among all that came.
    pub number: u64,
    pub state: State,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum State {
    /// It came, and no driver was called.
    Waiting(CommandRequest),
    /// The driver is about to be called, or was.
    Started(Option<CommandRequest>),
    /// The same in an earlier life of the gateway.
    Interrupted(Option<CommandRequest>),
    /// It is over; without its answer when that is forgotten. Whether the
    /// answer was accepted by an outbox.
    Answered { result: Option<CommandResult>, is_sent: bool },
}

/// A line of the file. The last one of a command counts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Line {
    id: String,
    device: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    session: Option<String>,
    /// When it came.
    time: Time,
    /// The same by the steady clock, and in which life of the machine.
    #[serde(default)]
    steady: u64,
    #[serde(default)]
    boot: u64,
    answered: bool,
    /// Whether the driver was not called yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    waiting: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    request: Option<Asked>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    result: Option<Outcome>,
    /// Whether no outbox has accepted the answer yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    unsent: bool,
}

/// What is to be carried out.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Asked {
    name: String,
    arguments: Map<String, Json>,
}

/// A result as it is written down.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Completed(Map<String, Json>),
    Error { code: String, text: String },
}

impl Memory {
    pub(super) fn get(&self, device: &DeviceId, key: &Key) -> Option<&Known> {
        self.devices.get(device)?.known.get(key)
    }

    /// Notes a command, new or in a new state.
    pub(super) fn set(&mut self, device: &DeviceId, key: Key, known: Known) {
        if !self.devices.contains_key(device) {
            self.devices.insert(device.clone(), Commands::default());
        }
        let most = (ALL_BYTES / self.devices.len()).min(REMEMBERED_BYTES);
        if let Some(commands) = self.devices.get_mut(device) {
            commands.set(key, known, most);
        }
    }

    /// A command that comes now.
    pub(super) fn coming(&mut self, now: Moment, state: State) -> Known {
        self.numbers += 1;
        Known { came: Some(now), time: now.wall, number: self.numbers, state }
    }

    /// Notes that an outbox has accepted the answer.
    pub(super) fn sent(&mut self, device: &DeviceId, key: &Key) -> Option<Line> {
        let known = self.devices.get_mut(device)?.known.get_mut(key)?;
        let State::Answered { is_sent, .. } = &mut known.state else { return None };
        *is_sent = true;
        Some(Line::sent(device, key, known))
    }

    pub(super) fn forget(&mut self, device: &DeviceId, key: &Key) {
        if let Some(commands) = self.devices.get_mut(device) {
            commands.forget(key);
        }
    }

    /// Takes a line of the file; false when it is none that was written here.
    pub(super) fn read(&mut self, line: Json, now: Moment, boot: u64) -> bool {
        let Ok(line) = serde_json::from_value::<Line>(line) else { return false };
        let session = line.session.as_deref().map(SessionName::new);
        let (device, key) = (DeviceId::new(&line.device), Key { session: session.clone(), id: line.id.clone() });
        let before = self.get(&device, &key).cloned();
        let number = before.as_ref().map_or(self.numbers + 1, |known| known.number);
        self.numbers = self.numbers.max(number);
        let before = before.map(|known| known.state);
        let asked = |asked: Asked| CommandRequest {
            id: line.id.clone(),
            session: session.clone(),
            name: asked.name,
            arguments: asked.arguments,
        };
        let asked_before = |state: Option<State>| match state {
            Some(State::Waiting(request)) => Some(request),
            Some(State::Started(request) | State::Interrupted(request)) => request,
            Some(State::Answered { .. }) | None => None,
        };
        let state = match (line.answered, line.waiting, line.request.map(asked)) {
            (false, true, None) => return false,
            (false, true, Some(request)) => State::Waiting(request),
            (false, false, request) => State::Started(request.or_else(|| asked_before(before))),
            (true, ..) => {
                let given_before = match before {
                    Some(State::Answered { result, .. }) => result,
                    _ => None,
                };
                let result = line.result.map(Outcome::into_result).or(given_before);
                State::Answered { result, is_sent: !line.unsent }
            }
        };
        let is_this_boot = line.boot == boot && line.steady <= now.steady;
        let came = is_this_boot.then_some(Moment { wall: line.time, steady: line.steady });
        self.set(&device, key, Known { came, time: line.time, number, state });
        true
    }

    /// Notes that what was started has been interrupted, and gives all commands
    /// that are not over, in the order in which they came.
    pub(super) fn interrupt(&mut self) -> Vec<(DeviceId, Key, Known)> {
        let mut open = Vec::new();
        for (device, commands) in &mut self.devices {
            for (key, known) in &mut commands.known {
                if let State::Started(request) = &mut known.state {
                    known.state = State::Interrupted(request.take());
                }
                if !matches!(known.state, State::Answered { is_sent: true, .. }) {
                    open.push((device.clone(), key.clone(), known.clone()));
                }
            }
        }
        open.sort_by_key(|(.., known)| known.number);
        open
    }

    /// The line of a command.
    pub(super) fn line(&self, device: &DeviceId, key: &Key) -> Option<Line> {
        Some(line(device, key, self.get(device, key)?))
    }

    /// Notes that outboxes have accepted all answers.
    pub(super) fn all_sent(&mut self) -> Vec<Line> {
        let mut lines = Vec::new();
        for (device, commands) in &mut self.devices {
            for (key, known) in &mut commands.known {
                if let State::Answered { is_sent: is_sent @ false, .. } = &mut known.state {
                    *is_sent = true;
                    lines.push(Line::sent(device, key, known));
                }
            }
        }
        lines
    }

    /// All that is remembered, as lines of the file.
    pub(super) fn lines(&self) -> Vec<Line> {
        let of = |(device, commands): (&DeviceId, &Commands)| {
            let answered = commands.answered.iter().filter_map(|key| commands.known.get_key_value(key));
            let open = commands.known.iter().filter(|(_, known)| !known.is_answered());
            answered.chain(open).map(|(key, known)| (known.number, line(device, key, known))).collect::<Vec<_>>()
        };
        // In the order in which they came, which is all that a reader has to go by.
        let mut lines: Vec<(u64, Line)> = self.devices.iter().flat_map(of).collect();
        lines.sort_by_key(|(number, _)| *number);
        lines.into_iter().map(|(_, line)| line).collect()
    }
}

impl Commands {
    fn set(&mut self, key: Key, known: Known, most: usize) {
        self.forget(&key);
        if known.is_answered() {
            self.bytes += key.size() + known.size();
            self.answered.push_back(key.clone());
        }
        self.known.insert(key, known);
        while self.bytes > most && self.forget_an_answer() {}
        // The last one stays, however large its answer is.
        while self.answered.len() > REMEMBERED || self.bytes > most && self.answered.len() > 1 {
            let Some(oldest) = self.answered.pop_front() else { break };
            self.bare = self.bare.saturating_sub(1);
            self.bytes -= oldest.size() + self.known.remove(&oldest).map_or(0, |known| known.size());
        }
    }

    /// Forgets how the oldest command was answered that is remembered so.
    fn forget_an_answer(&mut self) -> bool {
        // The newest is given again when it comes again.
        if self.bare + 1 >= self.answered.len() {
            return false;
        }
        let known = self.answered.get(self.bare).and_then(|key| self.known.get_mut(key));
        if let Some(known) = known {
            self.bytes -= known.size();
            if let State::Answered { result, .. } = &mut known.state {
                *result = None;
            }
        }
        self.bare += 1;
        true
    }

    fn forget(&mut self, key: &Key) {
        let Some(before) = self.known.remove(key).filter(Known::is_answered) else { return };
        self.bytes -= key.size() + before.size();
        if let Some(place) = self.answered.iter().rposition(|other| other == key) {
            self.bare -= usize::from(place < self.bare);
            self.answered.remove(place);
        }
    }
}

impl Key {
    pub(super) fn of(command: &CommandRequest) -> Key {
        Key { session: command.session.clone(), id: command.id.clone() }
    }

    fn size(&self) -> usize {
        self.id.len() + size_of::<Key>() + size_of::<Known>()
    }
}

impl Known {
    fn is_answered(&self) -> bool {
        matches!(self.state, State::Answered { .. })
    }

    fn size(&self) -> usize {
        match &self.state {
            State::Answered { result: Some(Ok(attributes)), .. } => attributes.iter().map(size_of_attribute).sum(),
            State::Answered { result: Some(Err(error)), .. } => error.text().len(),
            State::Waiting(request) | State::Started(Some(request)) | State::Interrupted(Some(request)) => {
                size_of_request(request)
            }
            _ => 0,
        }
    }
}

impl Line {
    /// That an outbox has accepted the answer.
    pub(super) fn sent(device: &DeviceId, key: &Key, known: &Known) -> Line {
        let state = State::Answered { result: None, is_sent: true };
        line(device, key, &Known { state, ..*known })
    }

    /// That the driver is about to be called; what is asked stands in the line before.
    pub(super) fn started(device: &DeviceId, key: &Key, known: &Known) -> Line {
        line(device, key, &Known { state: State::Started(None), ..*known })
    }
}

impl Outcome {
    fn of(result: &CommandResult) -> Outcome {
        match result {
            Ok(attributes) => Outcome::Completed(json_object(attributes)),
            Err(error) => Outcome::Error { code: error.code().into(), text: error.text().into() },
        }
    }

    fn into_result(self) -> CommandResult {
        match self {
            Outcome::Completed(attributes) => Ok(attributes_of(attributes)),
            Outcome::Error { code, text } => Err(CommandError::from_code(&code, text)),
        }
    }
}

fn line(device: &DeviceId, key: &Key, known: &Known) -> Line {
    let asked = |request: &CommandRequest| Asked { name: request.name.clone(), arguments: request.arguments.clone() };
    let (answered, waiting, request, result, unsent) = match &known.state {
        State::Waiting(request) => (false, true, Some(asked(request)), None, false),
        State::Started(request) | State::Interrupted(request) => {
            (false, false, request.as_ref().map(asked), None, false)
        }
        State::Answered { result, is_sent } => (true, false, None, result.as_ref().map(Outcome::of), !is_sent),
    };
    let session = key.session.as_ref().map(ToString::to_string);
    let (id, device) = (key.id.clone(), device.to_string());
    let (steady, boot) = known.came.map_or((0, 0), |came| (came.steady, boot()));
    Line { id, device, session, time: known.time, steady, boot, answered, waiting, request, result, unsent }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: usize) -> Key {
        Key { session: None, id: id.to_string() }
    }

    fn answered(text: &str) -> Known {
        let result = Some(Err(CommandError::Failed(text.into())));
        Known { came: None, time: 0, number: 0, state: State::Answered { result, is_sent: true } }
    }

    fn is_answer_kept(memory: &Memory, device: &DeviceId, id: usize) -> Option<bool> {
        let known = memory.get(device, &key(id))?;
        Some(matches!(&known.state, State::Answered { result: Some(_), .. }))
    }

    #[test]
    fn ids_outlive_answers_and_both_are_bounded_for_each_device() {
        let (mut memory, device, other) = (Memory::default(), DeviceId::new("a"), DeviceId::new("b"));
        memory.set(&other, key(0), answered("other"));
        let waiting = CommandRequest { id: "w".into(), session: None, name: "ping".into(), arguments: Map::new() };
        let waits = Known { came: None, time: 0, number: 0, state: State::Waiting(waiting.clone()) };
        memory.set(&device, Key::of(&waiting), waits);
        let large = "x".repeat(60 << 10);
        (0..20).for_each(|id| memory.set(&device, key(id), answered(&large)));
        assert_eq!(is_answer_kept(&memory, &device, 19), Some(true));
        assert_eq!(is_answer_kept(&memory, &device, 0), Some(false));
        (20..REMEMBERED + 20).for_each(|id| memory.set(&device, key(id), answered("short")));
        assert_eq!(is_answer_kept(&memory, &device, 20), Some(true));
        assert_eq!(is_answer_kept(&memory, &device, 19), None);
        assert_eq!(is_answer_kept(&memory, &other, 0), Some(true));
        assert!(memory.get(&device, &Key::of(&waiting)).is_some());
        assert_eq!(memory.lines().len(), REMEMBERED + 2);
    }

    #[test]
    fn what_was_written_is_read_as_it_was() {
        let (mut memory, device) = (Memory::default(), DeviceId::new("a"));
        let request = CommandRequest {
            id: "r".into(),
            session: Some(SessionName::new("cloud")),
            name: "set".into(),
            arguments: attributes_to_arguments(),
        };
        let now = Moment::now();
        let states = [
            State::Waiting(request.clone()),
            State::Started(Some(request.clone())),
            State::Answered { result: Some(Ok(Vec::new())), is_sent: false },
            State::Answered { result: Some(Err(CommandError::Busy("x".into()))), is_sent: true },
        ];
        for state in states {
            memory.set(
                &device,
                Key::of(&request),
                Known { came: Some(now), time: now.wall, number: 1, state: state.clone() },
            );
            let mut read = Memory::default();
            for line in memory.lines() {
                assert!(read.read(serde_json::to_value(line).unwrap(), now, boot()));
            }
            assert_eq!(read.get(&device, &Key::of(&request)).unwrap().state, state);
        }
        // Short lines add to those before.
        let mut read = Memory::default();
        memory.set(
            &device,
            Key::of(&request),
            Known { came: None, time: 0, number: 0, state: State::Waiting(request.clone()) },
        );
        let lines = memory.lines().into_iter().chain([Line::started(
            &device,
            &Key::of(&request),
            memory.get(&device, &Key::of(&request)).unwrap(),
        )]);
        lines.for_each(|line| assert!(read.read(serde_json::to_value(line).unwrap(), now, boot())));
        let (.., known) = read.interrupt().pop().unwrap();
        assert_eq!(known.state, State::Interrupted(Some(request)));
        // Of another life of the machine: nobody knows how old it is.
        assert_eq!(known.came, None);
    }

    fn attributes_to_arguments() -> Map<String, Json> {
        Map::from_iter([("level".to_owned(), Json::from(3))])
    }
}
