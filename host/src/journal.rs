//! Which commands were started and which were answered, over restarts.
//!
//! A command's id is written down before the driver is called. So after a
//! crash it is answered with an error instead of being run twice, and an id
//! that comes again gets the same answer again.
//!
//! Appended lines survive a kill of the process; a power cut may lose the last
//! ones, and then the cloud sees no answer.

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use crate::ledger::{Ledger, Safety};
use crate::message::{
    CommandError, CommandRequest, CommandResult, DeviceId, SessionName, Time, attributes_of, json_object,
    size_of_attribute,
};

/// Commands that are remembered of each device, and bytes of their answers; what still runs is always remembered.
const REMEMBERED: usize = 100;
const REMEMBERED_BYTES: usize = 256 << 10;

/// See the module documentation.
pub struct Journal(Mutex<Inner>);

struct Inner {
    file: Option<Ledger>,
    devices: HashMap<String, Memory>,
}

/// What is remembered of one device's commands.
#[derive(Default)]
struct Memory {
    known: HashMap<Key, Known>,
    order: VecDeque<Key>,
    bytes: usize,
}

/// Ids are unique in their session only.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    session: Option<SessionName>,
    id: String,
}

#[derive(Debug, Clone)]
struct Known {
    time: Time,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    Started,
    /// The answer, unless an older version of this program gave it.
    Answered(Option<CommandResult>),
    /// A crash of the gateway cut it short.
    Interrupted,
}

#[derive(Serialize, Deserialize)]
struct Line {
    id: String,
    device: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    session: Option<String>,
    time: Time,
    answered: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    result: Option<Outcome>,
}

/// A result as it is written down.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Completed(Map<String, Json>),
    Error { code: String, text: String },
}

/// A command that a crash interrupted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interrupted {
    /// Its device.
    pub device: DeviceId,
    /// Its id.
    pub command: String,
    /// The session that waits for the answer.
    pub session: Option<SessionName>,
}

/// What is known about a command that arrived.
#[derive(Debug, Clone, PartialEq)]
pub enum Seen {
    /// Nothing: it may run.
    Never,
    /// It runs now.
    Running,
    /// It was answered so; none when nobody wrote down how.
    Answered(Option<CommandResult>),
    /// A crash of the gateway cut it short; that was its answer.
    Interrupted,
}

impl Journal {
    /// A journal without a file, for `check` and tests.
    pub fn in_memory() -> Journal {
        Journal(Mutex::new(Inner { file: None, devices: HashMap::new() }))
    }

    /// Opens the file and returns the commands that a crash interrupted, now
    /// marked as answered.
    pub fn open(path: &Path) -> (Journal, Vec<Interrupted>) {
        let mut inner = Inner { file: None, devices: HashMap::new() };
        let file = Ledger::open(path, "commands", |line| {
            let Ok(line) = serde_json::from_value::<Line>(line) else { return false };
            let result = line.result.map(Outcome::into_result);
            let state = if line.answered { State::Answered(result) } else { State::Started };
            let key = Key { session: line.session.as_deref().map(SessionName::new), id: line.id };
            inner.remember(&line.device, key, Known { time: line.time, state });
            true
        });
        inner.file = Some(file);
        let mut interrupted = Vec::new();
        for (device, memory) in &mut inner.devices {
            for (key, known) in &mut memory.known {
                if matches!(known.state, State::Started) {
                    known.state = State::Interrupted;
                    let (device, session) = (DeviceId::new(device), key.session.clone());
                    interrupted.push(Interrupted { device, command: key.id.clone(), session });
                }
            }
        }
        interrupted.sort();
        if let Err(error) = inner.rewrite() {
            tracing::error!("writing {}: {error}; commands are refused until it can be written", path.display());
        }
        (Journal(Mutex::new(inner)), interrupted)
    }

