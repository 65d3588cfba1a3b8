//! One life of a driver: its Store, its bindings and the guarded calls.
//!
//! Owned by one device task. After a trap, a used-up budget or a time-out the
//! instance is dead and must be dropped.

use std::future::poll_fn;
use std::pin::pin;
use std::time::Duration;

use sandgate_manifest::component::interface;
use serde::Serialize;
use tokio::time::Instant;
use wasmtime::Store;
use wasmtime::component::{InstancePre, TypedFunc};

use super::boundary::Export;
use super::contract::exports::sandgate::driver::device_driver::{Command, CommandError as DriverError, Context};
use super::contract::sandgate::driver::timers::TimerId;
use super::contract::{Driver as Bindings, DriverIndices};
use super::limits::Limits;
use super::shares::Share;
use super::state::State;
use super::trap;
use crate::message::{CommandError, CommandResult, SessionName};
use crate::shortage::is_shortage;
use crate::tape::{self, Deck, Ended, Header, Player, Tape, Tapes};
use crate::text;

/// Why a call ended without an answer. The instance is dead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The guest broke a rule: unreachable, out of bounds, a broken handle.
    #[error("trapped in {call}: {reason}")]
    Trap {
        /// The export that was called.
        call: &'static str,
        /// What the engine says.
        reason: String,
    },
    /// The guest was refused memory and gave up.
    #[error("ran out of memory in {call}: limit {limit} bytes")]
    Memory {
        /// The export that was called.
        call: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The guest computed too long.
    #[error("used up its CPU budget of {} ms in {call}", budget.as_millis())]
    Budget {
        /// The export that was called.
        call: &'static str,
        /// The budget.
        budget: Duration,
    },
    /// The machine has not enough of something for another instance.
    #[error("{0}")]
    Shortage(String),
    /// The call took too long, waiting included.
    #[error("exceeded its limit of {} ms in {call}", limit.as_millis())]
    Timeout {
        /// The export that was called.
        call: &'static str,
        /// The limit.
        limit: Duration,
    },
}

/// The mark that the epoch callback leaves in a trap.
#[derive(Debug, thiserror::Error)]
#[error("CPU budget used up")]
struct BudgetUsedUp;

/// A step of an update of the device behind a driver.
#[derive(Debug)]
pub enum FirmwareStep {
    /// It begins.
    Begin {
        /// The version to come.
        version: String,
        /// What came with the offer, JSON.
        specification: String,
        /// How many bytes come.
        size: u32,
    },
    /// The next part.
    Write(Vec<u8>),
    /// All parts are there.
    Finish,
}

/// See the module documentation.
pub struct Instance {
    store: Store<State>,
    bindings: Bindings,
    exports: wasmtime::component::Instance,
    migration: Option<Migration>,
    limits: Limits,
    share: Share,
}

struct Migration {
    snapshot: TypedFunc<(), (Vec<u8>,)>,
    restore: TypedFunc<(Vec<u8>,), (Result<(), String>,)>,
}

/// What a guest may hand over in one call. More than any import takes, so that
/// what is too large is told as that; more than this is a trap.
const HOSTCALL_FUEL: usize = 33 << 20;
/// Longer texts of a guest are cut before they go anywhere.
const MAX_TEXT: usize = 4 << 10;
/// What a runtime of scripts exports besides a driver's interfaces; see `plugins/lua/wit`.
const CHECK_OF_SCRIPTS: &str = "sandgate:lua/check@0.1.0";
/// More state than this belongs into storage.
const MAX_SNAPSHOT: usize = 1 << 20;

impl Instance {
    /// Makes an instance. Runs the guest's initialisers, so it can fail like a call.
    pub(super) async fn new(
        pre: &InstancePre<State>,
        indices: &DriverIndices,
        state: State,
        limits: Limits,
        mut share: Share,
    ) -> Result<Self, CallError> {
        let mut store = Store::new(pre.engine(), state);
        let meter = store.data_mut().cpu.begin();
        store.data_mut().deck.call(Export::Instantiation as u8, &());
        store.limiter(|state| &mut state.memory);
        // What one host call may lift into the host's own memory.
        store.set_hostcall_fuel(HOSTCALL_FUEL);
        store.epoch_deadline_callback(|context| {
            if context.data().cpu.is_left() { Ok(wasmtime::UpdateDeadline::Yield(1)) } else { Err(BudgetUsedUp.into()) }
        });
        store.set_epoch_deadline(1);
        let instantiate = async {
            let instance = pre.instantiate_async(&mut store).await?;
            let bindings = indices.load(&mut store, &instance)?;
            let migration = Migration::find(pre, &mut store, &instance);
            Ok((bindings, instance, migration))
        };
        let mut instantiate = Box::pin(instantiate);
        let metered = poll_fn(|context| meter.poll(&mut share, instantiate.as_mut(), context));
        let result = tokio::time::timeout(limits.call, metered).await;
        drop(instantiate);
        share.end();
        let result = outcome(result, Export::Instantiation, &store, &limits);
        store.data_mut().deck.returned(Export::Instantiation as u8, result.as_ref().map(|_| &()).map_err(Ended::from));
        let (bindings, exports, migration) = result?;
        Ok(Instance { store, bindings, exports, migration, limits, share })
    }

