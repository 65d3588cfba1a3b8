//! Starting sessions and devices.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::Instant;

use super::devices::{DeviceEntry, Kind, Starting, Step, Work};
use super::held::GONE;
use super::{Report, SessionEntry, Supervisor};
use crate::config::{self, Config};
use crate::device::{self, DeviceHandle, Input, NotReady, Prepared, Specification};
use crate::journal::Journal;
use crate::message::{CommandError, DeviceId, SessionName};
use crate::receipt::{DriverName, Receipt};
use crate::registry::{Origin, Progress, Registry};
use crate::router::GATEWAY;
use crate::sandbox::Driver;
use crate::scribe::Scribe;
use crate::session::{Contact, Links, Order, Parts, Picture, Session, SessionStatus};
use crate::statistics::Counter;
use crate::text;

/// Questions of drivers to a cloud that may wait.
const QUESTIONS: usize = 1024;
/// Why a driver that was on trial does not run.
const ENDED_IN_TRIAL: &str = "the gateway ended before the new driver had proved itself; swap again to try it again";
/// How soon a start is tried again when the machine is short of something.
const AGAIN: Duration = Duration::from_secs(1);
const LONGEST_AGAIN: Duration = Duration::from_secs(60);

/// Makes a session that waits for the first picture.
pub(super) fn session(
    name: &SessionName,
    session: &config::Session,
    config: &Config,
    state: &Path,
    gateway: &mpsc::Sender<Order>,
    (journal, scribe): (&Arc<Journal>, &Scribe),
) -> Result<SessionEntry> {
    let parts = Parts::new(name, session, &config.folder)?;
    keep_outbox(name, &parts, state);
    if matches!(session, config::Session::Enapter(_)) {
        discard_of_others(name, &parts, config);
    }
    let (picture, pictures) = watch::channel(Arc::new(Picture::default()));
    let (publisher, status) = watch::channel(SessionStatus::default());
    let (question, questions) = mpsc::channel(QUESTIONS);
    let refused = Arc::new(Counter::default());
    let contact = match parts.resumes {
        true => Contact::open(parts.contact_file(name, state), config.gateway.command_deadline.0, scribe.clone()),
        false => Contact::none(),
    };
    let links = Links {
        picture: pictures,
        gateway: gateway.clone(),
        questions,
        journal: Arc::clone(journal),
        contact,
        status: publisher,
        refused: Arc::clone(&refused),
    };
    Ok(SessionEntry {
        cloud: Arc::clone(&parts.cloud),
        outbox: Arc::clone(&parts.outbox),
        address: parts.address(),
        picture,
        status,
        refused,
        questions: parts.answers.then_some(question),
        binary_data: parts.binary_data.clone(),
        max_software: parts.max_software,
        waiting: Some(Session::new(name, parts, links)),
        running: None,
    })
}

/// Keeps a session's outbox on the disk, and takes over what waits there. A
/// gateway whose disk does not work goes on in memory.
fn keep_outbox(name: &SessionName, parts: &Parts, state: &Path) {
    let (session, folder) = (name.as_str(), parts.outbox_folder(name, state));
    match parts.outbox.keep_in(&folder, parts.sync_every) {
        Ok(recovered) => {
            if recovered.entries > 0 {
                let messages = text::count(recovered.entries, "message");
                tracing::info!(session, "{messages} of before the start wait to be sent");
            }
            if recovered.damaged > 0 {
                let places = text::count(recovered.damaged, "place");
                let folder = folder.display();
                tracing::error!(
                    session,
                    "{places} of the outbox could not be read; what is whole is sent, and copies of the damaged files \
                     are kept in {folder} for a look"
                );
            }
        }
        Err(error) => {
            let folder = folder.display();
            tracing::error!(session, "the outbox cannot be kept in {folder}: {error}; it is in memory only");
        }
    }
}

