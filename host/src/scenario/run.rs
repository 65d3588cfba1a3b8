//! Runs a scenario: one device in a runtime whose time is paused.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value as Json};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use super::expect::{self, Expect, Pattern};
use super::field::Simulated;
use super::format::{CommandStep, ConfigureStep, Device, Given, Lost, PlacedStep, Step, SwapStep, lay_over};
use super::story::Story;
use super::{Failure, Report, Scenario, Seen};
use crate::bus::TcpLines;
use crate::clock::SimulatedClock;
use crate::cloud::Channel;
use crate::config::{ConfiguredUnits, LogLevel, ModbusAccess};
use crate::device::{Configuration, DeviceHandle, Input, News, Phase, Specification, prepare};
use crate::gate::TapeField;
use crate::io::PinKind;
use crate::journal::Journal;
use crate::lines::Granted;
use crate::manifest::{Manifest, Requests};
use crate::message::{CommandRequest, DeviceId, SessionName};
use crate::network::{Lookups, Target};
use crate::outbox::{Bounds, Outbox};
use crate::receipt::{Outcome, Receipts};
use crate::router::{Outlet, Route};
use crate::sandbox::{Capabilities, Driver, Sandbox, Surroundings};
use crate::sockets::Sockets;
use crate::storage::{DeviceStorage, Storage};
use crate::tape::{Room, Tapes};

/// What happens at the end of a step belongs to it.
const MOMENT: Duration = Duration::from_millis(1);
/// A command waits in a queue for no longer.
const DEADLINE: Duration = Duration::from_secs(60);
const HEALTH_WINDOW: Duration = Duration::from_secs(30);
/// Bytes of the tape of a scenario.
const RECORDED: usize = 256 << 20;
/// The device's id; drivers do not care.
const DEVICE: &str = "device";

/// Runs a scenario with a driver. Blocks; to be called outside of a runtime.
///
/// With `records`, the last life of the driver is on a tape.
pub fn run(sandbox: &Sandbox, driver: &Arc<Driver>, scenario: &Scenario, seed: u64, records: bool) -> Report {
    let began = std::time::Instant::now();
    let mut report = Report {
        file: scenario.file.clone(),
        name: scenario.name.clone(),
        failure: None,
        simulated: Duration::ZERO,
        took: Duration::ZERO,
        seen: Seen::default(),
        tape: None,
    };
    let first = scenario.steps.first().map_or(1, |step| step.line);
    let failed = |problem: String| Some(Failure { line: first, problems: vec![problem], timeline: Vec::new() });
    let play = async {
        let folder = tempfile::tempdir().map_err(|error| format!("no folder for its storage: {error}"))?;
        let mut stage = Stage::set(sandbox, driver, scenario, folder.path(), seed, records).await?;
        let result = stage.go(&scenario.steps).await;
        let timeline = || {
            let unknown = stage.tape.as_ref().map(TapeField::unknown).unwrap_or_default();
            let told = unknown.into_iter().map(|asked| format!("the tape has no answer to {asked}"));
            stage.story.timeline().into_iter().chain(told).collect()
        };
        let failure = result.err().map(|(line, problems)| Failure { line, problems, timeline: timeline() });
        let mut seen = std::mem::take(&mut stage.story.lock().seen);
        (seen.used.memory, seen.used.cpu) = stage.used();
        let tape = if records { stage.device.ask(Input::Tape).await.flatten() } else { None };
        Ok::<_, String>((failure, stage.story.time(), seen, tape))
    };
    match in_paused_time(play) {
        Ok(Ok((failure, simulated, seen, tape))) => {
            (report.failure, report.simulated, report.seen, report.tape) = (failure, simulated, seen, tape);
        }
        Ok(Err(problem)) => report.failure = failed(problem),
        Err(error) => report.failure = failed(format!("no runtime: {error}")),
    }
    report.seen.note(&scenario.given, &scenario.steps, &driver.manifest);
    report.took = began.elapsed();
    report
}

/// Runs a future on a clock that jumps to the next thing that is due.
pub(super) fn in_paused_time<T>(future: impl Future<Output = T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    Ok(runtime.block_on(future))
}