    /// Asks about a command and, when it is new, marks it as started.
    ///
    /// A journal that cannot be written refuses: running an actuator command
    /// that a crash could run again is worse than not running it.
    pub fn begin(&self, command: &CommandRequest, device: &DeviceId, time: Time) -> Result<Seen> {
        let key = Key::of(command);
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match inner.devices.get(device.as_str()).and_then(|memory| memory.known.get(&key)).map(|known| &known.state) {
            Some(State::Started) => return Ok(Seen::Running),
            Some(State::Answered(result)) => return Ok(Seen::Answered(result.clone())),
            Some(State::Interrupted) => return Ok(Seen::Interrupted),
            None => {}
        }
        let known = Known { time, state: State::Started };
        inner.remember(device.as_str(), key.clone(), known.clone());
        let written = inner.write(device.as_str(), &key, &known).context("writing the command journal");
        written.inspect_err(|_| inner.forget(device.as_str(), &key))?;
        Ok(Seen::Never)
    }

    /// Notes the answer to a command.
    pub fn end(&self, command: &CommandRequest, device: &DeviceId, time: Time, result: &CommandResult) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (key, known) = (Key::of(command), Known { time, state: State::Answered(Some(result.clone())) });
        inner.remember(device.as_str(), key.clone(), known.clone());
        if let Err(error) = inner.write(device.as_str(), &key, &known) {
            tracing::error!("writing the command journal: {error}");
        }
    }
}

impl Key {
    fn of(command: &CommandRequest) -> Key {
        Key { session: command.session.clone(), id: command.id.clone() }
    }
}

impl Memory {
    fn remember(&mut self, key: Key, known: Known) {
        self.bytes += known.size();
        match self.known.insert(key.clone(), known) {
            Some(before) => self.bytes -= before.size(),
            None => self.order.push_back(key),
        }
        // What still runs is passed over; there is little of it.
        let mut running = Vec::new();
        while self.order.len() + running.len() > REMEMBERED || self.bytes > REMEMBERED_BYTES {
            let Some(oldest) = self.order.pop_front() else { break };
            match self.known.get(&oldest) {
                Some(Known { state: State::Started, .. }) => running.push(oldest),
                _ => self.bytes -= self.known.remove(&oldest).map_or(0, |known| known.size()),
            }
        }
        running.into_iter().rev().for_each(|key| self.order.push_front(key));
    }

    fn forget(&mut self, key: &Key) {
        self.bytes -= self.known.remove(key).map_or(0, |known| known.size());
        self.order.retain(|other| other != key);
    }
}

impl Known {
    fn size(&self) -> usize {
        match &self.state {
            State::Answered(Some(Ok(attributes))) => attributes.iter().map(size_of_attribute).sum(),
            State::Answered(Some(Err(error))) => error.text().len(),
            _ => 0,
        }
    }
}

impl Inner {
    fn remember(&mut self, device: &str, key: Key, known: Known) {
        match self.devices.get_mut(device) {
            Some(memory) => memory.remember(key, known),
            None => self.devices.entry(device.to_owned()).or_default().remember(key, known),
        }
    }

    fn forget(&mut self, device: &str, key: &Key) {
        if let Some(memory) = self.devices.get_mut(device) {
            memory.forget(key);
        }
    }

    fn write(&mut self, device: &str, key: &Key, known: &Known) -> std::io::Result<()> {
        let (Some(file), devices) = (&mut self.file, &self.devices) else { return Ok(()) };
        file.record(&line(device, key, known), Safety::Accepted, || lines(devices))
    }

    fn rewrite(&mut self) -> std::io::Result<()> {
        let (Some(file), devices) = (&mut self.file, &self.devices) else { return Ok(()) };
        file.rewrite(lines(devices))
    }
}

