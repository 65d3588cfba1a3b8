//! Brings what runs in line with what the configuration and the files say.
//!
//! Owns the table of devices, the buses and the sessions' pictures. Slow work
//! (loading, compiling, swapping) runs in tasks of its own that report back, so
//! the supervisor always answers.

mod change;
mod command;
mod configurations;
mod control;
mod devices;
mod gatekeeper;
mod held;
mod memory;
mod notices;
mod offers;
mod own;
mod pace;
mod picture;
mod session;
mod software;
mod start;
mod starts;
mod swap;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at};

use crate::bus::{Simulation, TcpLines};
use crate::clock::Moment;
use crate::config::{self, Config};
use crate::device::{News, Prepared, Specification, Waiting};
use crate::gateway;
use crate::journal::{Journal, Leftover};
use crate::lines::Lines;
use crate::message::{Alerts, CommandRequest, DeviceId, SessionName};
use crate::network::Lookups;
use crate::outbox::OwnBounds;
use crate::receipt::Receipts;
use crate::registry::Registry;
use crate::router::Outlet;
use crate::sandbox::{Capabilities, Compiler, Digest, Sandbox, Surroundings};
use crate::scribe::Scribe;
use crate::secrets::Secrets;
use crate::session::Order;
use crate::sockets::Sockets;
use crate::statistics::Statistics;
use crate::storage::Storage;
use crate::tape::{POST_MORTEMS, Room, Tapes};
use crate::watcher::Watcher;
use control::Request;
pub use control::{Arguments, Control, ControlError};
use devices::DeviceEntry;
use gatekeeper::Gatekeeper;
use memory::Memory;
use notices::Notices;
use offers::Offers;
use pace::Pace;
use session::{SessionEntry, keep_for_the_next_start};
use software::Installations;
use starts::Starts;

/// How long a stop waits for the drivers.
const GOODBYE: Duration = Duration::from_secs(10);
/// Orders of clouds that may wait; a connect of many devices brings many.
const ORDERS: usize = 4096;
/// How long a stop waits for the last messages to be delivered.
const FLUSH: Duration = Duration::from_secs(3);

/// What a task of the supervisor's reports back.
enum Report {
    /// A device's first or fresh instance is ready, or cannot be made.
    Prepared {
        device: String,
        number: u64,
        /// The digest of the configured file, if this is what runs.
        configured: Option<String>,
        result: Result<Box<Prepared>, String>,
        held: Vec<Waiting>,
    },
    /// A start waits for what the machine has not enough of.
    Short { device: String, number: u64, problem: String },
    /// The child types of devices, as their drivers' files declare them; none of those that cannot be read.
    Kinds(Vec<(String, Option<String>)>),
    /// A device that is no longer configured has ended.
    Ended { device: String, number: u64 },
    /// While it was made ready the device was swapped to another driver.
    Overtaken { device: String, number: u64, held: Vec<Waiting> },
    /// A driver did not take a configuration.
    ConfigurationRefused { device: String, driver: Digest, configuration: String },
    /// The digest of a device's configured file, as it is now.
    ConfiguredDigest { device: String, digest: String },
    /// What became of a configuration that a cloud offered.
    Configured(configurations::Outcome),
    /// A command for the gateway is noted as started.
    Begun(CommandRequest, OwnedSemaphorePermit),
    /// A driver to swap in is found.
    Order { device: String, order: swap::SwapOrder, reply: swap::SwapReply },
    /// How far a device's swap is.
    Trial { device: String, step: swap::Trial },
    /// Software that a cloud offered is here, or was installed.
    Software(software::Installation),
}

/// See the module documentation.
pub struct Supervisor {
    path: PathBuf,
    config: Config,
    registry: Arc<Registry>,
    storage: Storage,
    journal: Arc<Journal>,
    /// Commands that were not over when the gateway died.
    leftovers: Vec<Leftover>,
    receipts: Receipts,
    memory: Memory,
    starts: Starts,
    /// Devices whose child type is to be read from their drivers' files.
    unread_kinds: Vec<String>,
    /// Whether the gateway said last that all is well.
    was_well: bool,
    /// The gateway's own alerts, as the clouds know them.
    told_alerts: Option<Alerts>,
    /// When the sessions are told what has changed.
    pace: Pace,
    scribe: Scribe,
    secrets: Secrets,
    sockets: Sockets,
    lookups: Lookups,
    /// Modbus TCP by address.
    tcp_lines: TcpLines,
    /// Who may try a new version now.
    gatekeeper: Option<Gatekeeper>,
    /// Memory for tapes, and the folder for those of dead drivers.
    tapes: (Room, PathBuf),
    lines: Lines,
    sessions: BTreeMap<SessionName, SessionEntry>,
    devices: BTreeMap<String, DeviceEntry>,
    /// Devices whose status has changed.
    news: News,
    /// Those that were busy with something when it did: they are looked at again.
    busy: BTreeSet<DeviceId>,
    /// Whether copies of drivers may be no longer needed.
    has_spare_copies: bool,
    watcher: Watcher,
    requests: mpsc::Receiver<Request>,
    reports: mpsc::Receiver<Report>,
    report: mpsc::Sender<Report>,
    changes: mpsc::Receiver<BTreeSet<PathBuf>>,
    orders: mpsc::Receiver<Order>,
    /// What clouds offer and is not yet taken or refused.
    offers: Offers,
    /// Who waits until the trial of a driver is on the disk.
    trials: Vec<oneshot::Sender<()>>,
    /// Room for the gateway's own commands.
    commands: Arc<Semaphore>,
    installations: Installations,
    notices: Notices,
    manifest: crate::manifest::Manifest,
    started: Instant,
}

