//! Which commands came, were started and were answered, over restarts and power
//! cuts: a command is carried out once, and answered.
//!
//! A command is written down when it comes, and only then its message is
//! acknowledged. That it is started is on the disk before the driver is called.
//! So after a crash it is known which commands still wait, and which were cut
//! short and must not run a second time. An answer is written down before an
//! outbox gets it, and an id that comes again gets the same answer again.
//!
//! A thread writes: whatever has come since it looked last goes to the disk
//! together. Nobody but those who must know waits for it.

mod memory;
mod writer;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::clock::{Moment, boot};
use crate::ledger::{Ledger, Safety};
use crate::message::{CommandError, CommandRequest, CommandResult, DeviceId, SessionName, Uplink};
use crate::router::Outlet;
use memory::{Key, Known, Line, Memory, State};
use writer::{Job, Shared};

/// A disk that takes longer stalls: commands are refused meanwhile.
const STALLED: Duration = Duration::from_secs(5);
/// See the module documentation.
pub struct Journal {
    shared: Arc<Shared>,
    /// How long after it came a command may be started.
    deadline: Duration,
    /// The thread that writes; none without a file.
    writer: Option<mpsc::Sender<Job>>,
}

/// What is known about a command that comes.
#[derive(Debug, Clone, PartialEq)]
pub enum Seen {
    /// Nothing: it may run.
    New,
    /// It came before, and its answer is still to be given.
    Before,
    /// It was answered so.
    Answered(CommandResult),
}

/// On which terms a command runs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Terms {
    /// How long after it came it may be started, if that is less than for all commands.
    pub deadline: Option<Duration>,
    /// Whether it may run again when nobody knows whether it has run to its end.
    pub is_idempotent: bool,
}

/// A command that was not over when the gateway died.
#[derive(Debug, Clone, PartialEq)]
pub struct Leftover {
    /// Its device.
    pub device: DeviceId,
    /// Its id.
    pub command: String,
    /// The session that waits for the answer.
    pub session: Option<SessionName>,
    /// How far it was.
    pub progress: Progress,
}

/// How far a command was.
#[derive(Debug, Clone, PartialEq)]
pub enum Progress {
    /// No driver was called for it.
    Waiting(CommandRequest),
    /// It was cut short; what it was, unless an older version of this program wrote it down.
    Interrupted(Option<CommandRequest>),
    /// Its answer may have reached no outbox.
    Answered(CommandResult),
}

impl Journal {
    /// A journal without a file, for `check` and tests.
    pub fn in_memory(deadline: Duration) -> Journal {
        Journal { shared: Shared::new(Memory::default()), deadline, writer: None }
    }

    /// Opens the file, and gives the commands that were not over.
    pub fn open(path: &Path, deadline: Duration) -> std::io::Result<(Journal, Vec<Leftover>)> {
        let (mut memory, now) = (Memory::default(), Moment::now());
        let mut ledger = Ledger::open(path, "commands", |line| memory.read(line, now, boot()));
        let leftovers = memory.interrupt().into_iter().filter_map(leftover).collect();
        if let Err(error) = ledger.rewrite(memory.lines().into_iter()) {
            tracing::error!("writing {}: {error}; commands are refused until it can be written", path.display());
        }
        let shared = Shared::new(memory);
        let (writer, jobs) = mpsc::channel();
        let for_thread = Arc::clone(&shared);
        std::thread::Builder::new().name("journal".into()).spawn(move || for_thread.write(&jobs, ledger))?;
        Ok((Journal { shared, deadline, writer: Some(writer) }, leftovers))
    }

