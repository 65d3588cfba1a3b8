//! One device: the task that owns a driver's instance.
//!
//! Everything that happens to a device goes through its inbox, one thing at a
//! time: timers, commands, configuration, swaps. A crash is answered here and
//! never leaves the device. The supervisor starts and stops these tasks.

mod backoff;
mod command;
mod configuration;
mod firmware;
mod handle;
mod news;
mod specification;
mod swap;
mod tape;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

pub use configuration::Configuration;
pub use firmware::Firmware;
pub use handle::{DeviceHandle, DeviceStatus, Input, Phase, Recording, Waiting};
pub use news::News;
pub use specification::Specification;
pub use swap::{NotReady, Prepared, prepare};

use crate::journal::Journal;
use crate::message::{Alerts, CommandError, Severity, Uplink, now};
use crate::receipt::Receipts;
use crate::sandbox::contract::exports::sandgate::driver::device_driver::{Context, StartReason};
use crate::sandbox::{CallError, DeviceLog, Driver, Instance, Limits};
use backoff::{Backoff, Verdict};
use handle::Backlog;
use swap::{Outcomes, Watch};

/// Commands that may wait for a device; more are answered with "busy".
const INBOX: usize = 256;

/// The life of one instance; the instance is gone after a crash.
struct Life {
    instance: Option<Instance>,
    /// Since when it runs; none until `start` has succeeded.
    since: Option<Instant>,
    configuration: Arc<str>,
    log: Arc<DeviceLog>,
}

/// See the module documentation.
struct Device {
    spec: Arc<Specification>,
    driver: Arc<Driver>,
    life: Life,
    /// The driver before the last swap.
    previous: Option<Arc<Driver>>,
    /// Rare, and large.
    watch: Option<Box<Watch>>,
    /// How the calls of this driver ended.
    outcomes: Outcomes,
    backoff: Backoff,
    restart_at: Option<Instant>,
    failed: bool,
    problem: Option<String>,
    firmware: Firmware,
    /// When to ask for its version again.
    ask_firmware_at: Option<Instant>,
    inbox: mpsc::Receiver<Box<Input>>,
    backlog: Backlog,
    /// The last error of a timer call, and when it was logged.
    complaint: Option<(String, Instant)>,
    journal: Arc<Journal>,
    receipts: Receipts,
    status: watch::Sender<DeviceStatus>,
}

impl DeviceHandle {
    /// Starts a device with a prepared driver.
    pub fn start(spec: Arc<Specification>, first: Prepared, journal: Arc<Journal>, receipts: Receipts) -> DeviceHandle {
        let (inbox, inputs) = mpsc::channel(INBOX);
        let backlog = Backlog::default();
        let configuration: Arc<str> = first.configuration.into();
        let firmware = Firmware::of(&first.driver);
        let first_status = DeviceStatus {
            phase: Phase::Running,
            driver: Arc::clone(&first.driver),
            watching: false,
            problem: None,
            configuration: Arc::clone(&configuration),
            firmware: firmware.clone(),
        };
        let (publisher, status) = watch::channel(first_status);
        let (obituary, news, id) = (publisher.clone(), spec.news.clone(), spec.id.clone());
        let life = Life { instance: Some(first.instance), since: None, configuration, log: spec.log(&first.driver) };
        let device = Device {
            spec: Arc::clone(&spec),
            driver: first.driver,
            life,
            previous: None,
            watch: None,
            outcomes: Outcomes::default(),
            backoff: Backoff::default(),
            restart_at: None,
            failed: false,
            problem: None,
            firmware,
            ask_firmware_at: None,
            inbox: inputs,
            backlog: backlog.clone(),
            complaint: None,
            journal,
            receipts,
            status: publisher,
        };
        // Spawned here, so that the one who waits for it does not hold a device's room as well.
        let task = tokio::spawn(device.run());
        tokio::spawn(async move {
            // A bug in this program must not end a device in silence.
            if let Err(error) = task.await {
                tracing::error!("a device task ended: {error}");
                obituary.send_modify(|status| {
                    status.phase = Phase::Failed;
                    status.problem = Some("a bug in the gateway ended it; restart the gateway".into());
                });
                news.tell(&id);
            }
        });
        DeviceHandle { spec, status, inbox, backlog }
    }
}