    /// Calls `start`.
    pub async fn start(&mut self, context: Context) -> Result<Result<(), String>, CallError> {
        let shown = self.store.data_mut().configured(&context.configuration).1;
        let on_tape = Context { configuration: shown, ..context.clone() };
        self.call(Export::Start, &on_tape, async |bindings, store| {
            bindings.sandgate_driver_device_driver().call_start(store, &context).await
        })
        .await
        .map(shorten)
    }

    /// Calls `on-timer`.
    pub async fn on_timer(&mut self, id: TimerId) -> Result<Result<(), String>, CallError> {
        self.call(Export::OnTimer, &id, async |bindings, store| {
            bindings.sandgate_driver_device_driver().call_on_timer(store, id).await
        })
        .await
        .map(shorten)
    }

    /// Calls `handle-command`; the session gets its progress.
    pub async fn handle_command(
        &mut self,
        command: Command,
        session: Option<SessionName>,
    ) -> Result<CommandResult, CallError> {
        self.store.data_mut().command = Some((command.id.clone(), session));
        let result = self
            .call(Export::HandleCommand, &command, async |bindings, store| {
                bindings.sandgate_driver_device_driver().call_handle_command(store, &command).await
            })
            .await;
        self.store.data_mut().command = None;
        result.map(|result| result.map_err(CommandError::from))
    }

    /// Calls `configure`.
    pub async fn configure(&mut self, configuration: &str) -> Result<Result<(), String>, CallError> {
        let shown_before = self.store.data_mut().deck.configuration();
        let (before, shown) = self.store.data_mut().configured(configuration);
        let result = self
            .call(Export::Configure, &shown, async |bindings, store| {
                bindings.sandgate_driver_device_driver().call_configure(store, configuration).await
            })
            .await
            .map(shorten);
        if !matches!(result, Ok(Ok(()))) {
            let state = self.store.data_mut();
            state.units = before;
            state.deck.configured(&shown_before, &[]);
        }
        result
    }

    /// Calls `stop`.
    pub async fn stop(&mut self) -> Result<(), CallError> {
        self.call(Export::Stop, &(), async |bindings, store| {
            bindings.sandgate_driver_device_driver().call_stop(store).await
        })
        .await
    }

    /// Calls `snapshot`; none when the driver has no `migration` or packed too much.
    pub async fn snapshot(&mut self) -> Result<Option<Vec<u8>>, CallError> {
        let Some(snapshot) = self.migration.as_ref().map(|migration| migration.snapshot) else { return Ok(None) };
        let (state,) = self.call(Export::Snapshot, &(), async |_, store| snapshot.call_async(store, ()).await).await?;
        if state.len() > MAX_SNAPSHOT {
            let reason = format!("expected a snapshot of at most {MAX_SNAPSHOT} bytes, found {}", state.len());
            return Err(CallError::Trap { call: Export::Snapshot.name(), reason });
        }
        Ok(Some(state).filter(|state| !state.is_empty()))
    }

    /// Calls `restore`, if the driver has it.
    pub async fn restore(&mut self, state: Vec<u8>) -> Result<Result<(), String>, CallError> {
        let Some(restore) = self.migration.as_ref().map(|migration| migration.restore) else { return Ok(Ok(())) };
        let (result,) = self
            .call(Export::Restore, &state, async |_, store| restore.call_async(store, (state.clone(),)).await)
            .await?;
        Ok(shorten(result))
    }

    /// Calls `firmware.version`: what the device runs.
    pub async fn firmware_version(&mut self) -> Result<Result<String, String>, CallError> {
        let Some(version) = self.firmware::<(), (Result<String, String>,)>("version") else {
            return Ok(Err("the driver updates no device".to_owned()));
        };
        let (result,) =
            self.call(Export::FirmwareVersion, &(), async |_, store| version.call_async(store, ()).await).await?;
        Ok(result.map(|version| cut(&version)).map_err(|text| cut(&text)))
    }

