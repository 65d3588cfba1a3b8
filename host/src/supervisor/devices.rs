//! The configured devices, whether their drivers run or not.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use tokio::time::Instant;

use crate::config;
use crate::device::{DeviceHandle, Firmware, Waiting};
use crate::receipt::DriverName;
use crate::registry::{Progress, Stage};
use crate::sandbox::Digest;
use crate::statistics::Statistics;

/// One configured device.
pub(super) struct DeviceEntry {
    pub config: Arc<config::Device>,
    pub statistics: Arc<Statistics>,
    pub handle: Option<DeviceHandle>,
    /// Why there is no handle.
    pub problem: Option<String>,
    /// The device's own software when the sessions were told last.
    pub firmware: Option<Firmware>,
    /// A configuration that this driver did not take.
    pub refused: Option<(Digest, String)>,
    pub work: Work,
    /// The number of the last start, for the tasks that start it.
    pub latest: Arc<AtomicU64>,
    pub kind: Kind,
    /// The driver that has taken over and is on trial.
    pub tried: Option<DriverName>,
    /// Commands that came between two lives of the device.
    pub held: Vec<Waiting>,
}

impl DeviceEntry {
    /// A device of which nothing is known but its configuration.
    pub(super) fn new(config: &Arc<config::Device>) -> DeviceEntry {
        DeviceEntry {
            config: Arc::clone(config),
            statistics: Arc::default(),
            handle: None,
            problem: None,
            firmware: None,
            refused: None,
            work: Work::None,
            latest: Arc::default(),
            kind: Kind::Read(None),
            tried: None,
            held: Vec::new(),
        }
    }

    /// The driver's task, unless the device is being started afresh.
    pub(super) fn settled(&self) -> Option<&DeviceHandle> {
        self.handle.as_ref().filter(|_| !self.work.is_start())
    }
}

/// What the supervisor is doing with a device.
pub(super) enum Work {
    /// Nothing: it runs, or cannot.
    None,
    /// It starts, for the first time or afresh.
    Starting(Starting),
    /// It is no longer configured, and on its way out.
    Ending(u64),
}

/// A start of a device.
pub(super) struct Starting {
    /// Reports of older ones are ignored.
    pub number: u64,
    /// Whether it takes grants away, so that the running driver must not stay.
    pub is_revoked: bool,
    /// How often the machine was short of something.
    pub tries: u32,
    pub step: Step,
}

/// How far a start is.
pub(super) enum Step {
    /// It waits for its turn.
    Queued,
    /// A task makes it ready.
    UnderWay(Arc<Progress>),
    /// The machine is short of something.
    Short { again_at: Instant },
}

impl Work {
    /// Whether the device is being started.
    pub(super) fn is_start(&self) -> bool {
        matches!(self, Work::Starting(_))
    }

    /// Whether a report with this number is about it.
    pub(super) fn is(&self, number: u64) -> bool {
        match self {
            Work::None => false,
            Work::Starting(starting) => starting.number == number,
            Work::Ending(own) => *own == number,
        }
    }

    /// How far a start is; none when there is none.
    pub(super) fn stage(&self) -> Option<Stage> {
        match self {
            Work::Starting(Starting { step: Step::UnderWay(progress), .. }) => Some(progress.stage()),
            Work::Starting(_) => Some(Stage::Loading),
            Work::None | Work::Ending(_) => None,
        }
    }
}

/// The type of child that a driver makes of its device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// It is still to be read from the driver's file.
    Unread,
    /// What the file declares; none when it cannot be read.
    Read(Option<String>),
}

impl Kind {
    /// The type, as far as it is known.
    pub(super) fn get(&self) -> Option<&String> {
        match self {
            Kind::Unread => None,
            Kind::Read(kind) => kind.as_ref(),
        }
    }
}