impl Device {
    async fn run(mut self) {
        Box::pin(self.start(StartReason::FirstStart)).await;
        let mut prefers_inbox = false;
        loop {
            let wake = self.next_wake();
            let sleep = async move {
                match wake {
                    Some(time) => tokio::time::sleep_until(time).await,
                    None => std::future::pending().await,
                }
            };
            // Each comes first in turn, so that none starves and what happens does not depend on chance.
            prefers_inbox = !prefers_inbox;
            let input = match prefers_inbox {
                true => tokio::select! { biased; input = self.inbox.recv() => Some(input), () = sleep => None },
                false => tokio::select! { biased; () = sleep => None, input = self.inbox.recv() => Some(input) },
            };
            let Some(input) = input.map(|input| input.map(|input| *input)) else {
                self.wake().await;
                continue;
            };
            match input {
                None => return Box::pin(self.stop()).await,
                Some(Input::Stop(reply)) => {
                    self.refuse_waiting();
                    Box::pin(self.stop()).await;
                    // Whoever asked may be gone; the device ends all the same.
                    let _ = reply.send(());
                    return;
                }
                Some(Input::HandOver(reply)) => {
                    let waiting = self.close();
                    Box::pin(self.stop()).await;
                    // The same.
                    let _ = reply.send(waiting);
                    return;
                }
                Some(input) => {
                    self.backlog.taken(&input);
                    // What is rare has its state on the heap, so that an idle device is small.
                    Box::pin(self.handle(input)).await;
                }
            }
        }
    }

    /// The next time at which something is to do without an input.
    fn next_wake(&self) -> Option<Instant> {
        let timer = self.life.instance.as_ref().and_then(Instance::next_due);
        [timer, self.restart_at, self.watch_ends(), self.ask_firmware_at].into_iter().flatten().min()
    }

    async fn wake(&mut self) {
        let now = Instant::now();
        if self.restart_at.is_some_and(|time| time <= now) {
            self.restart_at = None;
            return Box::pin(self.restart()).await;
        }
        if self.ask_firmware_at.is_some_and(|time| time <= now) {
            Box::pin(self.read_firmware()).await;
        }
        let due = self.life.instance.as_mut().and_then(|instance| instance.take_due(now));
        if let (Some(timer), Some(instance)) = (due, self.life.instance.as_mut()) {
            self.spec.capabilities.statistics.calls.count();
            let result = instance.on_timer(timer).await;
            self.outcomes.note(!matches!(result, Ok(Ok(()))));
            match result {
                Ok(Ok(())) => {}
                Ok(Err(reason)) => {
                    self.spec.capabilities.statistics.errors.count();
                    self.complain(reason);
                }
                Err(error) => Box::pin(self.crashed(&error)).await,
            }
        }
        self.judge();
    }

    /// Logs an error of a timer call when it is another one, or once a minute.
    fn complain(&mut self, reason: String) {
        let again = Duration::from_secs(60);
        if self.complaint.as_ref().is_some_and(|(last, time)| *last == reason && time.elapsed() < again) {
            return;
        }
        self.life.log.write(Severity::Warning, &format!("on-timer: {reason}"));
        self.complaint = Some((reason, Instant::now()));
    }