/// Drops what waits of devices that the configuration has no longer: Enapter
/// takes messages of announced children only, so it would wait for ever.
fn discard_of_others(name: &SessionName, parts: &Parts, config: &Config) {
    let is_here = |device: &DeviceId| {
        let configured = config.devices.get(device.as_str());
        device.as_str() == GATEWAY || configured.is_some_and(|own| config.sessions_of(own).contains(name.as_str()))
    };
    for device in parts.outbox.devices().into_iter().filter(|device| !is_here(device)) {
        let messages = text::count(parts.outbox.discard(&device), "message");
        tracing::warn!(%device, session = name.as_str(), "dropped {messages}: the device is no longer configured here");
    }
}

impl Supervisor {
    /// Starts a device, or starts it afresh with a changed configuration, when it
    /// is its turn. The running one, if any, is stopped when the new one is ready.
    pub(super) fn start_device(&mut self, id: &str, device: &Arc<config::Device>) {
        let number = self.starts.next_number();
        let mut entry = self.devices.remove(id).unwrap_or_else(|| DeviceEntry::new(device));
        let is_revoked = match &entry.work {
            // Also by a start that is under way and has no effect yet.
            Work::Starting(before) => before.is_revoked || entry.config.grants != device.grants,
            _ => entry.config.grants != device.grants,
        };
        entry.latest.store(number, Ordering::Relaxed);
        entry.config = Arc::clone(device);
        (entry.firmware, entry.refused) = (None, None);
        entry.work = Work::Starting(Starting { number, is_revoked, tries: 0, step: Step::Queued });
        if entry.handle.is_none() && device.kind.is_none() && entry.kind.get().is_none() {
            entry.kind = Kind::Unread;
            self.unread_kinds.push(id.to_owned());
        }
        self.devices.insert(id.to_owned(), entry);
        self.starts.queue(id);
    }

    /// Begins a start whose turn it is, in a task of its own.
    pub(super) fn begin_start(&mut self, id: &str, turn: OwnedSemaphorePermit) {
        let Some(entry) = self.devices.get(id) else { return };
        // One that was asked for twice in a row is begun once.
        let Work::Starting(starting @ Starting { step: Step::Queued, .. }) = &entry.work else { return };
        let tried = entry.handle.as_ref().filter(|_| entry.tried.is_some()).map(DeviceHandle::digest);
        let (number, is_revoked, progress) = (starting.number, starting.is_revoked, Arc::<Progress>::default());
        let start = Start {
            number,
            latest: Arc::clone(&entry.latest),
            spec: self.specification(id, &entry.config, &entry.statistics),
            settings: Arc::clone(&entry.config),
            given: self.configuration(id, &entry.config),
            path: self.config.driver_path(&entry.config),
            configured_before: self.memory.configured_digest(id),
            last_good: match tried {
                Some(digest) => Some(digest.to_string()),
                None => self.memory.last_good(id),
            },
            trial: self.memory.trial(id).filter(|_| entry.handle.is_none()).map(|trial| trial.digest.clone()),
            progress: Arc::clone(&progress),
            registry: Arc::clone(&self.registry),
            id: id.to_owned(),
        };
        let (old, report) = (entry.handle.clone(), self.report.clone());
        if let Some(Work::Starting(starting)) = self.devices.get_mut(id).map(|entry| &mut entry.work) {
            starting.step = Step::UnderWay(progress);
        }
        tokio::spawn(async move {
            let result = start.run(old, is_revoked, turn).await;
            if let Some(result) = result {
                // The supervisor may be gone at the end of the program.
                let _ = report.send(result).await;
            }
        });
    }

    /// Reads the child types of new devices from their drivers' files.
    pub(super) fn read_kinds(&mut self) {
        let unread = std::mem::take(&mut self.unread_kinds);
        let files = unread.into_iter().filter_map(|id| {
            let path = self.config.driver_path(&self.devices.get(&id)?.config);
            let (configured_before, last_good) = (self.memory.configured_digest(&id), self.memory.last_good(&id));
            Some(KindOf { id, path, configured_before, last_good })
        });
        let (files, registry, report) = (files.collect(), Arc::clone(&self.registry), self.report.clone());
        tokio::spawn(async move {
            let kinds = kinds(&registry, files).await;
            // The supervisor may be gone at the end of the program.
            let _ = report.send(Report::Kinds(kinds)).await;
        });
    }

