//! Swapping the driver of a running device: everything up to the moment when
//! the device itself switches over.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::sync::{mpsc, oneshot};

use super::control::ControlError;
use super::gatekeeper::Gatekeeper;
use super::{Report, Supervisor};
use crate::config::{self, GateMode};
use crate::device::{self, DeviceHandle, Input, Prepared};
use crate::message::{DeviceId, Severity, now};
use crate::receipt::{DriverName, Gated, Outcome, Receipt, Receipts};
use crate::registry::{Origin, Progress, Registry};
use crate::sandbox::{Digest, Driver};
use crate::text;

impl Supervisor {
    /// Swaps a device's driver in a task of its own.
    pub(super) fn swap(&mut self, id: &str, order: SwapOrder, reply: Option<SwapReply>) {
        let Some(entry) = self.devices.get(id) else { return };
        let Some(handle) = entry.handle.clone() else { return };
        let swap = Swap {
            id: id.to_owned(),
            order,
            handle,
            settings: entry.config.clone(),
            given: self.configuration(id, &entry.config),
            configured: self.config.driver_path(&entry.config),
            configured_before: self.memory.configured_digest(id),
            cut_short: self.memory.cut_short(id),
            registry: Arc::clone(&self.registry),
            receipts: self.receipts.clone(),
            report: self.report.clone(),
            gate: self.gate_of(id, &entry.config),
            gatekeeper: self.gatekeeper.clone(),
        };
        let report = self.report.clone();
        tokio::spawn(async move {
            let device = swap.id.clone();
            let Some((result, seen)) = swap.run().await else { return };
            if let Some(digest) = seen {
                // The supervisor may be gone at the end of the program.
                let _ = report.send(Report::ConfiguredDigest { device, digest: digest.to_string() }).await;
            }
            if let Some(reply) = reply {
                // So may be whoever asked.
                let _ = reply.send(result);
            }
        });
    }
}

/// How far a swap is, for a gateway that dies before the new driver is accepted.
pub(super) enum Trial {
    /// The driver is about to take over, as soon as that is noted.
    Begins(DriverName, oneshot::Sender<()>),
    /// It has taken over and is watched.
    Runs,
    /// The one of this digest has not taken over.
    Ends(String),
}

impl Supervisor {
    /// Writes down all trials that are about to begin, together. Gives what says
    /// that they are on the disk.
    pub(super) fn write_trials(&mut self) -> oneshot::Receiver<Vec<oneshot::Sender<()>>> {
        let (written, is_written) = oneshot::channel();
        let ready = std::mem::take(&mut self.trials);
        self.memory.save();
        // After it, so that they are on the disk then. The supervisor may be gone.
        self.scribe.write(move || drop(written.send(ready)));
        is_written
    }

    /// Notes how far a swap is.
    pub(super) fn note_trial(&mut self, device: &str, step: Trial) {
        match step {
            Trial::Begins(driver, ready) => {
                self.memory.set_trial(device, Some(driver));
                self.trials.push(ready);
            }
            Trial::Runs => {
                if let Some(entry) = self.devices.get_mut(device) {
                    entry.tried = self.memory.trial(device).cloned();
                }
                self.statuses_changed([DeviceId::new(device)].into());
            }
            Trial::Ends(digest) => {
                // One that has taken over before may still be on trial.
                let tried = self.devices.get(device).and_then(|entry| entry.tried.clone());
                let is_its = self.memory.trial(device).is_some_and(|trial| trial.digest == digest);
                if is_its {
                    self.memory.set_trial(device, tried);
                }
            }
        }
    }
}

/// Who hears how a swap ended.
pub(super) type SwapReply = oneshot::Sender<Result<Receipt, ControlError>>;

/// What is to be swapped in, and for whom.
pub(super) struct SwapOrder {
    pub origin: Origin,
    pub asked_by: Asker,
    pub gating: Gating,
}

/// Whether a driver is tried on the device's tape before it takes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gating {
    /// As it is configured.
    Usual,
    /// So, and a difference is accepted.
    Accepts,
    /// Not: it has run here before.
    Skips,
}

impl Supervisor {
    /// How a new version for a device is tried.
    fn gate_of(&self, id: &str, device: &config::Device) -> (GateMode, f64) {
        let handle = self.devices.get(id).and_then(|entry| entry.handle.as_ref());
        let driver = handle.map(|handle| handle.status.borrow().driver.manifest.driver.name.clone());
        // As it is configured now: a change of it starts no device.
        let device = self.config.devices.get(id).map_or(device, |device| &**device);
        self.config.gate.of(device, &driver.unwrap_or_default())
    }
}

