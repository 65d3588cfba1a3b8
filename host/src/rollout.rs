//! A new driver for all devices of one, in steps: a first few, then more, each
//! step watched before the next. Where one goes wrong, all go back.
//!
//! It lasts as long as the gateway does: one that ends on the way leaves the
//! devices as they are, some with the new driver.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::time::{Duration, Instant};

use crate::device::Phase;
use crate::message::now;
use crate::receipt::{Outcome, Receipt};
use crate::status::DeviceReport;
use crate::supervisor::{Control, ControlError};
use crate::text;
use crate::units::Span;

/// How often the devices are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// The name of the driver that the devices run.
    pub driver: String,
    /// The new component; none for each device's configured file.
    pub file: Option<PathBuf>,
    /// How many devices have it after each step, in order.
    pub steps: Vec<Step>,
    /// How long all of them must do well before the next step.
    pub watch: Span,
}

/// Devices that have the new driver: a number, or a share of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Step {
    /// So many.
    Devices(usize),
    /// So many of a hundred, at least one.
    Percent(usize),
}

/// How far it is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The driver's name.
    pub driver: String,
    /// The devices that run it.
    pub devices: usize,
    /// Those that have been swapped.
    pub swapped: usize,
    /// The step that it is at, from 1, and how many there are.
    pub step: usize,
    /// How many steps there are.
    pub steps: usize,
    /// What is done now.
    pub phase: RolloutPhase,
    /// Why it went back.
    pub reason: Option<String>,
}

/// What is done now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutPhase {
    /// Devices are swapped.
    #[default]
    Swapping,
    /// It is looked whether they do well.
    Watching,
    /// They go back.
    GoingBack,
    /// All steps are done.
    Done,
    /// It went wrong, and those that were swapped have gone back.
    Failed,
}

/// The rollouts of a gateway, one at a time. Clones share them.
#[derive(Clone, Default)]
pub struct Rollouts(Arc<Mutex<Option<Progress>>>);

/// Why none is begun.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotBegun {
    /// No device runs such a driver; the text says which there are.
    #[error("{0}")]
    UnknownDriver(String),
    /// One is under way.
    #[error("a rollout of {0} is under way")]
    UnderWay(String),
    /// The gateway stops.
    #[error("the gateway is stopping")]
    GatewayStops,
}

impl FromStr for Step {
    type Err = String;

    fn from_str(text: &str) -> Result<Step, String> {
        let wrong = || format!("expected a number of devices such as 5, or a share such as 10%, found {text:?}");
        let (number, step): (&str, fn(usize) -> Step) = match text.trim().strip_suffix('%') {
            Some(share) => (share, Step::Percent),
            None => (text.trim(), Step::Devices),
        };
        match number.parse::<usize>().map(step) {
            Ok(Step::Devices(0) | Step::Percent(0 | 101..)) | Err(_) => Err(wrong()),
            Ok(step) => Ok(step),
        }
    }
}

impl TryFrom<String> for Step {
    type Error = String;

    fn try_from(text: String) -> Result<Step, String> {
        text.parse()
    }
}

impl Step {
    /// The devices of so many.
    fn of(self, all: usize) -> usize {
        match self {
            Step::Devices(number) => number.min(all),
            Step::Percent(share) => (all * share).div_ceil(100),
        }
    }
}

impl Progress {
    /// Whether nothing is done any more.
    pub fn is_over(&self) -> bool {
        matches!(self.phase, RolloutPhase::Done | RolloutPhase::Failed)
    }
}

impl Rollouts {
    /// How far the last one is.
    pub fn progress(&self) -> Option<Progress> {
        self.lock().clone()
    }