    /// A command came. `receipt` is dropped as soon as it survives a power cut,
    /// or cannot be written.
    pub fn receive(&self, request: &CommandRequest, device: &DeviceId, receipt: impl Send + 'static) -> Seen {
        let (key, now) = (Key::of(request), Moment::now());
        let is_stalled = self.shared.is_stalled();
        let (seen, line) = {
            let mut memory = self.shared.memory();
            match memory.get(device, &key).map(|known| &known.state) {
                Some(State::Answered { result, .. }) => {
                    (Seen::Answered(result.clone().unwrap_or_else(|| Err(forgotten()))), None)
                }
                Some(_) => (Seen::Before, None),
                // What waits for the disk stays bounded so. One that comes again is refused again.
                None if is_stalled => {
                    let refused = State::Answered { result: Some(Err(stalled())), is_sent: true };
                    let known = memory.coming(now, refused);
                    memory.set(device, key, known);
                    return Seen::Answered(Err(stalled()));
                }
                None => {
                    let known = memory.coming(now, State::Waiting(request.clone()));
                    memory.set(device, key.clone(), known);
                    (Seen::New, memory.line(device, &key))
                }
            }
        };
        if is_stalled {
            return seen;
        }
        // One that came before may still be on its way to the disk.
        self.send(Job { line, safety: Safety::Durable, can_wait: true, done: Box::new(move |_| drop(receipt)) });
        seen
    }

    /// Notes that a driver is about to be called, and returns when that is on
    /// the disk. An error says why it must not be called.
    pub async fn begin(&self, request: &CommandRequest, device: &DeviceId, terms: Terms) -> Result<(), CommandError> {
        if self.shared.is_stalled() {
            return Err(stalled());
        }
        let (key, now) = (Key::of(request), Moment::now());
        let before = self.shared.memory().get(device, &key).cloned();
        let deadline = terms.deadline.map_or(self.deadline, |deadline| deadline.min(self.deadline));
        let is_late = |known: &Known| known.came.is_none_or(|came| now.since(came) > deadline);
        match &before {
            Some(Known { state: State::Interrupted(_), .. }) if !terms.is_idempotent => return Err(interrupted()),
            Some(known @ Known { state: State::Interrupted(_), .. }) if is_late(known) => return Err(interrupted()),
            Some(known @ Known { state: State::Waiting(_), .. }) if is_late(known) => {
                return Err(late(known, now, deadline));
            }
            Some(Known { state: State::Started(_) | State::Answered { .. }, .. }) => {
                return Err(CommandError::Busy("a command of this id has been started before".into()));
            }
            Some(_) | None => {}
        }
        let state = State::Started(Some(request.clone()));
        let line = {
            let mut memory = self.shared.memory();
            let known = match &before {
                Some(before) => Known { state, ..*before },
                None => memory.coming(now, state),
            };
            let line = Line::started(device, &key, &known);
            memory.set(device, key.clone(), known);
            line
        };
        let (done, written) = oneshot::channel();
        self.write(Some(line), Safety::Durable, move |result| {
            // Whoever waited may have gone: the disk took too long.
            let _ = done.send(result.map_err(str::to_owned));
        });
        let problem = match self.soon(written).await {
            Some(Ok(Ok(()))) => return Ok(()),
            Some(Ok(Err(problem))) => problem,
            Some(Err(_)) | None => "the disk does not answer".to_owned(),
        };
        // It has not run.
        match before {
            Some(known) => self.shared.memory().set(device, key, known),
            None => self.shared.memory().forget(device, &key),
        }
        Err(CommandError::Failed(format!("not carried out: the gateway cannot note commands: {problem}")))
    }