/// Fewer calls say nothing about a driver.
const ENOUGH_CALLS: u64 = 4;

/// Who wants a swap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Asker {
    /// The driver's file has changed. A driver that was chosen by hand beside
    /// this very file stays, and so does one that runs already.
    File,
    /// Somebody at the gateway.
    Person(String),
    /// A command of a cloud.
    Cloud,
    /// Software that a cloud offers: this version of the running driver.
    Software { version: String, session: String },
}

impl Asker {
    /// Whether the names of files mean something to it.
    fn is_here(&self) -> bool {
        matches!(self, Asker::File | Asker::Person(_))
    }
}

impl fmt::Display for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Asker::File => f.write_str("file change"),
            Asker::Person(who) => f.write_str(who),
            Asker::Cloud => f.write_str("cloud"),
            Asker::Software { version, session } => write!(f, "software {version} of {session}"),
        }
    }
}

/// A swap on its way, in a task of its own.
struct Swap {
    id: String,
    order: SwapOrder,
    handle: DeviceHandle,
    settings: Arc<config::Device>,
    given: device::Configuration,
    /// The device's configured file.
    configured: PathBuf,
    /// Its digest when the running driver was chosen.
    configured_before: Option<String>,
    /// The digest of a driver whose trial ended with the gateway.
    cut_short: Option<String>,
    registry: Arc<Registry>,
    receipts: Receipts,
    report: mpsc::Sender<Report>,
    gate: (GateMode, f64),
    gatekeeper: Option<Gatekeeper>,
}

impl Swap {
    /// Carries it out. Gives what became of it, and the digest of the configured
    /// file that counts as seen from now on; none when nothing is to be done.
    async fn run(self) -> Option<(Result<Receipt, ControlError>, Option<Digest>)> {
        let file = self.registry.digest(&self.configured).await.ok();
        let is_old = |digest: Digest| self.running() == digest || self.configured_before == Some(digest.to_string());
        if self.order.asked_by == Asker::File && file.is_some_and(is_old) {
            return None;
        }
        let result = match self.load().await {
            Err(error) => Err(ControlError::Refused(self.refuse(None, &format!("{error:#}")))),
            Ok(driver) => {
                let refuse = |problem: &str| ControlError::Refused(self.refuse(Some(DriverName::of(&driver)), problem));
                match self.try_on_tape(&driver).await {
                    Err(problem) => {
                        // It counts as chosen against, and does not take over at the next start.
                        return Some((Err(refuse(&problem)), file.filter(|file| *file == driver.digest)));
                    }
                    Ok(gate) => match self.prepare(&driver).await {
                        Err(problem) => Err(refuse(&problem)),
                        Ok(_) if self.order.asked_by == Asker::File && !self.is_wanted(&driver).await => return None,
                        Ok(mut prepared) => {
                            prepared.gate = gate;
                            self.switch(prepared).await
                        }
                    },
                }
            }
        };
        // What was refused before the device was asked may run when its reason is gone, so it does
        // not count as chosen against; what the device has tried does.
        let is_tried = result.is_ok();
        Some((result, file.filter(|_| is_tried)))
    }

    /// Runs both versions on what the device has done lately. An error says why
    /// the new one is refused.
    async fn try_on_tape(&self, driver: &Driver) -> Result<Option<Gated>, String> {
        let (mode, tolerance) = self.gate;
        let running = self.running();
        let Some(gatekeeper) = &self.gatekeeper else { return Ok(None) };
        if mode == GateMode::Off || self.order.gating == Gating::Skips || running == driver.digest {
            return Ok(None);
        }
        let is_strict = mode == GateMode::Refuse && self.order.gating == Gating::Usual;
        let tape = self.handle.ask(Input::Tape).await.flatten();
        let Some(tape) = tape else { return Ok(None) };
        // It may be large.
        let pack = move || (tape.extent().0 >= ENOUGH_CALLS).then(|| tape.to_bytes());
        let Ok(Some(tape)) = tokio::task::spawn_blocking(pack).await else { return Ok(None) };
        let grounds = self.handle.spec.grounds(self.given.clone());
        let compared = gatekeeper.compare((running, driver.digest), is_strict, &tape, &grounds).await;
        let gated = match compared {
            None => return Ok(None),
            Some(Ok(comparison)) if is_strict && !comparison.is_same(tolerance) => {
                return Err(format!(
                    "it does something else on what the device has done lately: {comparison}; \
                     `sandgate swap --accept-diff` takes it all the same"
                ));
            }
            Some(Ok(comparison)) => Gated::Compared(Box::new(comparison)),
            Some(Err(problem)) if is_strict && problem.is_of_new => {
                return Err(format!("on what the device has done lately: {}", problem.text));
            }
            Some(Err(problem)) => Gated::Failed(problem.text),
        };
        match self.running() == running {
            true => Ok(Some(gated)),
            // Somebody has decided otherwise meanwhile.
            false => Err("another driver has taken over while it was tried".into()),
        }
    }