    /// Queues the starts again that failed for want of something, when it is time.
    pub(super) fn try_again(&mut self) {
        let now = Instant::now();
        for (id, entry) in &mut self.devices {
            if let Work::Starting(starting) = &mut entry.work
                && matches!(starting.step, Step::Short { again_at } if again_at <= now)
            {
                starting.step = Step::Queued;
                self.starts.queue(id);
            }
        }
    }

    /// Ends a device that is no longer configured. It counts as a child until
    /// its last words are said.
    pub(super) fn end_device(&mut self, id: &str) {
        let number = self.starts.next_number();
        let Some(entry) = self.devices.get_mut(id) else { return };
        entry.latest.store(number, Ordering::Relaxed);
        entry.work = Work::Ending(number);
        let Some(handle) = entry.handle.clone() else { return self.remove_device(id) };
        let (report, device) = (self.report.clone(), id.to_owned());
        tokio::spawn(async move {
            handle.ask(Input::Stop).await;
            // The supervisor may be gone at the end of the program.
            let _ = report.send(Report::Ended { device, number }).await;
        });
    }

    fn remove_device(&mut self, id: &str) {
        let outlet = self.outlet(id, None);
        let Some(entry) = self.devices.remove(id) else { return };
        for (request, reply) in entry.held {
            let gone = Err(CommandError::Failed(GONE.into()));
            self.journal.finish(&outlet, request.session.as_ref(), &request.id, gone.clone());
            // Whoever waited may be gone.
            let _ = reply.map(|reply| reply.send(gone));
        }
        self.offers.forget_software(id);
        // It may come back under the same name, and is judged anew then.
        self.memory.set_trial(id, None);
    }

    /// Goes on with what a task has to report.
    pub(super) fn note(&mut self, report: Report) {
        match report {
            Report::Prepared { device, number, configured, result, held } => {
                self.keep_commands(&device, held);
                if let Some(configured) = configured {
                    self.memory.set_configured_digest(&device, &configured);
                }
                self.prepared(&device, number, result);
            }
            Report::Short { device, number, problem } => self.is_short(&device, number, problem),
            Report::Kinds(kinds) => {
                for (device, kind) in kinds {
                    if let Some(entry) = self.devices.get_mut(&device) {
                        entry.kind = Kind::Read(kind);
                    }
                }
                self.publish_soon();
            }
            Report::Ended { device, number } => {
                if self.devices.get(&device).is_some_and(|entry| entry.work.is(number)) {
                    self.remove_device(&device);
                    self.publish_soon();
                }
            }
            Report::Overtaken { device, number, held } => {
                self.keep_commands(&device, held);
                self.statuses_changed([DeviceId::new(&device)].into());
                let entry = self.devices.get(&device).filter(|entry| entry.work.is(number));
                if let Some(config) = entry.map(|entry| Arc::clone(&entry.config)) {
                    self.start_device(&device, &config);
                }
            }
            Report::ConfigurationRefused { device, driver, configuration } => {
                if let Some(entry) = self.devices.get_mut(&device) {
                    entry.refused = Some((driver, configuration));
                }
            }
            Report::ConfiguredDigest { device, digest } => self.memory.set_configured_digest(&device, &digest),
            Report::Configured(outcome) => self.configured(outcome),
            Report::Order { device, order, reply } => self.swap(&device, order, Some(reply)),
            Report::Trial { device, step } => self.note_trial(&device, step),
            Report::Begun(request, room) => self.carry_out_begun(request, room),
            Report::Software(installation) => self.go_on_installing(installation),
        }
    }

    /// Notes that a start waits for what the machine has not enough of.
    fn is_short(&mut self, id: &str, number: u64, problem: String) {
        let Some(entry) = self.devices.get_mut(id) else { return };
        let Work::Starting(starting) = &mut entry.work else { return };
        if starting.number != number {
            return;
        }
        let wait = AGAIN.saturating_mul(1 << starting.tries).min(LONGEST_AGAIN);
        starting.step = Step::Short { again_at: Instant::now() + wait };
        starting.tries = (starting.tries + 1).min(16);
        if starting.tries == 1 && entry.handle.is_none() {
            tracing::warn!(device = id, "{problem}; trying again until it can be started");
            entry.problem = Some(problem);
        }
    }

