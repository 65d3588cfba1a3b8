//! How others ask the supervisor: questions and orders with their replies.

use std::path::PathBuf;

use tokio::sync::{mpsc, oneshot};

use crate::device::Recording;
use crate::message::CommandResult;
use crate::receipt::{Receipt, Receipts};
use crate::status::Status;
use crate::tape::Tape;

/// Asks the supervisor; cloned freely.
#[derive(Clone)]
pub struct Control {
    pub(super) requests: mpsc::Sender<Request>,
    pub(super) receipts: Receipts,
}

/// Why the supervisor does not do what it is asked for. The texts are for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// There is no such device; the text says which there are.
    #[error("{0}")]
    UnknownDevice(String),
    /// The device has no driver that runs.
    #[error("device {device} does not run: {problem}")]
    NotRunning {
        /// The device.
        device: String,
        /// Why.
        problem: String,
    },
    /// The device is about to begin afresh.
    #[error("device {0} is being started with new settings; try again when it runs")]
    Starting(String),
    /// What its driver does is not recorded.
    #[error("{0}")]
    NoTape(String),
    /// The device was stopped before it had answered.
    #[error("the device was stopped")]
    DeviceStopped,
    /// No driver ran before the present one, or none is known.
    #[error("there is no driver to go back to")]
    NoDriverBefore,
    /// No such version of the driver is kept; the text says which are.
    #[error("{0}")]
    UnknownVersion(String),
    /// The driver was refused, with the receipt's text.
    #[error("{0}")]
    Refused(String),
    /// Nothing is done any more.
    #[error("the gateway is stopping")]
    GatewayStops,
}

/// A question or an order.
pub(super) enum Request {
    Ping(oneshot::Sender<()>),
    Status(oneshot::Sender<Status>),
    Swap {
        device: String,
        file: Option<PathBuf>,
        asked_by: String,
        /// Whether it may do something else than the old one on the device's tape.
        accepts_difference: bool,
        reply: oneshot::Sender<Result<Receipt, ControlError>>,
    },
    RollBack {
        device: String,
        /// A version, or the beginning of a digest; none for the driver before.
        to: Option<String>,
        asked_by: String,
        reply: oneshot::Sender<Result<Receipt, ControlError>>,
    },
    Restart {
        device: String,
        reply: oneshot::Sender<Result<(), ControlError>>,
    },
    Command {
        device: String,
        name: String,
        arguments: Arguments,
        reply: oneshot::Sender<Result<CommandResult, ControlError>>,
    },
    Tape {
        device: String,
        reply: oneshot::Sender<Result<Tape, ControlError>>,
    },
    Record {
        device: String,
        recording: Recording,
        reply: oneshot::Sender<Result<(), ControlError>>,
    },
    Stop(oneshot::Sender<()>),
}

/// Arguments of a command.
pub type Arguments = serde_json::Map<String, serde_json::Value>;

impl Control {
    /// Waits until the supervisor has looked at its requests; false when it is gone.
    pub async fn ping(&self) -> bool {
        self.ask(Request::Ping).await.is_some()
    }

    /// The state of everything.
    pub async fn status(&self) -> Option<Status> {
        self.ask(Request::Status).await
    }

    /// Swaps a device's driver: from a file, or from its configured one. One that does
    /// something else on the device's tape than the old one may be refused, unless
    /// that is accepted.
    pub async fn swap(
        &self,
        device: &str,
        file: Option<PathBuf>,
        asked_by: &str,
        accepts_difference: bool,
    ) -> Result<Receipt, ControlError> {
        let (device, asked_by) = (device.to_owned(), asked_by.to_owned());
        self.ask(|reply| Request::Swap { device, file, asked_by, accepts_difference, reply })
            .await
            .unwrap_or_else(stopping)
    }

    /// Goes back to a kept version of a device's driver, named by its version or
    /// the beginning of its digest, or to the driver before the last swap.
    pub async fn roll_back(&self, device: &str, to: Option<String>, asked_by: &str) -> Result<Receipt, ControlError> {
        let (device, asked_by) = (device.to_owned(), asked_by.to_owned());
        self.ask(|reply| Request::RollBack { device, to, asked_by, reply }).await.unwrap_or_else(stopping)
    }

    /// Starts a device afresh.
    pub async fn restart(&self, device: &str) -> Result<(), ControlError> {
        let device = device.to_owned();
        self.ask(|reply| Request::Restart { device, reply }).await.unwrap_or_else(stopping)
    }

    /// Runs a command on a device, as the cloud would.
    pub async fn command(&self, device: &str, name: &str, arguments: Arguments) -> Result<CommandResult, ControlError> {
        let (device, name) = (device.to_owned(), name.to_owned());
        self.ask(|reply| Request::Command { device, name, arguments, reply }).await.unwrap_or_else(stopping)
    }

    /// What a device's driver has done.
    pub async fn tape(&self, device: &str) -> Result<Tape, ControlError> {
        let device = device.to_owned();
        self.ask(|reply| Request::Tape { device, reply }).await.unwrap_or_else(stopping)
    }

    /// Keeps all that a device's driver does for a time.
    pub async fn record(&self, device: &str, recording: Recording) -> Result<(), ControlError> {
        let device = device.to_owned();
        self.ask(|reply| Request::Record { device, recording, reply }).await.unwrap_or_else(stopping)
    }

    /// Keeps a receipt of several swaps.
    pub(crate) fn keep(&self, receipt: &Receipt) {
        self.receipts.keep(receipt);
    }

    /// The newest receipts, oldest first.
    pub fn receipts(&self) -> Vec<Receipt> {
        self.receipts.all()
    }

    /// Stops all devices and then the supervisor.
    pub async fn stop(&self) {
        self.ask(Request::Stop).await;
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.ok()?;
        answer.await.ok()
    }
}

fn stopping<T>() -> Result<T, ControlError> {
    Err(ControlError::GatewayStops)
}
