//! Which commands were started and which were answered, over restarts.
//!
//! A command's id is written down before the driver is called. So after a
//! crash it is answered with an error instead of being run twice, and an id
//! that comes again gets the same answer again.
//!
//! Appended lines survive a kill of the process; a power cut may lose the last
//! ones, and then the cloud sees no answer.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use crate::message::{
    CommandRequest, CommandResult, DeviceId, Time, attributes_of, error_code, error_of, error_text, json_object,
};

/// So many ids are remembered; the file is rewritten when it holds twice that.
const REMEMBERED: usize = 1000;

/// See the module documentation.
pub struct Journal(Mutex<Inner>);

struct Inner {
    file: Option<File>,
    lines: usize,
    path: Option<std::path::PathBuf>,
    known: HashMap<String, Known>,
    order: VecDeque<String>,
}

#[derive(Debug, Clone)]
struct Known {
    device: String,
    session: Option<Arc<str>>,
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
    pub session: Option<Arc<str>>,
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
        let inner = Inner { file: None, lines: 0, path: None, known: HashMap::new(), order: VecDeque::new() };
        Journal(Mutex::new(inner))
    }

    /// Opens the file and returns the commands that a crash interrupted, now
    /// marked as answered.
    pub fn open(path: &Path) -> Result<(Journal, Vec<Interrupted>)> {
        // A damaged line is skipped like a cut one.
        let text = match std::fs::read(path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).with_context(|| format!("reading journal {}", path.display())),
        };
        let mut inner =
            Inner { file: None, lines: 0, path: Some(path.to_owned()), known: HashMap::new(), order: VecDeque::new() };
        // The last line may be cut off by a crash: it is skipped.
        for line in text.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok()) {
            let result = line.result.map(Outcome::into_result);
            let state = if line.answered { State::Answered(result) } else { State::Started };
            let session = line.session.as_deref().map(Arc::from);
            inner.remember(line.id, Known { device: line.device, session, time: line.time, state });
        }
        let mut interrupted = Vec::new();
        for (id, known) in &mut inner.known {
            if matches!(known.state, State::Started) {
                known.state = State::Interrupted;
                let (device, session) = (DeviceId::new(&known.device), known.session.clone());
                interrupted.push(Interrupted { device, command: id.clone(), session });
            }
        }
        interrupted.sort();
        inner.rewrite().with_context(|| format!("writing journal {}", path.display()))?;
        Ok((Journal(Mutex::new(inner)), interrupted))
    }

    /// Asks about an id and, when it is new, marks it as started.
    ///
    /// A journal that cannot be written refuses: running an actuator command
    /// that a crash could run again is worse than not running it.
    pub fn begin(&self, command: &CommandRequest, device: &DeviceId, time: Time) -> Result<Seen> {
        let id = &command.id;
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match inner.known.get(id.as_str()).map(|known| &known.state) {
            Some(State::Started) => return Ok(Seen::Running),
            Some(State::Answered(result)) => return Ok(Seen::Answered(result.clone())),
            Some(State::Interrupted) => return Ok(Seen::Interrupted),
            None => {}
        }
        let session = command.session.clone();
        let known = Known { device: device.to_string(), session, time, state: State::Started };
        inner.write(id, &known).context("writing the command journal")?;
        inner.remember(id.to_owned(), known);
        Ok(Seen::Never)
    }

    /// Notes the answer to a command.
    pub fn end(&self, id: &str, device: &DeviceId, time: Time, result: &CommandResult) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let session = inner.known.get(id).and_then(|known| known.session.clone());
        let state = State::Answered(Some(result.clone()));
        let known = Known { device: device.to_string(), session, time, state };
        if let Err(error) = inner.write(id, &known) {
            tracing::error!("writing the command journal: {error}");
        }
        inner.remember(id.to_owned(), known);
        if inner.lines > 4 * REMEMBERED
            && let Err(error) = inner.rewrite()
        {
            tracing::error!("shortening the command journal: {error:#}");
        }
    }
}

impl Inner {
    fn remember(&mut self, id: String, known: Known) {
        if self.known.insert(id.clone(), known).is_none() {
            self.order.push_back(id);
        }
        while self.order.len() > REMEMBERED {
            // A command that still runs is never forgotten.
            let Some(oldest) = self.order.pop_front() else { break };
            match self.known.get(&oldest).map(|known| &known.state) {
                Some(State::Started) => {
                    self.order.push_back(oldest);
                    break;
                }
                _ => drop(self.known.remove(&oldest)),
            }
        }
    }