/// The line of a step and what is wrong.
type Wrong = (u64, Vec<String>);

/// A scenario under way.
pub(super) struct Stage<'a> {
    pub story: Arc<Story>,
    sandbox: &'a Sandbox,
    folder: &'a Path,
    device: DeviceHandle,
    field: Simulated,
    storage: DeviceStorage,
    configuration: Map<String, Json>,
    /// Up to when steps have gone; the clock is a moment later.
    time: Instant,
    /// What answers where nothing is given.
    tape: Option<TapeField>,
    /// Whether expectations have looked since something happened.
    has_looked: bool,
    commands: u32,
    _clock: SimulatedClock,
}

impl<'a> Stage<'a> {
    /// Starts the device; to be called in paused time.
    pub(super) async fn set(
        sandbox: &'a Sandbox,
        driver: &Arc<Driver>,
        scenario: &'a Scenario,
        folder: &Path,
        seed: u64,
        records: bool,
    ) -> Result<Stage<'a>, String> {
        let given = &scenario.given;
        let clock = SimulatedClock::begin(given.begin()?);
        fastrand::seed(seed);
        let story = Arc::new(Story::new());
        let field = Simulated::new(&given.devices, &scenario.captures, &story);
        let id = DeviceId::new(DEVICE);
        let storage = Storage::open(folder).device(&id);
        let mut specification = specification(given, &driver.manifest, &field, &story, storage.clone(), seed);
        let tape = scenario.tape.as_ref().map(|tape| TapeField::new(tape, tape.extent().1));
        if let Some(tape) = &tape {
            play(tape, &mut specification.capabilities, &field, &driver.manifest.driver.requests);
            for (key, value) in tape.stored() {
                // What does not fit was never there.
                let _ = storage.set(key, value.clone(), usize::MAX);
            }
        }
        if records {
            let room = Room::new(RECORDED, Duration::MAX);
            specification.capabilities.tapes = Some(Tapes::new(room, true, None));
        }
        let configuration = Configuration::own(given.configuration.clone());
        let prepared = prepare(&specification, Arc::clone(driver), &configuration).await;
        let prepared = prepared.map_err(|error| format!("the driver cannot be made ready: {error}"))?;
        let (journal, receipts) = (Arc::new(Journal::in_memory(DEADLINE)), Receipts::in_memory());
        let time = Instant::now();
        let device = DeviceHandle::start(Arc::new(specification), prepared, journal, receipts);
        let mut stage = Stage {
            story,
            sandbox,
            folder: scenario.file.parent().unwrap_or(Path::new(".")),
            device,
            field,
            storage,
            configuration: given.configuration.clone(),
            time,
            tape,
            has_looked: false,
            commands: 0,
            _clock: clock,
        };
        stage.settle().await;
        Ok(stage)
    }

    /// Does a step that is no expectation.
    pub(super) async fn step(&mut self, step: &PlacedStep) -> Result<(), Vec<String>> {
        if !matches!(step.step, Step::Advance(_)) {
            // What it starts has its times from here on.
            self.time = Instant::now();
        }
        self.act(&step.step).await?;
        self.settle().await;
        Ok(())
    }

    /// Bytes of an instance and processor time of a call, at most.
    fn used(&self) -> (u64, Duration) {
        let statistics = &self.device.spec.capabilities.statistics;
        (statistics.most_memory.get(), Duration::from_nanos(statistics.most_cpu.get()))
    }

    pub(super) fn phase(&self) -> Phase {
        self.device.status.borrow().phase
    }

    pub(super) fn crashes(&self) -> u64 {
        self.device.spec.capabilities.statistics.crashes.get()
    }

    pub(super) fn problem(&self) -> Option<String> {
        self.device.status.borrow().problem.clone()
    }

    async fn go(&mut self, steps: &[PlacedStep]) -> Result<(), Wrong> {
        for step in steps {
            if let Step::Expect(expect) = &step.step {
                self.has_looked = true;
                self.look(expect).map_err(|problems| (step.line, problems))?;
                continue;
            }
            // What was looked at is over.
            if std::mem::take(&mut self.has_looked) {
                self.story.lock().window = super::story::Window::default();
            }
            self.step(step).await.map_err(|problems| (step.line, problems))?;
        }
        Ok(())
    }

    /// Lets what is due at this very moment happen.
    async fn settle(&mut self) {
        self.time = self.time.max(Instant::now() - MOMENT);
        sleep_until(self.time + MOMENT).await;
    }

    async fn act(&mut self, step: &Step) -> Result<(), Vec<String>> {
        match step {
            Step::Advance(span) => {
                self.tell(&format!("advance {span}"));
                self.time += span.0;
                sleep_until(self.time).await;
                Ok(())
            }
            Step::Change(changes) => {
                changes.0.iter().for_each(|(name, change)| self.field.change(name, change));
                self.tell("devices change");
                Ok(())
            }
            Step::Break(faults) => {
                for (name, fault) in faults {
                    self.field.set_fault(name, Some(*fault));
                    self.tell(&format!("{name} breaks: {fault:?}"));
                }
                Ok(())
            }
            Step::Repair(names) => {
                for name in &names.0 {
                    self.field.set_fault(name, None);
                    self.tell(&format!("{name} is repaired"));
                }
                Ok(())
            }
            Step::Command(command) => self.command(command).await,
            Step::Configure(configure) => self.configure(configure).await,
            Step::Swap(swap) => self.swap(swap).await,
            Step::Restart => {
                self.tell("restart");
                let done = self.device.ask(|reply| Input::Restart(None, reply)).await;
                done.ok_or_else(|| vec!["the device has stopped".to_owned()])
            }
            Step::Trap => {
                self.tell("the driver crashes");
                let done = self.device.ask(Input::Crash).await;
                done.ok_or_else(|| vec!["the device has stopped".to_owned()])
            }
            Step::Lose(Lost::Storage) => {
                self.tell("what was stored is lost");
                let keys = self.storage.keys().unwrap_or_default();
                let deleted: anyhow::Result<()> = keys.iter().try_for_each(|key| self.storage.delete(key));
                deleted.map_err(|error| vec![format!("{error:#}")])
            }
            Step::Given(_) | Step::Expect(_) => Ok(()),
        }
    }

    fn tell(&self, text: &str) {
        self.story.tell(|line| {
            line.push_str("-- ");
            line.push_str(text);
        });
    }

    async fn command(&mut self, step: &CommandStep) -> Result<(), Vec<String>> {
        self.commands += 1;
        self.tell(&format!("command {}", step.name));
        let request = CommandRequest {
            id: format!("command-{}", self.commands),
            session: None,
            name: step.name.clone(),
            arguments: step.arguments.clone(),
        };
        let (reply, result) = oneshot::channel();
        let result = match self.device.command(request, Some(reply)) {
            Ok(()) => result.await.map_err(|_| vec!["the device has stopped".to_owned()])?,
            Err(error) => Err(error),
        };
        let shown = match &result {
            Ok(attributes) => Ok(attributes.iter().map(|a| (a.name.clone(), a.value.clone())).collect::<Vec<_>>()),
            Err(error) => Err(error.to_string()),
        };
        self.tell(&format!("answer {shown:?}"));
        match (shown, &step.error) {
            (Ok(found), None) => {
                let expected = step.result.as_ref();
                let problems = expected.map(|expected| expect::check_result(expected, &found)).unwrap_or_default();
                if problems.is_empty() { Ok(()) } else { Err(problems) }
            }
            (Ok(found), Some(pattern)) => {
                Err(vec![format!("expected the error {:?}, found the result {found:?}", pattern.0)])
            }
            (Err(error), expected) => matches(expected.as_ref(), &error, "the command"),
        }
    }

    async fn configure(&mut self, step: &ConfigureStep) -> Result<(), Vec<String>> {
        self.tell("configure");
        let mut configuration = self.configuration.clone();
        lay_over(&mut configuration, step.configuration.clone());
        let driver = Arc::clone(&self.device.status.borrow().driver);
        let result = match Configuration::own(configuration.clone()).check(&driver.manifest) {
            Err(problem) => Err(format!("configuration.{problem}")),
            Ok((text, _)) => {
                let answer = self.device.ask(|reply| Input::Configure(text, reply)).await;
                answer.unwrap_or_else(|| Err("the device has stopped".into()))
            }
        };
        match (result, &step.rejected) {
            (Ok(()), None) => {
                self.configuration = configuration;
                Ok(())
            }
            (Ok(()), Some(pattern)) => Err(vec![format!("expected it to be rejected: {:?}", pattern.0)]),
            (Err(error), expected) => matches(expected.as_ref(), &error, "the configuration"),
        }
    }

    async fn swap(&mut self, step: &SwapStep) -> Result<(), Vec<String>> {
        let driver = match &step.driver {
            None => Arc::clone(&self.device.status.borrow().driver),
            Some(path) => {
                let loaded = self.sandbox.load(&self.folder.join(path)).await;
                Arc::new(loaded.map_err(|error| vec![format!("{error:#}")])?)
            }
        };
        self.tell(&format!("swap to {}", driver.manifest.label()));
        let given = Configuration::own(self.configuration.clone());
        let result = match prepare(&self.device.spec, driver, &given).await {
            Err(error) => Err(error.to_string()),
            Ok(prepared) => {
                let swap = |reply| Input::Swap(Box::new(prepared), "the scenario".into(), reply);
                match self.device.ask(swap).await.map(|receipt| receipt.outcome) {
                    None => Err("the device has stopped".into()),
                    Some(Outcome::Accepted) => Ok(()),
                    Some(Outcome::Rejected(reason) | Outcome::RolledBack(reason)) => Err(reason),
                }
            }
        };
        match (result, &step.rejected) {
            (Ok(()), None) => Ok(()),
            (Ok(()), Some(pattern)) => Err(vec![format!("expected it to be rejected: {:?}", pattern.0)]),
            (Err(error), expected) => matches(expected.as_ref(), &error, "the swap"),
        }
    }

    fn look(&self, expect: &Expect) -> Result<(), Vec<String>> {
        let mut storage = Map::new();
        for key in expect.storage.keys() {
            if let Ok(Some(value)) = self.storage.get(key) {
                storage.insert(key.clone(), Json::from(String::from_utf8_lossy(&value).into_owned()));
            }
        }
        let state = {
            let status = self.device.status.borrow();
            let version = status.driver.manifest.driver.version.clone();
            expect::State { phase: status.phase, version, storage, used: self.used() }
        };
        let inner = self.story.lock();
        let problems = expect.problems(&inner.window, &inner.alerts, &state);
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }
}

