//! A device as others see it: what it can be asked, what it tells.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};

use super::swap::Prepared;
use super::{Firmware, Specification};
use crate::message::{CommandError, CommandRequest, CommandResult, size_of_request};
use crate::receipt::Receipt;
use crate::sandbox::{Digest, Driver, FirmwareStep};
use crate::tape::Tape;

/// Something that a device shall do.
pub enum Input {
    /// Carry out a command.
    Command(CommandRequest, Option<oneshot::Sender<CommandResult>>),
    /// Take a configuration that the manifest allows.
    Configure(String, oneshot::Sender<Result<(), String>>),
    /// Switch to a prepared driver.
    Swap(Box<Prepared>, String, oneshot::Sender<Receipt>),
    /// Update the device behind the driver, a step.
    Firmware(FirmwareStep, oneshot::Sender<Result<(), String>>),
    /// Ask what the device behind the driver runs.
    ReadFirmware(oneshot::Sender<()>),
    /// Give what the driver has done; none where that is not recorded.
    Tape(oneshot::Sender<Option<Tape>>),
    /// Keep all that the driver does for so long.
    Record(Recording, oneshot::Sender<Result<(), String>>),
    /// Go back to the paused driver; none when there is none.
    RollBack(String, oneshot::Sender<Option<Receipt>>),
    /// Crash, as if the driver had trapped: what a scenario wants to see.
    Crash(oneshot::Sender<()>),
    /// Start afresh, also after a crash loop; with a configuration that the
    /// manifest allows, or with the last one.
    Restart(Option<String>, oneshot::Sender<()>),
    /// End; commands that wait are refused.
    Stop(oneshot::Sender<()>),
    /// End, and give the commands that wait to the device's next life.
    HandOver(oneshot::Sender<Vec<Waiting>>),
}

/// What is to be recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recording {
    /// For how long, in ms.
    pub ms: u64,
    /// Whether the driver is swapped for itself first, so that the tape begins
    /// with a life and can be replayed.
    #[serde(default)]
    pub afresh: bool,
}

/// A command that waits, and who waits for its result at the gateway itself.
pub type Waiting = (CommandRequest, Option<oneshot::Sender<CommandResult>>);

/// Where a device is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Its driver is loaded, or waits for that.
    Loading,
    /// Its driver is compiled, or waits for the compiler.
    Compiling,
    /// Its driver runs.
    Running,
    /// Its driver crashed or refused to start; it is tried again.
    Restarting,
    /// It crashed too often; only a person or a new driver starts it again.
    Failed,
}

impl Phase {
    /// The word for it.
    pub fn name(&self) -> &'static str {
        match self {
            Phase::Loading => "loading",
            Phase::Compiling => "compiling",
            Phase::Running => "running",
            Phase::Restarting => "restarting",
            Phase::Failed => "failed",
        }
    }
}

/// What a device tells about itself.
#[derive(Clone)]
pub struct DeviceStatus {
    /// Where it is in its life.
    pub phase: Phase,
    /// The driver it runs.
    pub driver: Arc<Driver>,
    /// Whether an older driver is still paused behind it.
    pub watching: bool,
    /// The last failure.
    pub problem: Option<String>,
    /// The configuration that it has taken, JSON.
    pub configuration: Arc<str>,
    /// The software that a cloud hears of.
    pub firmware: Firmware,
}

/// How others talk to a device.
#[derive(Clone)]
pub struct DeviceHandle {
    /// What does not change.
    pub spec: Arc<Specification>,
    /// The state of its life.
    pub status: watch::Receiver<DeviceStatus>,
    /// Boxed, because a channel keeps room for many at once.
    pub(super) inbox: mpsc::Sender<Box<Input>>,
    pub(super) backlog: Backlog,
}

/// Bytes of the commands that wait for a device.
#[derive(Debug, Clone, Default)]
pub(super) struct Backlog(Arc<AtomicUsize>);

impl Backlog {
    /// More is answered with "busy", unless it is the only one.
    const MOST: usize = 1 << 20;

    fn has_room(&self, request: &CommandRequest) -> bool {
        let size = size_of_request(request);
        let before = self.0.fetch_add(size, Ordering::Relaxed);
        let has_room = before == 0 || before + size <= Self::MOST;
        if !has_room {
            self.0.fetch_sub(size, Ordering::Relaxed);
        }
        has_room
    }

    pub(super) fn taken(&self, input: &Input) {
        if let Input::Command(request, _) = input {
            self.0.fetch_sub(size_of_request(request), Ordering::Relaxed);
        }
    }
}

impl DeviceHandle {
    /// The driver that it runs, or ran last.
    pub fn digest(&self) -> Digest {
        self.status.borrow().driver.digest
    }

    /// Whether its task has not ended.
    pub fn is_alive(&self) -> bool {
        !self.inbox.is_closed()
    }

    /// Hands a command to the device. When it has no room, says so.
    pub fn command(
        &self,
        request: CommandRequest,
        reply: Option<oneshot::Sender<CommandResult>>,
    ) -> Result<(), CommandError> {
        let busy = || CommandError::Busy("too many commands wait for this device".into());
        if !self.backlog.has_room(&request) {
            return Err(busy());
        }
        self.inbox.try_send(Box::new(Input::Command(request, reply))).map_err(|error| match error {
            TrySendError::Full(input) => {
                self.backlog.taken(&input);
                busy()
            }
            TrySendError::Closed(_) => CommandError::Failed("the device is stopped".into()),
        })
    }

    /// Hands a question to the device and waits for its answer; none when the
    /// device has stopped.
    pub async fn ask<T>(&self, input: impl FnOnce(oneshot::Sender<T>) -> Input) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.inbox.send(Box::new(input(reply))).await.ok()?;
        answer.await.ok()
    }
}