    async fn handle(&mut self, input: Input) {
        // A reply that nobody waits for any more is no error.
        match input {
            Input::Command(request, reply) => {
                let result = self.command(request).await;
                if let Some(reply) = reply {
                    let _ = reply.send(result);
                }
                self.judge();
            }
            Input::Configure(configuration, reply) => {
                let result = self.configure(configuration).await;
                let _ = reply.send(result);
            }
            Input::Swap(prepared, asked_by, reply) => {
                let receipt = self.swap(*prepared, &asked_by).await;
                self.read_firmware().await;
                let _ = reply.send(receipt);
            }
            Input::Firmware(step, reply) => {
                let result = self.update_firmware(step).await;
                let _ = reply.send(result);
            }
            Input::ReadFirmware(reply) => {
                self.read_firmware().await;
                let _ = reply.send(());
            }
            Input::Tape(reply) => {
                let _ = reply.send(self.tape(None));
            }
            Input::Record(recording, reply) => {
                let begun = self.record(recording).await;
                let _ = reply.send(begun);
            }
            Input::RollBack(asked_by, reply) => {
                let receipt = self.roll_back(&asked_by, "asked for");
                self.read_firmware().await;
                let _ = reply.send(receipt);
            }
            Input::Restart(configuration, reply) => {
                if let Some(configuration) = configuration {
                    self.life.configuration = configuration.into();
                }
                self.backoff.reset();
                self.failed = false;
                self.stop().await;
                Box::pin(self.restart()).await;
                self.go_back_if_dead();
                let _ = reply.send(());
            }
            Input::Crash(reply) => {
                let reason = "as the scenario wants".to_owned();
                self.crashed(&CallError::Trap { call: "a call", reason }).await;
                let _ = reply.send(());
            }
            Input::Stop(_) | Input::HandOver(_) => {}
        }
    }

    async fn configure(&mut self, configuration: String) -> Result<(), String> {
        if let Some(instance) = self.life.instance.as_mut() {
            match instance.configure(&configuration).await {
                Ok(Ok(())) => {}
                Ok(Err(reason)) => {
                    return Err(format!("the driver rejected it: {reason}"));
                }
                Err(error) => {
                    let text = format!("the driver {error}");
                    self.crashed(&error).await;
                    return Err(text);
                }
            }
        }
        self.life.configuration = configuration.into();
        self.life.log.write(Severity::Info, "configuration applied");
        self.publish();
        Ok(())
    }

    async fn start(&mut self, reason: StartReason) {
        let context = self.context(reason, &self.life.configuration);
        let Some(instance) = self.life.instance.as_mut() else { return };
        match instance.start(context).await {
            Ok(Ok(())) => {
                self.life.since = Some(Instant::now());
                self.backoff.started();
                self.failed = false;
                self.problem = None;
                self.life.log.write(Severity::Info, "started");
                self.publish();
                return Box::pin(self.read_firmware()).await;
            }
            Ok(Err(reason)) => {
                self.spec.capabilities.statistics.errors.count();
                self.postpone(&format!("start: {reason}"));
            }
            Err(error) => self.crash(&error.to_string()),
        }
        self.publish();
    }

    /// Tries to start later: the device is away, or the machine is short of something.
    fn postpone(&mut self, problem: &str) {
        let delay = self.backoff.refused(fastrand::f64());
        self.life.instance = None;
        self.restart_at = Some(Instant::now() + delay);
        let text = format!("{problem}; trying again in {:.1} s", delay.as_secs_f64());
        self.life.log.note(Severity::Warning, &text);
        self.problem = Some(problem.to_owned());
        self.publish();
    }

    /// Makes a new instance of the same driver and starts it.
    async fn restart(&mut self) {
        self.restart_at = None;
        let limits = Limits::resolve(&self.spec.limits, &self.driver.manifest.driver.limits);
        match self.driver.instantiate(&self.spec.capabilities, self.spec.log(&self.driver), limits).await {
            Ok(mut instance) => {
                instance.will_be_configured(&self.life.configuration);
                self.life.instance = Some(instance);
                // The start may crash in its turn, at once.
                Box::pin(self.start(StartReason::Restart)).await;
            }
            // No fault of the driver's.
            Err(CallError::Shortage(problem)) => self.postpone(&problem),
            Err(error) => self.crash(&error.to_string()),
        }
    }