impl Supervisor {
    /// Opens everything that a gateway needs. Nothing runs yet. What of the
    /// state folder cannot be used is tried again when it is needed.
    pub fn open(
        path: &Path,
        config: Config,
        state: &Path,
        compiler: Compiler,
        secrets: Secrets,
    ) -> Result<(Supervisor, Control)> {
        secrets.set("(configuration)", config.secrets());
        let gatekeeper = match &compiler {
            Compiler::Child(program) => Some(Gatekeeper::new(program.clone(), state.to_owned())),
            Compiler::InProcess => None,
        };
        let sandbox = Sandbox::new(compiler, Some(&state.join("cache")))?;
        let registry = Arc::new(Registry::new(sandbox, Some(&state.join("drivers"))));
        crate::files::remove_parts(&software::folder(state));
        let scribe = Scribe::start().context("starting the thread that writes files")?;
        let deadline = config.gateway.command_deadline.0;
        let journal = Journal::open(&state.join("commands.jsonl"), deadline);
        let (journal, leftovers) = journal.context("starting the thread that notes commands")?;
        let journal = Arc::new(journal);
        let receipts = Receipts::open(&state.join("swaps.jsonl"), scribe.clone());
        let (change, changes) = mpsc::channel(16);
        let (request, requests) = mpsc::channel(64);
        let (report, reports) = mpsc::channel(64);
        let (order, orders) = mpsc::channel(ORDERS);
        let sessions = config.sessions.iter().map(|(name, session)| {
            let name = SessionName::new(name);
            let entry = start::session(&name, session, &config, state, &order, (&journal, &scribe));
            Ok((name.clone(), entry.with_context(|| format!("sessions.{name}"))?))
        });
        let sessions = sessions.collect::<Result<BTreeMap<_, _>>>()?;
        let supervisor = Supervisor {
            path: path.to_owned(),
            registry,
            storage: Storage::open(state),
            journal,
            leftovers,
            receipts: receipts.clone(),
            memory: Memory::open(state, scribe.clone()),
            scribe,
            secrets,
            sockets: Sockets::of_this_process(),
            lookups: Lookups::new(),
            tcp_lines: TcpLines::default(),
            gatekeeper,
            tapes: (Room::new(config.tapes.memory.bytes(), config.tapes.age.0), state.join(POST_MORTEMS)),
            starts: Starts::new(),
            unread_kinds: Vec::new(),
            was_well: true,
            told_alerts: None,
            pace: Pace::new(Instant::now()),
            lines: Lines::of(&config.buses),
            sessions,
            devices: BTreeMap::new(),
            news: News::default(),
            busy: BTreeSet::new(),
            has_spare_copies: false,
            watcher: Watcher::start(change)?,
            requests,
            reports,
            report,
            changes,
            orders,
            offers: Offers::default(),
            trials: Vec::new(),
            commands: Arc::new(Semaphore::new(command::COMMANDS)),
            installations: Installations::new(),
            notices: Notices::new(),
            manifest: gateway::manifest().map_err(anyhow::Error::msg)?,
            started: Instant::now(),
            config,
        };
        Ok((supervisor, Control { requests: request, receipts }))
    }

    /// Puts simulated devices in the place of the field; to be called before `run`.
    pub fn simulate(&mut self, simulation: Arc<dyn Simulation>) {
        self.lines.simulate(simulation, &self.config.buses);
    }