/// Whether an error is the expected one.
fn matches(expected: Option<&Pattern>, error: &str, what: &str) -> Result<(), Vec<String>> {
    match expected {
        Some(pattern) if pattern.matches(error) => Ok(()),
        Some(pattern) => Err(vec![format!("{what}: expected the error {:?}, found {error}", pattern.0)]),
        None => Err(vec![format!("{what} failed: {error}")]),
    }
}

impl Seen {
    /// Notes what a scenario gives and does.
    fn note(&mut self, given: &Given, steps: &[PlacedStep], manifest: &Manifest) {
        self.parameters.extend(parameters(&given.configuration));
        self.devices.extend(given.devices.0.iter().map(|(name, _)| name.clone()));
        let device = |name: &str| name.split('/').next().unwrap_or_default().to_owned();
        let mut broken = BTreeSet::new();
        for step in steps {
            match &step.step {
                Step::Configure(configure) => {
                    self.parameters.extend(parameters(&configure.configuration));
                    if configure.rejected.is_none() {
                        self.changed.extend(parameters(&configure.configuration));
                    }
                }
                // What does not fit the manifest never comes to the driver.
                Step::Command(command) if manifest.check_command(&command.name, command.arguments.clone()).is_ok() => {
                    self.commands.insert(command.name.clone());
                }
                Step::Break(faults) => broken.extend(faults.keys().map(|name| device(name))),
                Step::Repair(names) => {
                    let repaired = names.0.iter().map(|name| device(name));
                    self.lost.extend(repaired.filter(|name| broken.contains(name)));
                }
                Step::Swap(SwapStep { rejected: None, .. }) => self.is_swapped = true,
                Step::Trap => self.has_crashed = true,
                _ => {}
            }
        }
    }
}

