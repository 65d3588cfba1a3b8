//! Runs a driver on a tape as if it were the device's: the same answers, the
//! same commands at the same times, and a clock that jumps.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use super::deeds::{Deeds, shown};
use super::field::TapeField;
use crate::bus::TcpLines;
use crate::clock::SimulatedClock;
use crate::config::{Limits, LogLevel, ModbusAccess};
use crate::device::{Configuration, DeviceHandle, Input, News, Specification, prepare};
use crate::io::PinKind;
use crate::journal::Journal;
use crate::lines::Granted;
use crate::manifest::Requests;
use crate::message::{CommandRequest, DeviceId, Value, json_object};
use crate::network::{Lookups, Target};
use crate::receipt::Receipts;
use crate::router::Outlet;
use crate::sandbox::boundary::Export;
use crate::sandbox::contract::exports::sandgate::driver::device_driver::Command;
use crate::sandbox::{Capabilities, Driver, Surroundings};
use crate::sockets::Sockets;
use crate::storage::Storage;
use crate::tape::{Room, Tape, Tapes, hidden};
use crate::units::{Size, Span};

/// Where chance begins; the same for both versions.
const SEED: u64 = 1;
/// What a run may leave on its own tape.
const RECORDED: usize = 32 << 20;
/// How far it goes beyond the begin of the tape's last call.
const END: Duration = Duration::from_millis(50);
/// A command waits for no longer.
const DEADLINE: Duration = Duration::from_secs(60);

/// What a device may do, apart from its driver.
#[derive(Debug, Clone)]
pub struct Grounds {
    /// The operator's limits.
    pub limits: Limits,
    /// Granted addresses.
    pub tcp: Vec<Target>,
    /// Granted hosts.
    pub http: Vec<Target>,
    /// Granted lines, and what is allowed there.
    pub buses: BTreeMap<String, ModbusAccess>,
    /// Granted serial ports.
    pub ports: Vec<String>,
    /// Granted inputs and outputs.
    pub pins: BTreeMap<String, PinKind>,
    /// Granted CAN buses.
    pub can: Vec<String>,
    /// What counts now; what is sensitive in it is hidden before a driver sees it.
    pub configuration: Configuration,
}

impl Grounds {
    /// All that is on a tape, under the configuration there, with the lines that are asked for.
    pub fn of(tape: &Tape, requests: &[&Requests]) -> Grounds {
        let addresses = TapeField::new(tape, Duration::ZERO).addresses();
        let targets: Vec<Target> = addresses.iter().filter_map(|address| address.parse().ok()).collect();
        Grounds {
            limits: limits_of(&tape.header.limits),
            tcp: targets.clone(),
            http: targets,
            buses: requests
                .iter()
                .flat_map(|requests| &requests.modbus)
                .map(|line| (line.clone(), ModbusAccess::default()))
                .collect(),
            ports: requests.iter().flat_map(|requests| &requests.serial).cloned().collect(),
            pins: TapeField::new(tape, Duration::ZERO).pins(),
            can: requests.iter().flat_map(|requests| &requests.can).cloned().collect(),
            configuration: Configuration::own(tape.header.configuration.as_object().cloned().unwrap_or_default()),
        }
    }
}

/// Those that the device had.
fn limits_of(on_tape: &crate::tape::Limits) -> Limits {
    Limits {
        memory: Some(Size(on_tape.memory)).filter(|size| size.0 > 0),
        cpu: Some(Span(Duration::from_millis(on_tape.cpu_ms))).filter(|span| !span.0.is_zero()),
        call: Some(Span(Duration::from_millis(on_tape.call_ms))).filter(|span| !span.0.is_zero()),
        ..Limits::default()
    }
}