    fn write(&mut self, id: &str, known: &Known) -> std::io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        self.lines += 1;
        file.write_all(line(id, known).as_bytes())
    }

    fn rewrite(&mut self) -> Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut fresh = tempfile::NamedTempFile::new_in(folder)?;
        let known = self.order.iter().filter_map(|id| Some((id, self.known.get(id)?)));
        self.lines = 0;
        for (id, known) in known {
            self.lines += 1;
            fresh.write_all(line(id, known).as_bytes())?;
        }
        fresh.as_file().sync_all()?;
        fresh.persist(path)?;
        self.file = Some(File::options().append(true).open(path)?);
        Ok(())
    }
}

impl Outcome {
    fn of(result: &CommandResult) -> Outcome {
        match result {
            Ok(attributes) => Outcome::Completed(json_object(attributes)),
            Err(error) => Outcome::Error { code: error_code(error).into(), text: error_text(error).into() },
        }
    }

    fn into_result(self) -> CommandResult {
        match self {
            Outcome::Completed(attributes) => Ok(attributes_of(attributes)),
            Outcome::Error { code, text } => Err(error_of(&code, text)),
        }
    }
}

fn line(id: &str, known: &Known) -> String {
    let (answered, result) = match &known.state {
        State::Started => (false, None),
        State::Answered(result) => (true, result.as_ref().map(Outcome::of)),
        State::Interrupted => (true, Some(Outcome::of(&Err(crate::device::interrupted())))),
    };
    let session = known.session.as_deref().map(str::to_owned);
    let line = Line { id: id.to_owned(), device: known.device.clone(), session, time: known.time, answered, result };
    // Texts and numbers always serialize.
    let mut text = serde_json::to_string(&line).unwrap_or_default();
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(id: &str) -> CommandRequest {
        CommandRequest { id: id.into(), session: Some("cloud".into()), name: "ping".into(), arguments: Map::new() }
    }

    #[test]
    fn a_command_that_a_crash_interrupted_is_reported_once_and_never_runs_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("commands.log");
        let device = DeviceId::new("meter");
        let (journal, interrupted) = Journal::open(&path).unwrap();
        assert_eq!(interrupted, []);
        assert_eq!(journal.begin(&command("a"), &device, 1).unwrap(), Seen::Never);
        assert_eq!(journal.begin(&command("b"), &device, 2).unwrap(), Seen::Never);
        journal.end("b", &device, 3, &Ok(vec![]));
        assert_eq!(journal.begin(&command("a"), &device, 4).unwrap(), Seen::Running);
        assert_eq!(journal.begin(&command("b"), &device, 4).unwrap(), Seen::Answered(Some(Ok(vec![]))));
        drop(journal);
        std::fs::File::options().append(true).open(&path).unwrap().write_all(b"{\"id\":\"c\",\"dev").unwrap();

        let (journal, interrupted) = Journal::open(&path).unwrap();
        let session = Some("cloud".into());
        assert_eq!(interrupted, [Interrupted { device: device.clone(), command: "a".into(), session }]);
        assert_eq!(journal.begin(&command("a"), &device, 5).unwrap(), Seen::Interrupted);
        // The answer may have been lost with the crash, so it can be given again.
        assert_eq!(journal.begin(&command("b"), &device, 5).unwrap(), Seen::Answered(Some(Ok(vec![]))));
        drop(journal);
        assert_eq!(Journal::open(&path).unwrap().1, []);
    }

    #[test]
    fn the_file_and_the_memory_stay_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("commands.log");
        let device = DeviceId::new("meter");
        let (journal, _) = Journal::open(&path).unwrap();
        journal.begin(&command("first"), &device, 0).unwrap();
        for number in 0..5000 {
            let id = number.to_string();
            journal.begin(&command(&id), &device, 0).unwrap();
            journal.end(&id, &device, 0, &Ok(vec![]));
        }
        assert!(std::fs::read_to_string(&path).unwrap().lines().count() <= 5 * REMEMBERED);
        assert_eq!(journal.begin(&command("first"), &device, 0).unwrap(), Seen::Running);
        assert_eq!(journal.begin(&command("4999"), &device, 0).unwrap(), Seen::Answered(Some(Ok(vec![]))));
    }
}