/// The names of what a configuration sets.
fn parameters(configuration: &Map<String, Json>) -> impl Iterator<Item = String> {
    let tables = configuration.iter().filter_map(|(bucket, parameters)| Some((bucket, parameters.as_object()?)));
    tables.flat_map(|(bucket, parameters)| parameters.keys().map(move |name| format!("{bucket}.{name}")))
}

/// Lets a tape answer where nothing is given.
fn play(tape: &TapeField, capabilities: &mut Capabilities, field: &Simulated, requests: &Requests) {
    let names: Vec<String> = requests.names().into_iter().flat_map(|(_, names)| names).cloned().collect();
    field.add_tape(tape, &names);
    let (lines, device) = (&mut capabilities.lines, &capabilities.outlet.device);
    for name in requests.modbus.iter() {
        if !lines.modbus.contains_key(name) {
            lines.add_modbus(name, field, device, ModbusAccess::default());
        }
    }
    for name in requests.can.iter() {
        if !lines.can.contains_key(name) {
            lines.add_can(name, Arc::new(field.clone()));
        }
    }
    for (name, kind) in tape.pins() {
        if !lines.io.contains_key(&name) {
            lines.add_io(&name, kind, field);
        }
    }
    for name in requests.serial.iter() {
        if !lines.serial.contains_key(name) {
            lines.add_serial(name, Arc::new(field.clone()));
        }
    }
    let addresses: Vec<Target> = tape.addresses().iter().filter_map(|name| name.parse().ok()).collect();
    capabilities.tcp.extend(addresses.iter().cloned());
    capabilities.http.extend(addresses);
}