    /// Begins one, in a task of its own.
    pub async fn begin(&self, control: &Control, order: Order, asked_by: &str) -> Result<Progress, NotBegun> {
        let status = control.status().await.ok_or(NotBegun::GatewayStops)?;
        let (own, others): (Vec<_>, Vec<_>) =
            status.devices.into_iter().partition(|device| device.driver == order.driver);
        if own.is_empty() {
            let names = others.into_iter().map(|device| device.driver).filter(|name| !name.is_empty());
            let names: BTreeSet<String> = names.collect();
            let text =
                format!("no device runs a driver {:?}; {}", order.driver, text::instead(&order.driver, names.iter()));
            return Err(NotBegun::UnknownDriver(text));
        }
        let progress = Progress {
            driver: order.driver.clone(),
            devices: own.len(),
            step: 1,
            steps: order.steps.len(),
            ..Progress::default()
        };
        {
            let mut current = self.lock();
            if let Some(other) = current.as_ref().filter(|progress| !progress.is_over()) {
                return Err(NotBegun::UnderWay(other.driver.clone()));
            }
            *current = Some(progress.clone());
        }
        let rollout = Rollout {
            control: control.clone(),
            rollouts: self.clone(),
            devices: own.into_iter().map(|device| device.id).collect(),
            swapped: Vec::new(),
            asked_by: format!("{asked_by} (rollout)"),
            order,
        };
        tokio::spawn(rollout.run());
        Ok(progress)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Progress>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One on its way.
struct Rollout {
    control: Control,
    rollouts: Rollouts,
    order: Order,
    devices: Vec<String>,
    swapped: Vec<Swapped>,
    asked_by: String,
}

/// A device that has the new driver.
struct Swapped {
    device: String,
    receipt: Receipt,
    /// Its crashes until then.
    crashes: u64,
}

impl Rollout {
    async fn run(mut self) {
        let result = self.go_on().await;
        // A gateway that stops leaves all as it is.
        if self.control.status().await.is_none() {
            return;
        }
        let Some(first) = self.swapped.first() else {
            // Nothing has changed; the device's own receipt says why.
            return self.tell(|progress| (progress.phase, progress.reason) = (RolloutPhase::Failed, result.err()));
        };
        let mut receipt = Receipt {
            time: now(),
            device: format!("({})", text::count(self.swapped.len(), "device")),
            asked_by: self.asked_by.clone(),
            pause_us: self.swapped.iter().map(|swapped| swapped.receipt.pause_us).max().unwrap_or_default(),
            held: self.swapped.iter().map(|swapped| swapped.receipt.held).sum(),
            ..first.receipt.clone()
        };
        match result {
            Ok(()) => self.tell(|progress| progress.phase = RolloutPhase::Done),
            Err(reason) => {
                self.tell(|progress| {
                    (progress.phase, progress.reason) = (RolloutPhase::GoingBack, Some(reason.clone()))
                });
                let stays = self.go_back().await;
                let reason = if stays.is_empty() { reason } else { format!("{reason}; {}", stays.join("; ")) };
                if let Some(new) = receipt.new.take() {
                    receipt.new = Some(std::mem::replace(&mut receipt.old, new));
                }
                receipt.outcome = Outcome::RolledBack(reason.clone());
                self.tell(|progress| (progress.phase, progress.reason) = (RolloutPhase::Failed, Some(reason)));
            }
        }
        self.control.keep(&receipt);
    }

    /// All steps. An error is the reason to go back.
    async fn go_on(&mut self) -> Result<(), String> {
        for (place, step) in self.order.steps.clone().into_iter().enumerate() {
            self.tell(|progress| (progress.step, progress.phase) = (place + 1, RolloutPhase::Swapping));
            let target = step.of(self.devices.len());
            while self.swapped.len() < target {
                self.swap_next().await?;
                let swapped = self.swapped.len();
                self.tell(|progress| progress.swapped = swapped);
            }
            self.tell(|progress| progress.phase = RolloutPhase::Watching);
            let end = Instant::now() + self.order.watch.0;
            loop {
                self.check().await?;
                if Instant::now() >= end {
                    break;
                }
                tokio::time::sleep_until(end.min(Instant::now() + LOOK)).await;
            }
        }
        Ok(())
    }

    async fn swap_next(&mut self) -> Result<(), String> {
        let Some(device) = self.devices.get(self.swapped.len()).cloned() else { return Ok(()) };
        let before = self.report(&device).await?;
        if before.driver != self.order.driver {
            return Err(format!("{device}: it runs another driver by now, {}", before.driver));
        }
        let receipt = self.control.swap(&device, self.order.file.clone(), &self.asked_by, false).await;
        let receipt = receipt.map_err(|error| format!("{device}: {error}"))?;
        match &receipt.outcome {
            Outcome::Accepted => {}
            Outcome::Rejected(reason) | Outcome::RolledBack(reason) => return Err(format!("{device}: {reason}")),
        }
        // The old driver may have crashed when it was asked for its state.
        let crashes = self.report(&device).await?.crashes;
        let (new, first) = (receipt.new.clone(), self.swapped.first().and_then(|first| first.receipt.new.clone()));
        let is_other = new.as_ref().is_some_and(|new| new.name != self.order.driver);
        let has_changed = self.order.file.is_some() && first.is_some() && first != new;
        let problem = match (is_other, has_changed) {
            (true, _) => Some("the file holds another driver"),
            (_, true) => Some("the file has changed since the first device was swapped"),
            _ => None,
        };
        let wrong = problem.map(|problem| format!("{device}: {problem}"));
        self.swapped.push(Swapped { device, receipt, crashes });
        wrong.map_or(Ok(()), Err)
    }

    /// Whether all that were swapped do well.
    async fn check(&self) -> Result<(), String> {
        let status = self.control.status().await.ok_or_else(|| ControlError::GatewayStops.to_string())?;
        for Swapped { device, receipt, crashes } in &self.swapped {
            let wrong = |what: &str| Err(format!("{device}: {what}"));
            let Some(report) = status.devices.iter().find(|report| report.id == *device) else {
                return wrong("it is no longer configured");
            };
            let is_new = receipt.new.as_ref().is_some_and(|new| is_digest_of(&report.digest, &new.digest));
            match report.problem.as_deref() {
                _ if !is_new => return wrong("it has gone back to another driver; `sandgate swaps` says why"),
                problem if report.crashes > *crashes => return wrong(problem.unwrap_or("the driver has crashed")),
                problem if report.phase != Phase::Running => return wrong(problem.unwrap_or(report.phase.name())),
                _ => {}
            }
        }
        Ok(())
    }

    /// Lets all go back, the last one first. Gives what did not work.
    async fn go_back(&mut self) -> Vec<String> {
        let mut stays = Vec::new();
        for Swapped { device, receipt, .. } in self.swapped.iter().rev() {
            let report = match self.report(device).await {
                Ok(report) => report,
                // It is gone.
                Err(_) => continue,
            };
            if is_digest_of(&report.digest, &receipt.old.digest) {
                continue;
            }
            // By its digest: what waits beside a watched driver is the last accepted one, which may be another.
            let back = self.control.roll_back(device, Some(receipt.old.digest.clone()), &self.asked_by).await;
            if let Err(error) = back {
                stays.push(format!("{device} could not go back: {error}"));
            }
        }
        stays
    }

    async fn report(&self, device: &str) -> Result<DeviceReport, String> {
        let status = self.control.status().await.ok_or_else(|| ControlError::GatewayStops.to_string())?;
        let report = status.devices.into_iter().find(|report| report.id == device);
        report.ok_or_else(|| format!("{device}: it is no longer configured"))
    }

    fn tell(&self, change: impl FnOnce(&mut Progress)) {
        if let Some(progress) = self.rollouts.lock().as_mut() {
            change(progress);
        }
    }
}

/// Whether the first digits of a digest, of which there are none without a driver, are those of another.
fn is_digest_of(short: &str, whole: &str) -> bool {
    !short.is_empty() && whole.starts_with(short)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_a_number_or_a_share_and_at_least_one_device() {
        let steps = ["1", "10%", "100%", "500"].map(|text| text.parse::<Step>().unwrap());
        assert_eq!(steps.map(|step| step.of(7)), [1, 1, 7, 7]);
        assert_eq!(steps.map(|step| step.of(200)), [1, 20, 200, 200]);
        for wrong in ["", "0", "0%", "101%", "-1", "a"] {
            assert!(wrong.parse::<Step>().unwrap_err().starts_with("expected a number of devices"), "{wrong}");
        }
    }
}