    fn prepared(&mut self, id: &str, number: u64, result: Result<Box<Prepared>, String>) {
        let Some(entry) = self.devices.get(id).filter(|entry| entry.work.is(number)) else { return };
        let started = match result {
            Ok(prepared) => {
                let spec = Arc::new(self.specification(id, &entry.config, &entry.statistics));
                self.memory.running(id, &prepared.driver);
                let given = self.configuration(id, &entry.config).whole;
                self.end_trial(id, &prepared.driver);
                self.secrets.set(id, prepared.driver.manifest.sensitive(&given));
                let (journal, receipts) = (Arc::clone(&self.journal), self.receipts.clone());
                Ok(DeviceHandle::start(spec, *prepared, journal, receipts))
            }
            Err(problem) => Err(problem),
        };
        if let Some(entry) = self.devices.get_mut(id) {
            entry.work = Work::None;
            match started {
                Ok(handle) => {
                    entry.firmware = Some(handle.status.borrow().firmware.clone());
                    (entry.handle, entry.problem) = (Some(handle), None);
                }
                Err(problem) if entry.handle.as_ref().is_some_and(DeviceHandle::is_alive) => {
                    tracing::error!(
                        device = id,
                        "the new settings are refused, the device goes on as it was: {problem}"
                    );
                }
                Err(problem) => {
                    tracing::error!(device = id, "{problem}");
                    (entry.handle, entry.problem) = (None, Some(problem));
                }
            }
        }
        self.publish_soon();
        // What has come since its start was prepared.
        let held = self.devices.get_mut(id).map(|entry| std::mem::take(&mut entry.held)).unwrap_or_default();
        held.into_iter().for_each(|waiting| self.late_command(id, waiting));
        self.configure_if_changed(id);
        self.next_configuration(id);
    }

    /// A device begins afresh with a driver. Where another one was on trial when
    /// the gateway died, that is told like a roll-back.
    fn end_trial(&mut self, id: &str, driver: &Driver) {
        let Some(entry) = self.devices.get_mut(id) else { return };
        let was_running = entry.tried.take().is_some();
        let Some(tried) = self.memory.trial(id).cloned() else { return };
        self.memory.set_trial(id, None);
        let running = DriverName::of(driver);
        if was_running || tried.digest == running.digest {
            return;
        }
        self.memory.set_cut_short(id, &tried.digest);
        let receipt = Receipt::roll_back(id, "start of the gateway", tried, running, ENDED_IN_TRIAL);
        tracing::warn!(device = id, "{receipt}");
        self.receipts.keep(&receipt);
    }
}

/// A device whose child type is to be read from its driver's file.
struct KindOf {
    id: String,
    path: PathBuf,
    configured_before: Option<String>,
    last_good: Option<String>,
}

/// The child types that drivers' files declare; none where a file cannot be
/// read, or is not the one that will run. Each file is looked at once.
async fn kinds(registry: &Registry, devices: Vec<KindOf>) -> Vec<(String, Option<String>)> {
    let mut files: HashMap<PathBuf, Option<(String, String)>> = HashMap::new();
    let mut found = Vec::with_capacity(devices.len());
    for device in devices {
        if !files.contains_key(&device.path) {
            let declared = registry.manifest(&device.path).await.ok();
            let declared = declared.map(|(digest, manifest)| (digest.to_string(), manifest.child_type()));
            files.insert(device.path.clone(), declared);
        }
        // Another driver that was chosen beside this very file runs instead of it.
        let is_chosen = |digest: &String| {
            device.configured_before.as_ref() == Some(digest)
                && device.last_good.as_ref().is_some_and(|good| good != digest)
        };
        let declared = files.get(&device.path).and_then(Option::as_ref).filter(|(digest, _)| !is_chosen(digest));
        found.push((device.id, declared.map(|(_, kind)| kind.clone())));
    }
    found
}

