//! Replacing the driver of a running device, and watching the new one.
//!
//! Everything that can be slow happens in `prepare`, beside the running
//! driver. The switch itself is snapshot, restore and start.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Configuration, Device, Firmware, Life, Specification};
use crate::message::now;
use crate::receipt::{DriverName, Gated, Outcome, Receipt};
use crate::sandbox::contract::exports::sandgate::driver::device_driver::{Context, StartReason};
use crate::sandbox::{CallError, Driver, Instance, Limits};
use crate::shortage::is_shortage;

/// How long a new driver may take to take over, beside the limits of each call.
const DEADLINE: Duration = Duration::from_secs(10);
/// Fewer calls than this say nothing about an error rate.
const ENOUGH_CALLS: u32 = 10;
/// A driver that is called rarely is watched for longer, up to this many windows.
const MOST_WINDOWS: u32 = 10;
/// How much worse than the old one a new driver may be.
const WORSE_BY: f64 = 0.2;

/// A driver that is compiled, linked, instantiated and checked for a device.
pub struct Prepared {
    /// The driver.
    pub driver: Arc<Driver>,
    pub(super) instance: Instance,
    pub(super) configuration: String,
    /// How it did on the device's tape, if it was tried there.
    pub gate: Option<Gated>,
}

impl Prepared {
    /// Gives it what another one has left, before it starts.
    pub async fn restore(&mut self, state: Vec<u8>) -> Result<(), String> {
        self.instance.restore(state).await.map_err(|error| error.to_string())?
    }

    /// Starts the instance without a device task around it, to measure calls.
    pub async fn into_started(mut self, device: &str) -> Result<Instance, String> {
        let context = Context {
            device_id: device.to_owned(),
            configuration: self.configuration,
            reason: StartReason::FirstStart,
        };
        self.instance.start(context).await.map_err(|error| error.to_string())??;
        Ok(self.instance)
    }
}

/// The driver before a swap, paused, while the new one proves itself.
pub(super) struct Watch {
    old: Life,
    /// How the calls of the old driver ended.
    old_calls: Outcomes,
    /// How long at least, and at most.
    until: Instant,
    latest: Instant,
    asked_by: String,
}

/// How the last timer calls of a driver ended, up to 128.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Outcomes {
    /// A bit for each, set for an error, the last one lowest.
    errors: u128,
    calls: u32,
}

impl Outcomes {
    pub(super) fn note(&mut self, is_error: bool) {
        self.errors = self.errors << 1 | u128::from(is_error);
        self.calls = (self.calls + 1).min(u128::BITS);
    }

    fn rate(self) -> f64 {
        if self.calls == 0 { 0.0 } else { f64::from(self.errors.count_ones()) / f64::from(self.calls) }
    }
}

/// Why a device cannot be made ready.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// What the driver or the operator has to change.
    #[error("{0}")]
    Wrong(String),
    /// What the machine has not enough of; it may go later.
    #[error("{0}")]
    Short(String),
}

impl From<anyhow::Error> for NotReady {
    fn from(error: anyhow::Error) -> Self {
        let text = format!("{error:#}");
        if is_shortage(error.chain()) { NotReady::Short(text) } else { NotReady::Wrong(text) }
    }
}

impl From<CallError> for NotReady {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Shortage(text) => NotReady::Short(text),
            error => NotReady::Wrong(error.to_string()),
        }
    }
}

/// Makes an instance of a driver for a device. Touches nothing that runs.
pub async fn prepare(spec: &Specification, driver: Arc<Driver>, given: &Configuration) -> Result<Prepared, NotReady> {
    let wrong = |problem| NotReady::Wrong(format!("configuration.{problem}"));
    let (configuration, _) = given.check(&driver.manifest).map_err(wrong)?;
    let limits = Limits::resolve(&spec.limits, &driver.manifest.driver.limits);
    let mut instance = driver.instantiate(&spec.capabilities, spec.log(&driver), limits).await?;
    instance.will_be_configured(&configuration);
    Ok(Prepared { driver, instance, configuration, gate: None })
}

impl Device {
    /// Switches to a prepared driver; when it fails, the old one goes on.
    pub(super) async fn swap(&mut self, prepared: Prepared, asked_by: &str) -> Receipt {
        let begin = Instant::now();
        let mut receipt = Receipt {
            time: now(),
            device: self.spec.id.to_string(),
            asked_by: asked_by.to_owned(),
            old: DriverName::of(&self.driver),
            new: Some(DriverName::of(&prepared.driver)),
            outcome: Outcome::Accepted,
            compile_ms: u64::try_from(prepared.driver.compile_time.as_millis()).unwrap_or(u64::MAX),
            pause_us: 0,
            held: 0,
            dropped: 0,
            migrated: false,
            gate: None,
        };
        let Prepared { driver, mut instance, configuration, gate } = prepared;
        let state = self.snapshot().await;
        (receipt.migrated, receipt.gate) = (state.is_some(), gate);
        let context = self.context(StartReason::Swap, &configuration);
        let old = self.life.instance.as_mut();
        if let Some(old) = &old {
            instance.keep_beat_of(old);
        }
        let take_over = async {
            if let Some(state) = state {
                match instance.restore(state).await {
                    Ok(Ok(())) => {}
                    Ok(Err(reason)) => return Err(format!("restore: {reason}")),
                    Err(error) => return Err(error.to_string()),
                }
            }
            // Many devices take one connection only.
            if let Some(old) = old {
                old.pause();
            }
            match instance.start(context).await {
                Ok(Ok(())) => {
                    instance.end_beat();
                    Ok(())
                }
                Ok(Err(reason)) => Err(format!("start: {reason}")),
                Err(error) => Err(error.to_string()),
            }
        };
        let result = tokio::time::timeout(DEADLINE, take_over)
            .await
            .unwrap_or_else(|_| Err(format!("it did not take over within {} s", DEADLINE.as_secs())));
        receipt.pause_us = microseconds(begin.elapsed());
        receipt.held = self.held(begin);
        match result {
            Err(reason) => {
                self.keep_tape(&driver, &mut instance, &reason);
                receipt.outcome = Outcome::Rejected(reason);
            }
            Ok(()) => self.install(driver, instance, configuration, asked_by),
        }
        self.report(&receipt);
        // It may have died when it was asked for its state.
        self.go_back_if_dead();
        receipt
    }