impl Specification {
    /// What a driver may do where the device is only played.
    pub fn grounds(&self, configuration: Configuration) -> Grounds {
        let Capabilities { tcp, http, lines, .. } = &self.capabilities;
        let buses = lines.modbus.iter().map(|(name, grant)| (name.clone(), grant.access.clone())).collect();
        let ports = lines.serial.keys().cloned().collect();
        let pins = lines.io.iter().map(|(name, pin)| (name.clone(), pin.kind)).collect();
        let can = lines.can.keys().cloned().collect();
        let (limits, tcp, http) = (self.limits.clone(), tcp.clone(), http.clone());
        Grounds { limits, tcp, http, buses, ports, pins, can, configuration }
    }
}

/// What a driver has done.
pub(super) struct Rehearsed {
    /// All of it.
    pub deeds: Deeds,
    /// Bytes of memory at the end.
    pub memory: u64,
    /// The processor's time.
    pub cpu: Duration,
    /// How often it was begun, and why last, when that was more than once.
    pub lives: u64,
    pub problem: Option<String>,
    /// What came of commands and configurations, in order.
    pub answers: Vec<(String, String)>,
    /// What it asked that the tape has no answer to.
    pub unknown: Vec<String>,
}

/// Something that came from outside.
enum Incoming {
    Command(CommandRequest),
    Configuration(String),
}

/// Runs a driver from the begin of a tape to its end, or fails when that takes too long.
pub(super) fn rehearse(
    driver: &Arc<Driver>,
    tape: &Tape,
    grounds: &Grounds,
    until: Clock,
) -> Result<Rehearsed, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.map_err(|error| format!("no runtime: {error}"))?;
    let began = processor_time();
    // A driver that computes lets others run every few milliseconds.
    let (overdue, is_overdue) = oneshot::channel();
    let (done, is_done) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        let left = until.saturating_duration_since(Clock::now());
        if is_done.recv_timeout(left) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            // Whoever waited is gone.
            let _ = overdue.send(());
        }
    });
    let mut rehearsed = runtime.block_on(async {
        tokio::select! {
            biased;
            Ok(()) = is_overdue => Err("it computes too long on what the device has done".to_owned()),
            rehearsed = run(driver, tape, grounds) => rehearsed,
        }
    })?;
    drop(done);
    rehearsed.cpu = processor_time().saturating_sub(began);
    Ok(rehearsed)
}

/// Of this thread.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or_default(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