/// A start of a device on its way, in a task of its own.
struct Start {
    id: String,
    number: u64,
    /// Another number means that a later start has begun.
    latest: Arc<AtomicU64>,
    spec: Specification,
    settings: Arc<config::Device>,
    given: device::Configuration,
    path: PathBuf,
    /// The digest of the configured file beside which the last driver was chosen.
    configured_before: Option<String>,
    last_good: Option<String>,
    /// The digest of a driver whose trial was cut short by the end of the gateway.
    trial: Option<String>,
    progress: Arc<Progress>,
    registry: Arc<Registry>,
}

impl Start {
    /// Makes the device ready and reports it; none when a later start has begun.
    async fn run(self, old: Option<DeviceHandle>, is_revoked: bool, turn: OwnedSemaphorePermit) -> Option<Report> {
        let before = old.as_ref().map(DeviceHandle::digest);
        let configured = self.registry.digest(&self.path).await.ok().map(|digest| digest.to_string());
        let result = self.first_that_runs(configured.as_deref()).await;
        drop(turn);
        // A later start settles what becomes of the old one.
        if self.latest.load(Ordering::Relaxed) != self.number {
            return None;
        }
        let (device, number) = (self.id, self.number);
        let result = match result {
            Err(NotReady::Short(problem)) => return Some(Report::Short { device, number, problem }),
            Err(NotReady::Wrong(problem)) => Err(problem),
            Ok(prepared) => Ok(Box::new(prepared)),
        };
        // The old one goes on when the new one cannot run, unless it would
        // keep what the operator has taken away.
        let mut held = Vec::new();
        if let Some(old) = old
            && (result.is_ok() || is_revoked)
        {
            held = old.ask(Input::HandOver).await.unwrap_or_default();
            if before.is_some_and(|before| before != old.digest()) {
                return Some(Report::Overtaken { device, number, held });
            }
        }
        // A file that was refused may run when its reason is gone, so it does not count as seen.
        let is_this = |digest: &String| matches!(&result, Ok(new) if new.driver.digest.to_string() == *digest);
        let configured = configured.filter(|digest| is_this(digest) || self.trial.as_ref() == Some(digest));
        Some(Report::Prepared { device, number, configured, result, held })
    }

    /// What the device may run, the best first: a driver that was chosen by
    /// hand beside this very file, the file, the driver that ran last.
    fn candidates(&self, configured: Option<&str>) -> Vec<Origin> {
        let last_good = self.last_good.clone();
        let is_tried = self.trial.is_some() && configured == self.trial.as_deref();
        let is_seen = is_tried || configured == self.configured_before.as_deref();
        let is_chosen = |good: &String| is_seen && configured != Some(good.as_str());
        let chosen = last_good.clone().filter(is_chosen).map(Origin::Copy);
        let last = last_good.filter(|_| chosen.is_none()).map(Origin::Copy);
        chosen.into_iter().chain([Origin::File(self.path.clone())]).chain(last).collect()
    }

    /// Prepares the first candidate that can run. The error is the file's own.
    async fn first_that_runs(&self, configured: Option<&str>) -> Result<Prepared, NotReady> {
        let id = self.id.as_str();
        let mut problem = "another one was chosen by hand, or the file was refused before".to_owned();
        for origin in self.candidates(configured) {
            match (self.prepare(&origin).await, &origin) {
                (Err(NotReady::Short(problem)), _) => return Err(NotReady::Short(problem)),
                (Ok(prepared), Origin::File(_)) => return Ok(prepared),
                (Ok(prepared), Origin::Copy(_)) => {
                    let driver = &prepared.driver;
                    tracing::warn!(device = id, "runs {driver:?} and not the configured file: {problem}");
                    return Ok(prepared);
                }
                (Err(error), Origin::File(_)) => problem = error.to_string(),
                (Err(error), Origin::Copy(_)) => tracing::warn!(device = id, "the driver that ran last: {error}"),
            }
        }
        Err(NotReady::Wrong(problem))
    }

    async fn prepare(&self, origin: &Origin) -> Result<Prepared, NotReady> {
        let driver = self.registry.load(origin, &self.progress).await;
        let driver = driver.with_context(|| format!("loading driver {origin}"))?;
        self.settings.check(&driver.manifest).map_err(NotReady::Wrong)?;
        device::prepare(&self.spec, driver, &self.given).await
    }
}