    /// Runs until asked to stop.
    pub async fn run(mut self) {
        for (id, device) in self.config.devices.clone() {
            self.start_device(&id, &device);
        }
        let leftovers = std::mem::take(&mut self.leftovers);
        self.resume_commands(leftovers);
        self.bound_outboxes();
        self.watch_files();
        self.publish_soon();
        // Before the devices were tried there is nothing to tell.
        let first = self.config.gateway.telemetry_every.0;
        let mut telemetry = interval_at(Instant::now() + first, first);
        let mut properties = interval(self.config.gateway.properties_every.0);
        for timer in [&mut telemetry, &mut properties] {
            timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        let mut look = interval(Duration::from_secs(1));
        let news = self.news.clone();
        let mut writing = None;
        loop {
            if writing.is_none() && !self.trials.is_empty() {
                writing = Some(self.write_trials());
            }
            if self.pace.due().is_some_and(|time| time <= Instant::now()) {
                self.publish();
            }
            if !self.unread_kinds.is_empty() {
                self.read_kinds();
            }
            tokio::select! {
                Some(request) = self.requests.recv() => {
                    if let Request::Stop(reply) = request {
                        self.stop().await;
                        // Whoever asked may be gone.
                        let _ = reply.send(());
                        return;
                    }
                    self.answer(request);
                }
                Some(report) = self.reports.recv() => self.note(report),
                devices = news.wait() => self.statuses_changed(devices),
                (device, turn) = self.starts.next() => self.begin_start(&device, turn),
                Some(changed) = self.changes.recv() => self.files_changed(&changed),
                Some(order) = self.orders.recv() => self.carry_out(order),
                _ = telemetry.tick() => self.send_telemetry(),
                _ = properties.tick() => self.publish_soon(),
                _ = look.tick() => self.every_second(),
                () = until(self.pace.due()) => {}
                ready = finished(&mut writing) => {
                    writing = None;
                    // A swap may have been given up.
                    ready.into_iter().for_each(|ready| ready.send(()).unwrap_or_default());
                }
            }
        }
    }

    /// Lets the sessions be told what has changed.
    fn publish_soon(&mut self) {
        self.pace.ask();
    }

    /// Removes copies of drivers that nobody needs any more.
    fn prune(&self) {
        let (registry, needed) = (Arc::clone(&self.registry), self.memory.needed());
        self.scribe.write(move || registry.prune(|digest| needed.contains(digest)));
    }

    fn watch_files(&mut self) {
        let mut files: Vec<PathBuf> =
            self.config.devices.values().map(|device| self.config.driver_path(device)).collect();
        files.push(self.path.clone());
        self.watcher.watch(files.iter().map(PathBuf::as_path));
    }

    /// Tells each outbox what single devices may have in it.
    fn bound_outboxes(&self) {
        let devices = self.config.devices.iter().map(|(id, device)| {
            let limits = &device.limits;
            let bytes = limits.outbox_size.map(config::Size::bytes);
            (DeviceId::new(id), OwnBounds { bytes, age: limits.outbox_age.map(|age| age.0) })
        });
        let own: HashMap<DeviceId, OwnBounds> = devices.filter(|(_, own)| *own != OwnBounds::default()).collect();
        self.sessions.values().for_each(|entry| entry.outbox.bound_devices(own.clone(), Moment::now()));
    }

    /// What does not change while a device runs.
    fn specification(&self, id: &str, device: &config::Device, statistics: &Arc<Statistics>) -> Specification {
        let device_id = DeviceId::new(id);
        let routes = self.config.sessions_of(device).into_iter().filter_map(|name| {
            let (name, entry) = self.sessions.get_key_value(name)?;
            let channel = entry.cloud.device(&device_id, device.endpoints.get(name.as_str()))?;
            Some(entry.route(name, channel))
        });
        let field = self.lines.simulation().cloned();
        Specification {
            capabilities: Capabilities {
                outlet: Arc::new(Outlet { device: device_id.clone(), routes: routes.collect() }),
                statistics: Arc::clone(statistics),
                storage: Some(self.storage.device(&device_id)),
                tcp: device.grants.tcp.clone().unwrap_or_default(),
                http: device.grants.http.clone().unwrap_or_default(),
                unverified_tls: device.grants.unverified_tls.clone(),
                lines: self.lines.granted(&device_id, &device.grants),
                sockets: self.sockets.clone(),
                lookups: self.lookups.clone(),
                tcp_lines: self.tcp_lines.clone(),
                tapes: Some(self.tapes(id, device)),
                surroundings: Surroundings { field, seed: None },
            },
            limits: device.limits.clone(),
            cloud_log: device.cloud_log,
            health_window: device.health_window.0,
            news: self.news.clone(),
            id: device_id,
        }
    }

    /// What a device needs for its tapes.
    fn tapes(&self, id: &str, device: &config::Device) -> Tapes {
        let (room, folder) = &self.tapes;
        Tapes::new(room.clone(), device.tape, Some(folder.join(id)))
    }

    /// Does what was left for later.
    fn every_second(&mut self) {
        if std::mem::take(&mut self.has_spare_copies) {
            self.prune();
        }
        // What kept them busy may be over.
        let busy = std::mem::take(&mut self.busy);
        self.statuses_changed(busy);
        // What could not be written is tried again.
        self.memory.save();
        self.try_again();
        if self.is_well() != self.was_well {
            self.send_telemetry();
        }
        for installation in self.installations.take_postponed() {
            self.go_on_installing(installation);
        }
        self.tell_notices();
    }

    /// Looks at devices whose status has changed: the driver that runs is kept for
    /// the next start, clouds want to know its version, and a configuration may
    /// have come while another driver was being prepared, or watched and rolled back.
    fn statuses_changed(&mut self, devices: BTreeSet<DeviceId>) {
        // Before a cloud hears of the old version, and offers the new one again.
        self.judge_trials();
        for device in devices {
            let id = device.as_str();
            let Some(entry) = self.devices.get_mut(id) else { continue };
            let Some(status) = entry.handle.as_ref().map(|handle| handle.status.borrow().clone()) else { continue };
            // A driver on trial is none to start with.
            let is_another = !status.watching && self.memory.running(id, &status.driver);
            if !status.watching
                && let Some(tried) = entry.tried.take()
                && self.memory.trial(id).is_some_and(|trial| trial.digest == tried.digest)
            {
                self.memory.set_trial(id, None);
            }
            if is_another || entry.firmware.as_ref() != Some(&status.firmware) {
                entry.firmware = Some(status.firmware);
                self.has_spare_copies |= is_another;
                self.publish_soon();
            }
            let entry = self.devices.get(id);
            let is_starting = entry.is_some_and(|entry| entry.work.is_start());
            if is_starting || self.offers.is_configuring(id) {
                self.busy.insert(device);
            } else {
                self.configure_if_changed(id);
            }
        }
    }

    /// Notes which driver each device runs, for the next start. One on trial has
    /// done well until now, and is not to go because the gateway is stopped.
    fn remember_running(&mut self) {
        for (id, entry) in &self.devices {
            if let Some(handle) = &entry.handle {
                self.memory.running(id, &handle.status.borrow().driver);
                self.memory.set_trial(id, None);
            }
        }
        self.memory.save();
    }

    async fn stop(&mut self) {
        self.remember_running();
        let stops = std::mem::take(&mut self.devices).into_values().filter_map(|entry| entry.handle);
        let stops = stops.map(|handle| async move { handle.ask(crate::device::Input::Stop).await });
        if tokio::time::timeout(GOODBYE, futures::future::join_all(stops)).await.is_err() {
            tracing::warn!("stopping though some drivers have not ended");
        }
        // The answers that are written down now are in the outbox then.
        if tokio::time::timeout(FLUSH, self.journal.flush()).await.is_err() {
            tracing::warn!("stopping though the disk is busy: the next start answers some commands");
        }
        // What the devices said last still goes out, if the uplink takes it.
        let delivered = async {
            while self
                .sessions
                .values()
                .any(|entry| entry.status.borrow().connected && entry.outbox.stats().waiting > 0)
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        // What is not is kept, and said below.
        let _ = tokio::time::timeout(FLUSH, delivered).await;
        // Without a picture to look at the sessions say goodbye and end.
        let entries = std::mem::take(&mut self.sessions);
        let outboxes: Vec<_> = entries.iter().map(|(name, entry)| (name.clone(), Arc::clone(&entry.outbox))).collect();
        let sessions: Vec<_> = entries.into_values().filter_map(|entry| entry.running).collect();
        if tokio::time::timeout(FLUSH, futures::future::join_all(sessions)).await.is_err() {
            tracing::warn!("stopping though some sessions have not ended");
        }
        let mut is_kept = true;
        for (session, outbox) in outboxes {
            is_kept &= keep_for_the_next_start(&session, outbox).await;
        }
        if is_kept {
            self.journal.all_sent();
            // Else the next start gives the last answers once more.
            let _ = tokio::time::timeout(FLUSH, self.journal.flush()).await;
        }
        self.memory.save();
        if tokio::time::timeout(FLUSH, self.scribe.flush()).await.is_err() {
            tracing::warn!("stopping though the disk is busy");
        }
    }
}

/// Waits for the end of what is under way; for ever when nothing is.
async fn finished<T: Default>(work: &mut Option<oneshot::Receiver<T>>) -> T {
    match work {
        Some(work) => work.await.unwrap_or_default(),
        None => std::future::pending().await,
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