    /// Does one step of an update of the device.
    pub async fn update_firmware(&mut self, step: FirmwareStep) -> Result<Result<(), String>, CallError> {
        type Answer = (Result<(), String>,);
        let missing = || Ok(Err("the driver updates no device".to_owned()));
        let (answer,) = match step {
            FirmwareStep::Begin { version, specification, size } => {
                let Some(begin) = self.firmware::<(String, String, u32), Answer>("begin") else { return missing() };
                let given = (version, specification, size);
                self.call(Export::FirmwareBegin, &given, async |_, store| begin.call_async(store, given.clone()).await)
                    .await?
            }
            FirmwareStep::Write(part) => {
                let Some(write) = self.firmware::<(Vec<u8>,), Answer>("write") else { return missing() };
                self.call(Export::FirmwareWrite, &part, async |_, store| write.call_async(store, (part.clone(),)).await)
                    .await?
            }
            FirmwareStep::Finish => {
                let Some(finish) = self.firmware::<(), Answer>("finish") else { return missing() };
                self.call(Export::FirmwareFinish, &(), async |_, store| finish.call_async(store, ()).await).await?
            }
        };
        Ok(shorten(answer))
    }

    /// A function of the optional interface. It is looked up for each call:
    /// updates are rare, and an idle device should cost nothing for them.
    fn firmware<P, R>(&mut self, name: &str) -> Option<TypedFunc<P, R>>
    where
        P: wasmtime::component::ComponentNamedList + wasmtime::component::Lower,
        R: wasmtime::component::ComponentNamedList + wasmtime::component::Lift,
    {
        let interface = self.exports.get_export_index(&mut self.store, None, &interface("firmware"))?;
        let function = self.exports.get_export_index(&mut self.store, Some(&interface), name)?;
        self.exports.get_typed_func(&mut self.store, function).ok()
    }

    /// What the runtime of scripts finds wrong with them, if it looks.
    pub(super) async fn script_problems(&mut self) -> Result<Vec<String>, CallError> {
        let store = &mut self.store;
        let problems = self.exports.get_export_index(&mut *store, None, CHECK_OF_SCRIPTS).and_then(|interface| {
            let function = self.exports.get_export_index(&mut *store, Some(&interface), "problems")?;
            self.exports.get_typed_func::<(), (Vec<String>,)>(&mut *store, function).ok()
        });
        let Some(problems) = problems else { return Ok(Vec::new()) };
        let (found,) =
            self.call(Export::ScriptProblems, &(), async |_, store| problems.call_async(store, ()).await).await?;
        Ok(found)
    }

    /// What it has done, if that is recorded.
    pub fn tape(&mut self, mut header: Header) -> Option<Tape> {
        header.limits = tape::Limits {
            memory: self.limits.memory as u64,
            cpu_ms: milliseconds(self.limits.cpu),
            call_ms: milliseconds(self.limits.call),
        };
        header.memory = self.memory() as u64;
        let recorder = self.store.data_mut().deck.recorder()?;
        Some(Tape::new(header, recorder))
    }

    /// Records what is asked for from now on at the latest, under a configuration that counts.
    pub fn record(&mut self, tapes: &Tapes, configuration: &str) {
        let state = self.store.data_mut();
        if tapes.adapt(&mut state.deck) {
            state.show(configuration);
        }
    }

    /// Says before anything else what is secret: what another driver has left may hold it.
    pub fn will_be_configured(&mut self, configuration: &str) {
        self.store.data_mut().show(configuration);
    }

    /// What it has at its boundary.
    pub(super) fn deck(&mut self) -> &mut Deck {
        &mut self.store.data_mut().deck
    }

    /// What is played to it.
    pub(super) fn player(&self) -> Option<&Player> {
        self.store.data().deck.player()
    }

    /// Bytes of its memory.
    pub(super) fn memory(&self) -> usize {
        self.store.data().memory.used()
    }

    /// Lets go of the connections, while another driver has the device. The
    /// driver finds them closed when it goes on.
    pub fn pause(&mut self) {
        self.store.data_mut().close_connections();
    }

    /// Lets the repeating timers that are set in `start` go on with the beat of another instance's.
    pub fn keep_beat_of(&mut self, before: &Instance) {
        let beat = before.store.data().timers.beat();
        self.store.data_mut().timers.keep_beat(beat);
    }

    /// From now on new timers begin anew.
    pub fn end_beat(&mut self) {
        self.store.data_mut().timers.keep_beat(Vec::new());
    }