    /// Lets the device switch over, once it is noted that the driver is on trial.
    async fn switch(&self, prepared: Prepared) -> Result<Receipt, ControlError> {
        let (begin, noted) = oneshot::channel();
        let name = DriverName::of(&prepared.driver);
        let digest = name.digest.clone();
        self.tell(Trial::Begins(name, begin)).await;
        // A disk that does not answer keeps no device from a new driver; nor does a gateway that stops.
        let _ = tokio::time::timeout(PATIENCE, noted).await;
        let asked_by = self.order.asked_by.to_string();
        let result = self.handle.ask(|reply| Input::Swap(Box::new(prepared), asked_by, reply)).await;
        let is_accepted = result.as_ref().is_some_and(|receipt| receipt.outcome == Outcome::Accepted);
        self.tell(if is_accepted { Trial::Runs } else { Trial::Ends(digest) }).await;
        result.ok_or(ControlError::DeviceStopped)
    }

    async fn tell(&self, step: Trial) {
        // The supervisor may be gone at the end of the program.
        let _ = self.report.send(Report::Trial { device: self.id.clone(), step }).await;
    }

    fn running(&self) -> Digest {
        self.handle.status.borrow().driver.digest
    }

    async fn load(&self) -> anyhow::Result<Arc<Driver>> {
        let driver = self.registry.load(&self.order.origin, &Progress::default()).await;
        let driver = match self.order.asked_by.is_here() {
            true => driver.with_context(|| format!("loading driver {}", self.order.origin))?,
            false => driver?,
        };
        if let Asker::Software { version, .. } = &self.order.asked_by {
            is_version(&driver, version, &self.handle)?;
            // Its cloud would offer it again and again.
            let is_cut_short = self.cut_short.as_deref() == Some(driver.digest.to_string().as_str());
            ensure!(
                !is_cut_short,
                "the gateway ended while this driver was on trial; expected a swap by hand, or another one"
            );
        }
        Ok(driver)
    }

    async fn prepare(&self, driver: &Arc<Driver>) -> Result<Prepared, String> {
        self.settings.check(&driver.manifest)?;
        let prepared = device::prepare(&self.handle.spec, Arc::clone(driver), &self.given).await;
        prepared.map_err(|error| error.to_string())
    }

    /// Whether a driver that took a while to compile is still the one in the
    /// file, and not running already through another change.
    async fn is_wanted(&self, driver: &Driver) -> bool {
        let file = self.registry.digest(&self.configured).await;
        self.running() != driver.digest && file.is_ok_and(|now| now == driver.digest)
    }

    /// Keeps the receipt of a swap that failed before it touched the device,
    /// and gives its text.
    fn refuse(&self, new: Option<DriverName>, reason: &str) -> String {
        let running = Arc::clone(&self.handle.status.borrow().driver);
        let receipt = Receipt {
            time: now(),
            device: self.id.clone(),
            asked_by: self.order.asked_by.to_string(),
            old: DriverName::of(&running),
            new,
            outcome: Outcome::Rejected(text::shortened(reason, MAX_REASON).into_owned()),
            compile_ms: 0,
            pause_us: 0,
            held: 0,
            dropped: 0,
            migrated: false,
            gate: None,
        };
        let text = receipt.to_string();
        self.handle.spec.note(&running, Severity::Warning, &text);
        self.receipts.keep(&receipt);
        text
    }
}

/// How long a swap waits until it is noted.
const PATIENCE: Duration = Duration::from_secs(2);
/// Reasons are kept with their receipts.
const MAX_REASON: usize = 2000;

/// Whether a driver is another version of the running one, and this version.
fn is_version(driver: &Driver, version: &str, handle: &DeviceHandle) -> anyhow::Result<()> {
    let (new, running) = (&driver.manifest.driver, &handle.status.borrow().driver.manifest.driver.name.clone());
    anyhow::ensure!(new.name == *running, "expected the driver {running}, found {}", new.name);
    anyhow::ensure!(new.version == version, "expected version {version}, found {}", new.version);
    Ok(())
}