async fn run(driver: &Arc<Driver>, tape: &Tape, grounds: &Grounds) -> Result<Rehearsed, String> {
    let (_, first, last) = tape.extent();
    let begin = Instant::now();
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let _clock = SimulatedClock::begin(tape.header.began.saturating_add(ms(first)));
    // In memory where there is such a folder: nobody needs it on the disk.
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    let folder = folder.map_err(|error: io::Error| format!("no folder for its storage: {error}"))?;
    // After the folder's name, which draws as often as it is taken.
    fastrand::seed(SEED);
    let field = TapeField::new(tape, first);
    let id = DeviceId::new(&tape.header.device);
    let storage = Storage::open(folder.path()).device(&id);
    for (key, value) in field.stored() {
        // What does not fit was never there.
        let _ = storage.set(key, value.clone(), usize::MAX);
    }
    let mut lines = Granted::default();
    for (name, access) in &grounds.buses {
        lines.add_modbus(name, &field, &id, access.clone());
    }
    for (name, kind) in &grounds.pins {
        lines.add_io(name, *kind, &field);
    }
    for name in &grounds.can {
        lines.add_can(name, Arc::new(field.clone()));
    }
    for name in &grounds.ports {
        lines.add_serial(name, Arc::new(field.clone()));
    }
    let specification = Specification {
        capabilities: Capabilities {
            outlet: Arc::new(Outlet { device: id.clone(), routes: Vec::new() }),
            statistics: Arc::default(),
            storage: Some(storage),
            tcp: grounds.tcp.clone(),
            http: grounds.http.clone(),
            unverified_tls: Vec::new(),
            lines,
            sockets: Sockets::new(64),
            lookups: Lookups::new(),
            tcp_lines: TcpLines::default(),
            tapes: Some(Tapes::new(Room::new(RECORDED, Duration::MAX), true, None)),
            surroundings: Surroundings { field: Some(Arc::new(field.clone())), seed: Some(SEED) },
        },
        limits: grounds.limits.clone(),
        cloud_log: LogLevel::Off,
        health_window: Duration::ZERO,
        news: News::default(),
        id,
    };
    let (state, incoming) = what_came(tape);
    let mut configuration = grounds.configuration.clone();
    driver.manifest.hide_sensitive(&mut configuration.own, hidden);
    driver.manifest.hide_sensitive(&mut configuration.whole, hidden);
    let prepared = prepare(&specification, Arc::clone(driver), &configuration).await;
    let mut prepared = prepared.map_err(|error| error.to_string())?;
    if let Some(state) = state {
        prepared.restore(state).await?;
    }
    let (journal, receipts) = (Arc::new(Journal::in_memory(DEADLINE)), Receipts::in_memory());
    let device = DeviceHandle::start(Arc::new(specification), prepared, journal, receipts);
    // What was configured first counts from the start on.
    let mut events = incoming.into_iter().peekable();
    let end = begin + last.saturating_sub(first) + END;
    let mut answers = Vec::new();
    let mut time = begin;
    while time < end {
        let next = events.peek().map_or(end, |(at, _)| begin + at.saturating_sub(first)).max(time);
        time = next.min(end);
        sleep_until(time).await;
        match events.next() {
            Some((_, Incoming::Command(request))) => {
                let (reply, result) = oneshot::channel();
                let name = format!("command {}", request.name);
                let answer = match device.command(request, Some(reply)) {
                    Ok(()) => result.await.ok(),
                    Err(error) => Some(Err(error)),
                };
                answers.push((name, answer.map_or_else(|| "none".into(), |answer| shown(&answer))));
            }
            Some((_, Incoming::Configuration(configuration))) => {
                let taken = device.ask(|reply| Input::Configure(configuration, reply)).await;
                let taken = taken.unwrap_or_else(|| Err("it has stopped".into()));
                answers.push(("configuration".into(), taken.map_or_else(|text| text, |()| "taken".into())));
            }
            None => {}
        }
        time = time.max(Instant::now());
    }
    let lives = device.spec.capabilities.tapes.as_ref().map_or(0, Tapes::lives);
    let problem = device.status.borrow().problem.clone();
    let recorded = device.ask(Input::Tape).await.flatten();
    let recorded = recorded.ok_or_else(|| {
        format!("it does not run at the end: {}", problem.clone().unwrap_or_else(|| "it has stopped".into()))
    })?;
    if !recorded.header.is_whole {
        return Err(format!("it does more than fits into {} MiB", RECORDED >> 20));
    }
    let (deeds, memory, unknown) = (Deeds::of(&recorded), recorded.header.memory, field.unknown());
    Ok(Rehearsed { deeds, memory, cpu: Duration::ZERO, lives, problem, answers, unknown })
}

/// The state that the life on a tape began with, and what came from outside.
fn what_came(tape: &Tape) -> (Option<Vec<u8>>, Vec<(Duration, Incoming)>) {
    let mut state = None;
    let mut incoming = Vec::new();
    for call in tape.calls() {
        if call.number == Export::Restore as u8 {
            state = postcard::from_bytes(call.arguments).ok();
        } else if call.number == Export::Configure as u8 {
            let configuration = postcard::from_bytes(call.arguments);
            incoming.extend(configuration.ok().map(|text| (call.at, Incoming::Configuration(text))));
        } else if call.number == Export::HandleCommand as u8
            && let Ok(Command { id, name, arguments, .. }) = postcard::from_bytes(call.arguments)
        {
            let known: Vec<_> = arguments.into_iter().filter(|argument| argument.value != Value::Unknown).collect();
            let arguments = json_object(&known);
            incoming.push((call.at, Incoming::Command(CommandRequest { id, session: None, name, arguments })));
        }
    }
    (state, incoming)
}