/// All that is remembered, as lines of the file.
fn lines(devices: &HashMap<String, Memory>) -> impl Iterator<Item = Line> {
    devices.iter().flat_map(|(device, memory)| {
        let known = memory.order.iter().filter_map(|key| Some((key, memory.known.get(key)?)));
        known.map(|(key, known)| line(device, key, known))
    })
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

/// The answer to a command that a crash of the gateway cut short.
pub fn interrupted() -> CommandError {
    CommandError::Failed("interrupted by a restart of the gateway; the state of the device is unknown".into())
}

fn line(device: &str, key: &Key, known: &Known) -> Line {
    let (answered, result) = match &known.state {
        State::Started => (false, None),
        State::Answered(result) => (true, result.as_ref().map(Outcome::of)),
        State::Interrupted => (true, Some(Outcome::of(&Err(interrupted())))),
    };
    let session = key.session.as_ref().map(ToString::to_string);
    Line { id: key.id.clone(), device: device.to_owned(), session, time: known.time, answered, result }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(id: &str) -> CommandRequest {
        CommandRequest {
            id: id.into(),
            session: Some(SessionName::new("cloud")),
            name: "ping".into(),
            arguments: Map::new(),
        }
    }

    #[test]
    fn a_command_that_a_crash_interrupted_is_reported_once_and_never_runs_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("commands.log");
        let device = DeviceId::new("meter");
        let (journal, interrupted) = Journal::open(&path);
        assert_eq!(interrupted, []);
        assert_eq!(journal.begin(&command("a"), &device, 1).unwrap(), Seen::Never);
        assert_eq!(journal.begin(&command("b"), &device, 2).unwrap(), Seen::Never);
        journal.end(&command("b"), &device, 3, &Ok(vec![]));
        assert_eq!(journal.begin(&command("a"), &device, 4).unwrap(), Seen::Running);
        assert_eq!(journal.begin(&command("b"), &device, 4).unwrap(), Seen::Answered(Some(Ok(vec![]))));
        drop(journal);
        use std::io::Write;
        std::fs::File::options().append(true).open(&path).unwrap().write_all(b"{\"id\":\"c\",\"dev").unwrap();

        let (journal, interrupted) = Journal::open(&path);
        let session = Some(SessionName::new("cloud"));
        assert_eq!(interrupted, [Interrupted { device: device.clone(), command: "a".into(), session }]);
        assert_eq!(journal.begin(&command("a"), &device, 5).unwrap(), Seen::Interrupted);
        // The answer may have been lost with the crash, so it can be given again.
        assert_eq!(journal.begin(&command("b"), &device, 5).unwrap(), Seen::Answered(Some(Ok(vec![]))));
        drop(journal);
        assert_eq!(Journal::open(&path).1, []);
    }

    #[test]
    fn the_file_and_the_memory_stay_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("commands.log");
        let device = DeviceId::new("meter");
        let (journal, _) = Journal::open(&path);
        journal.begin(&command("first"), &device, 0).unwrap();
        for number in 0..10_000 {
            let id = number.to_string();
            journal.begin(&command(&id), &device, 0).unwrap();
            journal.end(&command(&id), &device, 0, &Ok(vec![]));
        }
        assert!(path.metadata().unwrap().len() < 400 << 10);
        assert_eq!(journal.begin(&command("first"), &device, 0).unwrap(), Seen::Running);
        assert_eq!(journal.begin(&command("9999"), &device, 0).unwrap(), Seen::Answered(Some(Ok(vec![]))));
    }

    #[test]
    fn large_answers_are_forgotten_sooner_and_devices_and_sessions_have_ids_of_their_own() {
        let text = "x".repeat(64 << 10);
        let large = Err(crate::message::CommandError::Failed(text));
        let journal = Journal::in_memory();
        let (meter, lamp) = (DeviceId::new("meter"), DeviceId::new("lamp"));
        for number in 0..10 {
            let command = command(&number.to_string());
            assert_eq!(journal.begin(&command, &meter, 0).unwrap(), Seen::Never);
            journal.end(&command, &meter, 0, &large);
        }
        assert_eq!(journal.begin(&command("9"), &meter, 0).unwrap(), Seen::Answered(Some(large)));
        assert_eq!(journal.begin(&command("0"), &meter, 0).unwrap(), Seen::Never);
        assert_eq!(journal.begin(&command("9"), &lamp, 0).unwrap(), Seen::Never);
        let other = CommandRequest { session: Some(SessionName::new("other")), ..command("9") };
        assert_eq!(journal.begin(&other, &meter, 0).unwrap(), Seen::Never);
    }
}