/// A device whose way up ends in the story, with grants for what is given.
fn specification(
    given: &Given,
    manifest: &Manifest,
    field: &Simulated,
    story: &Arc<Story>,
    storage: DeviceStorage,
    seed: u64,
) -> Specification {
    // A driver that knows its units by itself gets those that are given.
    let knows_units = !ConfiguredUnits::of(manifest, "").is_declared;
    let id = DeviceId::new(DEVICE);
    let (mut lines, mut tcp, mut http) = (Granted::default(), given.grants.tcp.clone(), given.grants.http.clone());
    for (name, device) in &given.devices.0 {
        let target = name.parse::<Target>();
        match device {
            Device::Modbus(_) if target.is_ok() => tcp.extend(target),
            Device::Modbus(_) | Device::Capture(_) => {
                let access = ModbusAccess::of_units(knows_units.then(|| (0..=u8::MAX).collect()));
                lines.add_modbus(name, field, &id, access);
            }
            Device::Serial(_) => lines.add_serial(name, Arc::new(field.clone())),
            Device::Can(_) => lines.add_can(name, Arc::new(field.clone())),
            Device::Output(_) => lines.add_io(name, PinKind::Output, field),
            Device::Input(_) => lines.add_io(name, PinKind::Input, field),
            Device::Analog(_) => lines.add_io(name, PinKind::Analog, field),
            Device::Http(_) => http.extend(target),
            Device::Tcp(_) => tcp.extend(target),
        }
    }
    let route = Route {
        session: SessionName::new("scenario"),
        channel: Channel { name: DEVICE.into(), encoder: Arc::clone(story) as Arc<_> },
        outbox: Arc::new(Outbox::new(Bounds::default())),
        questions: None,
        binary_data: None,
    };
    Specification {
        id: id.clone(),
        capabilities: Capabilities {
            outlet: Arc::new(Outlet { device: id, routes: vec![route] }),
            statistics: Arc::default(),
            storage: Some(storage),
            tcp,
            http,
            unverified_tls: Vec::new(),
            lines,
            sockets: Sockets::new(64),
            lookups: Lookups::new(),
            tcp_lines: TcpLines::default(),
            tapes: None,
            surroundings: Surroundings { field: Some(Arc::new(field.clone())), seed: Some(seed) },
        },
        limits: given.limits.clone(),
        cloud_log: LogLevel::Debug,
        health_window: given.health_window.map_or(HEALTH_WINDOW, |span| span.0),
        news: News::default(),
    }
}