    /// Makes the new driver the running one and keeps the old one, paused.
    fn install(&mut self, driver: Arc<Driver>, instance: Instance, configuration: String, asked_by: &str) {
        let log = self.spec.log(&driver);
        let new =
            Life { instance: Some(instance), since: Some(Instant::now()), configuration: configuration.into(), log };
        let mut old = std::mem::replace(&mut self.life, new);
        let mut old_calls = std::mem::take(&mut self.outcomes);
        let old_driver = std::mem::replace(&mut self.driver, driver);
        match self.watch.take() {
            // One that has not proved itself is nothing to go back to.
            Some(watch) => (old, old_calls) = (watch.old, watch.old_calls),
            // One that was swapped for itself has nothing new to go back to.
            None if old_driver.digest == self.driver.digest => {}
            None => self.previous = Some(old_driver),
        }
        self.backoff.reset();
        self.restart_at = None;
        self.failed = false;
        self.problem = None;
        let (now, window) = (Instant::now(), self.spec.health_window);
        self.watch = old.instance.is_some().then(|| {
            let (until, latest) = (now + window, now + window * MOST_WINDOWS);
            Box::new(Watch { old, old_calls, until, latest, asked_by: asked_by.to_owned() })
        });
    }

    /// What the old driver wants to hand over. One that traps here is dead,
    /// and the new one starts fresh.
    async fn snapshot(&mut self) -> Option<Vec<u8>> {
        let instance = self.life.instance.as_mut()?;
        match instance.snapshot().await {
            Ok(state) => state,
            Err(error) => {
                self.crash(&error.to_string());
                None
            }
        }
    }

    /// Goes back to the driver before the last swap, if it is still paused.
    pub(super) fn roll_back(&mut self, asked_by: &str, reason: &str) -> Option<Receipt> {
        let begin = Instant::now();
        let watch = self.watch.take()?;
        let old_driver = self.previous.take()?;
        let bad = std::mem::replace(&mut self.driver, old_driver);
        (self.life, self.outcomes) = (watch.old, watch.old_calls);
        self.backoff.reset();
        self.restart_at = None;
        self.failed = false;
        self.problem = None;
        // The old driver may update its device, and is asked for the version in its turn.
        self.firmware = Firmware::of(&self.driver);
        self.ask_firmware_at = self.driver.updates_device().then_some(begin);
        let (bad_name, name) = (DriverName::of(&bad), DriverName::of(&self.driver));
        let receipt = Receipt {
            pause_us: microseconds(begin.elapsed()),
            held: self.held(begin),
            ..Receipt::roll_back(self.spec.id.as_str(), asked_by, bad_name, name, reason)
        };
        self.previous = Some(bad);
        self.report(&receipt);
        Some(receipt)
    }

    /// Goes back to the driver before the last swap, if the new one is watched and dead.
    pub(super) fn go_back_if_dead(&mut self) {
        if self.watch.is_some() && self.life.instance.is_none() {
            let problem = self.problem.clone().unwrap_or_default();
            self.roll_back("health check", &problem);
        }
    }

    /// When the watch over a new driver may end.
    pub(super) fn watch_ends(&self) -> Option<Instant> {
        let watch = self.watch.as_ref()?;
        Some(if watch.until > Instant::now() { watch.until } else { watch.latest })
    }

    /// Judges a new driver by its error rate: after each call, once there were
    /// enough, and at the end of the watch by what calls there were. It ends with
    /// the health window, or later for a driver that has hardly been called by then.
    pub(super) fn judge(&mut self) {
        let Some(watch) = &self.watch else { return };
        let (now, new, old) = (Instant::now(), self.outcomes, watch.old_calls);
        let is_enough = new.calls >= ENOUGH_CALLS;
        let has_timers = self.life.instance.as_ref().is_some_and(|instance| instance.next_due().is_some());
        let is_over = now >= watch.latest || now >= watch.until && (is_enough || !has_timers);
        if (is_enough || is_over) && new.rate() > old.rate() + WORSE_BY {
            let (new, old) = (new.rate() * 100.0, old.rate() * 100.0);
            let reason = format!("{new:.0} % of its timer calls failed, against {old:.0} % before");
            let asked_by = format!("health check of the swap by {}", watch.asked_by);
            self.roll_back(&asked_by, &reason);
        } else if is_over {
            self.watch = None;
            self.publish();
        }
    }

    /// Commands and timers that came due since `begin`.
    fn held(&self, begin: Instant) -> u64 {
        let timer = self
            .life
            .instance
            .as_ref()
            .and_then(Instance::next_due)
            .is_some_and(|due| due <= Instant::now() && due >= begin);
        u64::try_from(self.inbox.len()).unwrap_or_default() + u64::from(timer)
    }

    /// Logs a receipt, also in the cloud, and keeps it.
    pub(super) fn report(&self, receipt: &Receipt) {
        use crate::message::Severity;
        let severity = if receipt.outcome == Outcome::Accepted { Severity::Info } else { Severity::Warning };
        self.life.log.note(severity, &receipt.to_string());
        self.receipts.keep(receipt);
        self.publish();
    }
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
