//! Starting sessions and devices.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use tokio::sync::{mpsc, watch};

use super::{DeviceEntry, Report, SessionEntry, Supervisor};
use crate::cloud::Cloud;
use crate::cloud::enapter::Enapter;
use crate::config::{self, Communication, Config};
use crate::device::{self, Counter, DeviceHandle, Input, Prepared, Specification};
use crate::message::DeviceId;
use crate::outbox::{Bounds, Outbox};
use crate::registry::{Origin, Registry};
use crate::session::{GatewayCommand, Picture, Session, SessionStatus};

/// Makes a session that waits for the first picture.
pub(super) fn session(
    name: &str,
    session: &config::Session,
    config: &Config,
    gateway: &mpsc::Sender<GatewayCommand>,
) -> Result<SessionEntry> {
    let config::Session::Enapter(session) = session;
    let communication = Communication::load(session, &config.folder)?;
    let cloud: Arc<dyn Cloud> = Arc::new(Enapter {
        hardware_id: communication.hardware_id.clone(),
        channel_id: communication.channel_id.clone(),
        properties_topic: session.properties_topic,
        needs_ucm: communication.needs_ucm,
    });
    let bounds = Bounds { bytes: session.outbox.max_size.bytes(), age: session.outbox.max_age.0 };
    let outbox = Arc::new(Outbox::new(bounds));
    let (picture, pictures) = watch::channel(Arc::new(Picture::default()));
    let (publisher, status) = watch::channel(SessionStatus::default());
    let refused = Arc::new(Counter::default());
    let address = format!("{}:{}", communication.host, communication.port);
    let client_id = session.client_id.clone().unwrap_or_else(|| format!("sandgate-{}", communication.hardware_id));
    let waiting = Session {
        name: name.to_owned(),
        cloud: Arc::clone(&cloud),
        communication,
        client_id,
        qos: session.qos,
        keep_alive: session.keep_alive.0,
        outbox: Arc::clone(&outbox),
        picture: pictures,
        gateway: gateway.clone(),
        status: publisher,
        refused: Arc::clone(&refused),
    };
    Ok(SessionEntry { cloud, outbox, address, picture, status, refused, waiting: Some(waiting) })
}

impl Supervisor {
    /// Starts a device, or starts it afresh with a changed configuration. The
    /// running one, if any, is stopped when the new one is ready.
    pub(super) fn start_device(&mut self, id: &str, device: &config::Device) {
        self.generation += 1;
        let generation = self.generation;
        let before = self.devices.remove(id);
        let (statistics, old, problem, revoked) = match before {
            Some(entry) => {
                let revoked = entry.config.grants != device.grants;
                (entry.statistics, entry.handle, entry.problem, revoked)
            }
            None => (Arc::default(), None, None, false),
        };
        let pending = old.is_none();
        let spec = self.specification(id, device, &statistics);
        let entry = DeviceEntry {
            config: device.clone(),
            statistics,
            handle: old.clone(),
            problem,
            generation,
            pending,
            starting: true,
        };
        self.devices.insert(id.to_owned(), entry);

        let registry = Arc::clone(&self.registry);
        let path = self.config.driver_path(device);
        let (last_base, last_good) = (self.memory.base_of(id), self.memory.last_good(id));
        let given = configuration_of(device);
        let report = self.report.clone();
        let id = id.to_owned();
        tokio::spawn(async move {
            let base = registry.digest(&path).await.ok().map(|digest| digest.to_string());
            let result =
                first_that_runs(&registry, &spec, given, &id, candidates(path, base.as_deref(), last_base, last_good))
                    .await;
            // The old one goes on when the new one cannot run, unless it would
            // keep what the operator has taken away.
            if let Some(old) = old
                && (result.is_ok() || revoked)
            {
                old.ask(Input::Stop).await;
            }
            // The supervisor may be gone at the end of the program.
            let result = result.map(Box::new);
            let _ = report.send(Report::Prepared { device: id, generation, base, result }).await;
        });
    }