    /// Notes how a command ended, and gives the answer to the outbox of its
    /// session as soon as it is written down. One that was cut short and has not
    /// run again is answered so, whatever the result says.
    pub fn finish(&self, outlet: &Arc<Outlet>, session: Option<&SessionName>, command: &str, result: CommandResult) {
        let (key, now) = (Key { session: session.cloned(), id: command.to_owned() }, Moment::now());
        let (outlet, shared) = (Arc::clone(outlet), Arc::clone(&self.shared));
        let (line, result) = {
            let mut memory = self.shared.memory();
            let before = memory.get(&outlet.device, &key);
            let is_interrupted = before.is_some_and(|known| matches!(known.state, State::Interrupted(_)));
            let result = if is_interrupted { Err(interrupted()) } else { result };
            let state = State::Answered { result: Some(result.clone()), is_sent: false };
            let known = match before {
                Some(before) => Known { state, ..*before },
                None => memory.coming(now, state),
            };
            memory.set(&outlet.device, key.clone(), known);
            (memory.line(&outlet.device, &key), result)
        };
        let (writer, runtime) = (self.writer.clone(), tokio::runtime::Handle::try_current());
        let timer = runtime.as_ref().ok().cloned();
        let send = move || {
            outlet.answer(key.session.as_ref(), &Uplink::CommandResult { command: &key.id, result: &result });
            let (Some(writer), Ok(runtime)) = (writer, runtime) else {
                return drop(shared.memory().sent(&outlet.device, &key));
            };
            // Until the outbox has it on the disk the next life would give it again.
            runtime.spawn(async move {
                if outlet.settle().await.is_ok() {
                    let line = shared.memory().sent(&outlet.device, &key);
                    // The journal may have ended.
                    let _ = writer.send(Job { line, safety: Safety::Accepted, can_wait: true, done: Box::new(|_| ()) });
                }
            });
        };
        // Whoever asked is not to wait for a disk that may never answer.
        if self.shared.is_stalled() {
            send();
            return self.write(line, Safety::Accepted, |_| ());
        }
        let once = Arc::new(Once(Mutex::new(Some(send))));
        let later = Arc::clone(&once);
        self.write(line, Safety::Accepted, move |_| once.call());
        if let Some(timer) = timer.filter(|_| self.writer.is_some()) {
            timer.spawn(async move {
                tokio::time::sleep(STALLED).await;
                later.call();
            });
        }
    }

    /// Notes that all answers so far are in outboxes that are on the disk.
    pub fn all_sent(&self) {
        let lines = self.shared.memory().all_sent();
        lines.into_iter().for_each(|line| self.write(Some(line), Safety::Accepted, |_| ()));
    }

    /// Waits until all that was noted so far is on the disk, and its answers in their outboxes.
    pub async fn flush(&self) {
        let (done, all_done) = oneshot::channel();
        self.write(None, Safety::Durable, move |_| done.send(()).unwrap_or_default());
        let _ = all_done.await;
    }

    fn write(&self, line: Option<Line>, safety: Safety, done: impl FnOnce(Result<(), &str>) + Send + 'static) {
        self.send(Job { line, safety, can_wait: false, done: Box::new(done) });
    }

    fn send(&self, job: Job) {
        let Some(writer) = &self.writer else { return (job.done)(Ok(())) };
        // The thread ends after its last sender only.
        let _ = writer.send(job);
    }

    /// Waits for the thread as long as a disk may take. Without a thread the
    /// answer is there: a paused clock does not run on meanwhile.
    async fn soon<T>(&self, mut answer: oneshot::Receiver<T>) -> Option<Result<T, oneshot::error::RecvError>> {
        match answer.try_recv() {
            Err(oneshot::error::TryRecvError::Empty) => tokio::time::timeout(STALLED, answer).await.ok(),
            there => Some(Ok(there.ok()?)),
        }
    }
}

/// Something that is done once, by whoever comes first.
struct Once<F>(Mutex<Option<F>>);

impl<F: FnOnce()> Once<F> {
    fn call(&self) {
        let call = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        call.into_iter().for_each(|call| call());
    }
}

/// The answer to a command that a crash of the gateway cut short.
pub fn interrupted() -> CommandError {
    CommandError::Failed("interrupted by a restart of the gateway; the state of the device is unknown".into())
}

/// The answer to a command that comes while the disk does not answer.
fn stalled() -> CommandError {
    CommandError::Busy("not carried out: the disk of the gateway does not answer".into())
}

/// The answer to a command that comes again long after it was answered.
fn forgotten() -> CommandError {
    CommandError::Failed("it was carried out or refused before; its answer is no longer known".into())
}

/// The answer to a command that waited too long.
fn late(known: &Known, now: Moment, deadline: Duration) -> CommandError {
    let waited = match known.came {
        Some(came) => format!("it has waited for {} s", now.since(came).as_secs()),
        None => "it has waited since before the machine was started".into(),
    };
    CommandError::TimedOut(format!("not carried out: {waited}; it may {}", humantime::format_duration(deadline)))
}

