//! One life of a driver: its Store, its bindings and the guarded calls.
//!
//! Owned by one device task. After a trap, a used-up budget or a time-out the
//! instance is dead and must be dropped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use wasmtime::Store;
use wasmtime::component::{InstancePre, TypedFunc};

use super::contract::exports::sandgate::driver::device_driver::{Command, CommandError, Context};
use super::contract::sandgate::driver::timers::TimerId;
use super::contract::{Driver as Bindings, DriverIndices};
use super::limits::Limits;
use super::state::State;
use crate::message::Attribute;

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

/// See the module documentation.
pub struct Instance {
    store: Store<State>,
    bindings: Bindings,
    migration: Option<Migration>,
    limits: Limits,
}

struct Migration {
    snapshot: TypedFunc<(), (Vec<u8>,)>,
    restore: TypedFunc<(Vec<u8>,), (Result<(), String>,)>,
}

const MIGRATION: &str = "sandgate:driver/migration@0.1.1";
/// A sample is at most 128 KiB, a body of HTTP 1 MiB.
const HOSTCALL_FUEL: usize = 8 << 20;
/// Longer texts of a guest are cut before they go anywhere.
const MAX_TEXT: usize = 4 << 10;
/// More state than this belongs into storage.
const MAX_SNAPSHOT: usize = 1 << 20;

impl Instance {
    /// Makes an instance. Runs the guest's initialisers, so it can fail like a call.
    pub(super) async fn new(
        pre: &InstancePre<State>,
        indices: &DriverIndices,
        state: State,
        limits: Limits,
    ) -> Result<Self, CallError> {
        let mut store = Store::new(pre.engine(), state);
        let meter = store.data_mut().cpu.begin();
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
            Ok((bindings, migration))
        };
        let result = tokio::time::timeout(limits.call, meter.run(instantiate)).await;
        let (bindings, migration) = outcome(result, "instantiation", &store, &limits)?;
        Ok(Instance { store, bindings, migration, limits })
    }

    /// Calls `start`.
    pub async fn start(&mut self, context: Context) -> Result<Result<(), String>, CallError> {
        self.call("start", async |bindings, store| {
            bindings.sandgate_driver_device_driver().call_start(store, &context).await
        })
        .await
        .map(shorten)
    }

    /// Calls `on-timer`.
    pub async fn on_timer(&mut self, id: TimerId) -> Result<Result<(), String>, CallError> {
        self.call("on-timer", async |bindings, store| {
            bindings.sandgate_driver_device_driver().call_on_timer(store, id).await
        })
        .await
        .map(shorten)
    }

    /// Calls `handle-command`; the session gets its progress.
    pub async fn handle_command(
        &mut self,
        command: Command,
        session: Option<Arc<str>>,
    ) -> Result<Result<Vec<Attribute>, CommandError>, CallError> {
        self.store.data_mut().command = Some((command.id.clone(), session));
        let result = self
            .call("handle-command", async |bindings, store| {
                bindings.sandgate_driver_device_driver().call_handle_command(store, &command).await
            })
            .await;
        self.store.data_mut().command = None;
        result
    }

    /// Calls `configure`.
    pub async fn configure(&mut self, configuration: &str) -> Result<Result<(), String>, CallError> {
        self.call("configure", async |bindings, store| {
            bindings.sandgate_driver_device_driver().call_configure(store, configuration).await
        })
        .await
        .map(shorten)
    }

    /// Calls `stop`.
    pub async fn stop(&mut self) -> Result<(), CallError> {
        self.call("stop", async |bindings, store| bindings.sandgate_driver_device_driver().call_stop(store).await).await
    }

    /// Calls `snapshot`; none when the driver has no `migration` or packed too much.
    pub async fn snapshot(&mut self) -> Result<Option<Vec<u8>>, CallError> {
        let Some(snapshot) = self.migration.as_ref().map(|migration| migration.snapshot) else { return Ok(None) };
        let (state,) = self.call("snapshot", async |_, store| snapshot.call_async(store, ()).await).await?;
        if state.len() > MAX_SNAPSHOT {
            let reason = format!("expected a snapshot of at most {MAX_SNAPSHOT} bytes, found {}", state.len());
            return Err(CallError::Trap { call: "snapshot", reason });
        }
        Ok(Some(state).filter(|state| !state.is_empty()))
    }

    /// Calls `restore`, if the driver has it.
    pub async fn restore(&mut self, state: Vec<u8>) -> Result<Result<(), String>, CallError> {
        let Some(restore) = self.migration.as_ref().map(|migration| migration.restore) else { return Ok(Ok(())) };
        let (result,) = self.call("restore", async |_, store| restore.call_async(store, (state,)).await).await?;
        Ok(shorten(result))
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
    async fn call<R>(
        &mut self,
        name: &'static str,
        call: impl AsyncFnOnce(&Bindings, &mut Store<State>) -> wasmtime::Result<R>,
    ) -> Result<R, CallError> {
        let meter = self.store.data_mut().cpu.begin();
        self.store.set_epoch_deadline(1);
        let call = meter.run(call(&self.bindings, &mut self.store));
        let result = tokio::time::timeout(self.limits.call, call).await;
        let value = outcome(result, name, &self.store, &self.limits)?;
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
        let interface = component.get_export_index(None, MIGRATION)?;
        let snapshot = component.get_export_index(Some(&interface), "snapshot")?;
        let restore = component.get_export_index(Some(&interface), "restore")?;
        Some(Migration {
            snapshot: instance.get_typed_func(&mut *store, snapshot).ok()?,
            restore: instance.get_typed_func(&mut *store, restore).ok()?,
        })
    }
}

/// Cuts a guest's error to a sensible length.
fn shorten(result: Result<(), String>) -> Result<(), String> {
    result.map_err(|text| text.chars().take(MAX_TEXT).collect())
}

/// Sorts what can happen to a call.
fn outcome<R>(
    result: Result<wasmtime::Result<R>, tokio::time::error::Elapsed>,
    call: &'static str,
    store: &Store<State>,
    limits: &Limits,
) -> Result<R, CallError> {
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
    Err(CallError::Trap { call, reason: describe(&error) })
}

/// The reason of a trap and the innermost functions, in one line.
fn describe(error: &wasmtime::Error) -> String {
    const FRAMES: usize = 3;
    let reason = error.root_cause().to_string();
    let trace = error.downcast_ref::<wasmtime::WasmBacktrace>().map(ToString::to_string).unwrap_or_default();
    // Lines look like "    0:   0x1a2b - module!function".
    let frames: Vec<&str> =
        trace.lines().filter_map(|line| Some(line.split_once(" - ")?.1.trim())).take(FRAMES).collect();
    if frames.is_empty() { reason } else { format!("{reason} at {}", frames.join(" < ")) }
}