    /// Takes what a task has to report.
    pub(super) fn take(&mut self, report: Report) {
        match report {
            Report::Prepared { device, generation, base, result } => {
                if let Some(base) = base {
                    self.memory.base(&device, &base);
                }
                self.prepared(&device, generation, result);
            }
            Report::Base { device, digest } => self.memory.base(&device, &digest),
        }
    }

    fn prepared(&mut self, id: &str, generation: u64, result: Result<Box<Prepared>, String>) {
        let Some(entry) = self.devices.get(id).filter(|entry| entry.generation == generation) else { return };
        let started = match result {
            Ok(prepared) => {
                let spec = Arc::new(self.specification(id, &entry.config, &entry.statistics));
                self.memory.running(id, &prepared.driver);
                let (journal, receipts) = (Arc::clone(&self.journal), Arc::clone(&self.receipts));
                Ok(DeviceHandle::start(spec, *prepared, journal, receipts))
            }
            Err(problem) => Err(problem),
        };
        if let Some(entry) = self.devices.get_mut(id) {
            entry.pending = false;
            entry.starting = false;
            match started {
                Ok(handle) => (entry.handle, entry.problem) = (Some(handle), None),
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
        self.memory.save();
        self.settle();
    }

    /// Answers commands that a crash of the gateway interrupted.
    pub(super) fn answer_interrupted(&self, interrupted: &[(DeviceId, String)]) {
        use crate::message::{Uplink, now};
        for (device, command) in interrupted {
            let result = Err(device::interrupted());
            let uplink = Uplink::CommandResult { command, result: &result };
            tracing::warn!(device = device.as_str(), "command {command} was interrupted by a restart of the gateway");
            match self.config.devices.get(device.as_str()) {
                Some(config) => {
                    let outlet = self.specification(device.as_str(), config, &Arc::default()).outlet;
                    outlet.send(now(), &uplink);
                }
                None if device.as_str() == super::GATEWAY => self.send_as_gateway(&uplink),
                None => {}
            }
        }
    }
}

/// What a device may run, the best first: a driver that was chosen by hand
/// beside this very file, the file, the driver that ran last.
fn candidates(file: PathBuf, base: Option<&str>, last_base: Option<String>, last_good: Option<String>) -> Vec<Origin> {
    let chosen = last_good.clone().filter(|good| base == last_base.as_deref() && base != Some(good.as_str()));
    let chosen = chosen.map(Origin::Copy);
    let last = last_good.filter(|_| chosen.is_none()).map(Origin::Copy);
    chosen.into_iter().chain([Origin::File(file)]).chain(last).collect()
}

/// Prepares the first candidate that can run. The error is the file's own.
async fn first_that_runs(
    registry: &Registry,
    spec: &Specification,
    given: serde_json::Map<String, serde_json::Value>,
    id: &str,
    candidates: Vec<Origin>,
) -> Result<Prepared, String> {
    let mut problem = "another one was chosen by hand, or the file was refused before".to_owned();
    for origin in candidates {
        let result = match registry.load(&origin).await {
            Ok(driver) => device::prepare(spec, driver, given.clone()).await,
            Err(error) => Err(format!("{error:#}")),
        };
        match (result, &origin) {
            (Ok(prepared), Origin::File(_)) => return Ok(prepared),
            (Ok(prepared), Origin::Copy(_)) => {
                let driver = &prepared.driver;
                tracing::warn!(device = id, "runs {driver:?} and not the configured file: {problem}");
                return Ok(prepared);
            }
            (Err(error), Origin::File(_)) => problem = error,
            (Err(error), Origin::Copy(_)) => tracing::warn!(device = id, "the driver that ran last: {error}"),
        }
    }
    Err(problem)
}

/// A device's configuration as JSON.
pub(super) fn configuration_of(device: &config::Device) -> serde_json::Map<String, serde_json::Value> {
    match serde_json::to_value(&device.configuration) {
        Ok(serde_json::Value::Object(object)) => object,
        _ => serde_json::Map::new(),
    }
}