    /// Answers a crash: back to the old driver of a swap, else a restart.
    async fn crashed(&mut self, error: &CallError) {
        if self.watch.is_some() {
            self.spec.capabilities.statistics.crashes.count();
            let text = error.to_string();
            self.post_mortem(&text);
            self.life.log.note(Severity::Error, &text);
            self.roll_back("health check", &text);
            return;
        }
        self.crash(&error.to_string());
        // The first crash is answered at once, without a round through the loop.
        if self.restart_at.is_some_and(|time| time <= Instant::now()) {
            self.restart_at = None;
            self.restart().await;
        }
    }

    /// Drops the dead instance and decides when to try again.
    fn crash(&mut self, text: &str) {
        self.spec.capabilities.statistics.crashes.count();
        self.post_mortem(text);
        self.life.instance = None;
        self.problem = Some(text.to_owned());
        // A crash in `start` comes after no healthy time at all.
        let healthy = self.life.since.take().map_or(Duration::ZERO, |since| since.elapsed());
        let next = match self.backoff.crashed(healthy, fastrand::f64()) {
            Verdict::RestartIn(delay) => {
                self.restart_at = Some(Instant::now() + delay);
                format!("starting again in {:.1} s", delay.as_secs_f64())
            }
            Verdict::GiveUp => {
                self.failed = true;
                "it crashed too often and stays stopped; restart it by hand or swap its driver".to_owned()
            }
        };
        self.life.log.note(Severity::Error, &format!("the driver {text}; {next}"));
        // Whatever it said about alerts is no longer known.
        if !self.driver.manifest.blueprint.alerts.is_empty() {
            let time = now();
            let uplink =
                Uplink::Telemetry { time, is_own: true, attributes: &[], alerts: &Alerts::Unknown, tells_alerts: true };
            self.spec.capabilities.outlet.send(&uplink);
            self.spec.capabilities.statistics.alerts(None);
        }
        self.publish();
    }

    /// Takes no more, and gives the commands that wait.
    fn close(&mut self) -> Vec<Waiting> {
        self.inbox.close();
        let waiting = std::iter::from_fn(|| self.inbox.try_recv().ok());
        let commands = waiting.filter_map(|input| match *input {
            Input::Command(request, reply) => Some((request, reply)),
            _ => None,
        });
        commands.collect()
    }

    /// Answers what waits behind a stop: a command is never left without one.
    fn refuse_waiting(&mut self) {
        for (request, reply) in self.close() {
            let result = Err(CommandError::Busy("the device is being stopped".into()));
            self.answer(&request, result.clone());
            if let Some(reply) = reply {
                let _ = reply.send(result);
            }
        }
    }

    async fn stop(&mut self) {
        if let Some(instance) = self.life.instance.as_mut()
            && let Err(error) = instance.stop().await
        {
            self.life.log.note(Severity::Warning, &format!("the driver {error}"));
        }
        self.life.instance = None;
    }

    fn context(&self, reason: StartReason, configuration: &str) -> Context {
        Context { device_id: self.spec.id.to_string(), configuration: configuration.to_owned(), reason }
    }

    /// Tells the state of the device to whoever watches.
    fn publish(&self) {
        let phase = match (&self.life.instance, self.failed) {
            (Some(_), _) => Phase::Running,
            (None, false) => Phase::Restarting,
            (None, true) => Phase::Failed,
        };
        self.status.send_replace(DeviceStatus {
            phase,
            driver: Arc::clone(&self.driver),
            watching: self.watch.is_some(),
            problem: self.problem.clone(),
            configuration: Arc::clone(&self.life.configuration),
            firmware: self.firmware.clone(),
        });
        self.spec.news.tell(&self.spec.id);
    }
}