fn leftover((device, key, known): (DeviceId, Key, Known)) -> Option<Leftover> {
    let progress = match known.state {
        State::Waiting(request) => Progress::Waiting(request),
        State::Started(request) | State::Interrupted(request) => Progress::Interrupted(request),
        State::Answered { result, .. } => Progress::Answered(result?),
    };
    Some(Leftover { device, command: key.id, session: key.session, progress })
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;
    use crate::cloud::Cloud;
    use crate::cloud::enapter::Enapter;
    use crate::config::PropertiesTopic;
    use crate::outbox::{Bounds, Outbox};
    use crate::router::Route;

    const TERMS: Terms = Terms { deadline: None, is_idempotent: false };
    const MINUTE: Duration = Duration::from_secs(60);

    fn command(id: &str) -> CommandRequest {
        CommandRequest {
            id: id.into(),
            session: Some(SessionName::new("cloud")),
            name: "ping".into(),
            arguments: Map::new(),
        }
    }

    /// A device whose session is called "cloud".
    fn outlet() -> Arc<Outlet> {
        let device = DeviceId::new("meter");
        let cloud = Enapter {
            hardware_id: "S".into(),
            channel_id: "s".into(),
            properties_topic: PropertiesTopic::Properties,
            needs_ucm: false,
        };
        let bounds = Bounds { bytes: 64 << 20, age: Duration::from_secs(60), ..Bounds::default() };
        let (channel, outbox) = (cloud.device(&device, None).unwrap(), Arc::new(Outbox::new(bounds)));
        let session = SessionName::new("cloud");
        let route = Route { session, channel, outbox, questions: None, binary_data: None };
        Arc::new(Outlet { device, routes: vec![route] })
    }

    fn answers(outlet: &Outlet) -> u64 {
        outlet.routes[0].outbox.stats().appended
    }

    fn finish(journal: &Journal, id: &str, outlet: &Arc<Outlet>) {
        journal.finish(outlet, Some(&SessionName::new("cloud")), id, Ok(vec![]));
    }

    #[tokio::test]
    async fn what_was_not_over_is_known_after_a_kill_and_nothing_runs_a_second_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("commands.jsonl");
        let (device, outlet) = (DeviceId::new("meter"), outlet());
        let (journal, leftovers) = Journal::open(&path, MINUTE).unwrap();
        assert_eq!(leftovers, []);
        for id in ["a waits", "b runs", "over"] {
            assert_eq!(journal.receive(&command(id), &device, ()), Seen::New);
            assert_eq!(journal.receive(&command(id), &device, ()), Seen::Before);
        }
        for id in ["b runs", "over"] {
            journal.begin(&command(id), &device, TERMS).await.unwrap();
            assert!(matches!(journal.begin(&command(id), &device, TERMS).await, Err(CommandError::Busy(_))));
        }
        finish(&journal, "over", &outlet);
        journal.flush().await;
        // An outbox in memory keeps nothing; at a stop it is told what was kept.
        journal.all_sent();
        journal.flush().await;
        assert_eq!(answers(&outlet), 1);
        assert_eq!(journal.receive(&command("over"), &device, ()), Seen::Answered(Ok(vec![])));
        drop(journal);
        use std::io::Write;
        std::fs::File::options().append(true).open(&path).unwrap().write_all(b"{\"id\":\"c\",\"dev").unwrap();

        for life in 0..2 {
            let (journal, leftovers) = Journal::open(&path, MINUTE).unwrap();
            let found: Vec<_> = leftovers.into_iter().map(|left| (left.command, left.progress)).collect();
            let runs = ("b runs".to_owned(), Progress::Interrupted(Some(command("b runs"))));
            assert_eq!(found, [("a waits".to_owned(), Progress::Waiting(command("a waits"))), runs], "{life}");
            assert_eq!(journal.begin(&command("b runs"), &device, TERMS).await, Err(interrupted()));
            assert_eq!(journal.receive(&command("over"), &device, ()), Seen::Answered(Ok(vec![])));
        }
        let (journal, _) = Journal::open(&path, MINUTE).unwrap();
        journal.begin(&command("a waits"), &device, TERMS).await.unwrap();
        let idempotent = Terms { is_idempotent: true, ..TERMS };
        journal.begin(&command("b runs"), &device, idempotent).await.unwrap();
        ["a waits", "b runs"].iter().for_each(|id| finish(&journal, id, &outlet));
        journal.all_sent();
        journal.flush().await;
        drop(journal);
        assert_eq!(Journal::open(&path, MINUTE).unwrap().1, []);
    }

    #[tokio::test]
    async fn an_answer_that_no_outbox_has_is_given_by_the_next_life() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("commands.jsonl");
        let device = DeviceId::new("meter");
        let (mut memory, now) = (Memory::default(), Moment::now());
        let state = State::Answered { result: Some(Ok(vec![])), is_sent: false };
        memory.set(&device, Key::of(&command("a")), Known { came: Some(now), time: now.wall, number: 1, state });
        let mut ledger = Ledger::open(&path, "commands", |_| true);
        ledger.rewrite(memory.lines().into_iter()).unwrap();
        let (_, leftovers) = Journal::open(&path, MINUTE).unwrap();
        assert_eq!(leftovers.first().map(|left| &left.progress), Some(&Progress::Answered(Ok(vec![]))));
    }

    #[tokio::test]
    async fn a_command_that_waited_too_long_or_for_an_unknown_time_is_not_carried_out() {
        let (journal, device) = (Journal::in_memory(MINUTE), DeviceId::new("meter"));
        let now = Moment::now();
        let long_ago = Moment { steady: now.steady - 61_000, ..now };
        for came in [Some(long_ago), None] {
            let state = State::Waiting(command("a"));
            journal.shared.memory().set(&device, Key::of(&command("a")), Known { came, time: 0, number: 1, state });
            assert!(matches!(journal.begin(&command("a"), &device, TERMS).await, Err(CommandError::TimedOut(_))));
        }
    }

    #[tokio::test]
    async fn without_a_disk_commands_are_refused_and_with_it_again_they_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state/commands.jsonl");
        let device = DeviceId::new("meter");
        let (journal, _) = Journal::open(&path, MINUTE).unwrap();
        assert_eq!(journal.receive(&command("a"), &device, ()), Seen::New);
        let refused = journal.begin(&command("a"), &device, TERMS).await.unwrap_err();
        assert!(refused.text().starts_with("not carried out: the gateway cannot note commands"), "{refused:?}");
        std::fs::create_dir(folder.path().join("state")).unwrap();
        journal.begin(&command("a"), &device, TERMS).await.unwrap();
        drop(journal);
        assert_eq!(Journal::open(&path, MINUTE).unwrap().1.len(), 1);
    }

    #[tokio::test]
    async fn a_receipt_is_dropped_once_the_command_is_on_the_disk() {
        struct Receipt(std::path::PathBuf, mpsc::Sender<bool>);
        impl Drop for Receipt {
            fn drop(&mut self) {
                let text = std::fs::read_to_string(&self.0).unwrap_or_default();
                self.1.send(text.contains("\"id\":\"a\"")).unwrap();
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("commands.jsonl");
        let (journal, _) = Journal::open(&path, MINUTE).unwrap();
        let (sender, dropped) = mpsc::channel();
        journal.receive(&command("a"), &DeviceId::new("meter"), Receipt(path, sender));
        assert_eq!(dropped.recv(), Ok(true));
    }

    #[tokio::test]
    async fn the_file_stays_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("commands.jsonl");
        let (device, outlet) = (DeviceId::new("meter"), outlet());
        let (journal, _) = Journal::open(&path, MINUTE).unwrap();
        for number in 0..10_000 {
            finish(&journal, &number.to_string(), &outlet);
        }
        journal.all_sent();
        journal.flush().await;
        assert!(path.metadata().unwrap().len() < 1 << 20);
        drop(journal);
        let (journal, leftovers) = Journal::open(&path, MINUTE).unwrap();
        assert_eq!((leftovers, answers(&outlet)), (vec![], 10_000));
        assert_eq!(journal.receive(&command("9999"), &device, ()), Seen::Answered(Ok(vec![])));
    }
}