    /// When the next timer is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.store.data().timers.next_due()
    }

    /// Takes a timer that is due.
    pub fn take_due(&mut self, now: Instant) -> Option<TimerId> {
        self.store.data_mut().timers.take_due(now)
    }

    /// Runs one export under all limits.
    async fn call<R: Serialize>(
        &mut self,
        export: Export,
        arguments: &impl Serialize,
        call: impl AsyncFnOnce(&Bindings, &mut Store<State>) -> wasmtime::Result<R>,
    ) -> Result<R, CallError> {
        let meter = self.store.data_mut().cpu.begin();
        self.store.data_mut().call_ends = Instant::now() + self.limits.call;
        self.store.data().last_words.begin();
        self.store.data_mut().deck.call(export as u8, arguments);
        self.store.set_epoch_deadline(1);
        let result = {
            let mut call = pin!(call(&self.bindings, &mut self.store));
            let metered = poll_fn(|context| meter.poll(&mut self.share, call.as_mut(), context));
            tokio::time::timeout(self.limits.call, metered).await
        };
        self.share.end();
        let state = self.store.data();
        state.telemetry.statistics.most_cpu.note(meter.used());
        state.telemetry.statistics.most_memory.note(state.memory.used() as u64);
        let result = outcome(result, export, &self.store, &self.limits);
        self.store.data_mut().deck.returned(export as u8, result.as_ref().map_err(Ended::from));
        self.store.data_mut().turns.clear();
        let value = result?;
        self.store.data_mut().flush_alerts();
        Ok(value)
    }
}

impl Migration {
    /// Finds the optional interface; a wrong signature counts as none.
    fn find(
        pre: &InstancePre<State>,
        store: &mut Store<State>,
        instance: &wasmtime::component::Instance,
    ) -> Option<Migration> {
        let component = pre.component();
        let interface = component.get_export_index(None, interface("migration"))?;
        let snapshot = component.get_export_index(Some(&interface), "snapshot")?;
        let restore = component.get_export_index(Some(&interface), "restore")?;
        Some(Migration {
            snapshot: instance.get_typed_func(&mut *store, snapshot).ok()?,
            restore: instance.get_typed_func(&mut *store, restore).ok()?,
        })
    }
}

impl From<DriverError> for CommandError {
    fn from(error: DriverError) -> CommandError {
        match error {
            DriverError::InvalidArgument(text) => CommandError::InvalidArgument(text),
            DriverError::Unsupported(text) => CommandError::Unsupported(text),
            DriverError::Busy(text) => CommandError::Busy(text),
            DriverError::DeviceUnreachable(text) => CommandError::DeviceUnreachable(text),
            DriverError::TimedOut(text) => CommandError::TimedOut(text),
            DriverError::Failed(text) => CommandError::Failed(text),
        }
    }
}

impl From<&CallError> for Ended {
    fn from(error: &CallError) -> Ended {
        match error {
            CallError::Trap { .. } | CallError::Memory { .. } => Ended::Itself(error.to_string()),
            CallError::Budget { .. } | CallError::Shortage(_) | CallError::Timeout { .. } => {
                Ended::ByHost(error.to_string())
            }
        }
    }
}

/// Cuts a guest's error to a sensible length.
fn shorten(result: Result<(), String>) -> Result<(), String> {
    result.map_err(|text| cut(&text))
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn cut(text: &str) -> String {
    text::shortened(text, MAX_TEXT).into_owned()
}

/// Sorts what can happen to a call.
fn outcome<R>(
    result: Result<wasmtime::Result<R>, tokio::time::error::Elapsed>,
    export: Export,
    store: &Store<State>,
    limits: &Limits,
) -> Result<R, CallError> {
    let call = export.name();
    let error = match result {
        Ok(Ok(value)) => return Ok(value),
        Err(_) => return Err(CallError::Timeout { call, limit: limits.call }),
        Ok(Err(error)) => error,
    };
    if error.is::<BudgetUsedUp>() {
        return Err(CallError::Budget { call, budget: limits.cpu });
    }
    if store.data().memory.refused {
        return Err(CallError::Memory { call, limit: limits.memory });
    }
    // The engine's own word for it means nothing to an author.
    if error.root_cause().to_string().contains("fuel allocated for hostcalls") {
        let reason = format!("handed over more than {} MiB in one call", HOSTCALL_FUEL >> 20);
        return Err(CallError::Trap { call, reason });
    }
    if is_shortage(error.chain()) {
        return Err(CallError::Shortage(format!("{call}: {}", error.root_cause())));
    }
    Err(CallError::Trap { call, reason: trap::describe(&error, &store.data().last_words) })
}
