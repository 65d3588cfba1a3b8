//! Applying changes: of the configuration file and of driver files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::oneshot;

use super::{Report, Supervisor};
use crate::bus;
use crate::config::{Change, Config, diff};
use crate::device::{self, DeviceHandle, Input, Phase};
use crate::message::now;
use crate::receipt::{DriverName, Outcome, Receipt};
use crate::registry::{Origin, Progress, Registry};
use crate::sandbox::Driver;
use crate::watcher::normal;

impl Supervisor {
    /// Files came to rest after a change.
    pub(super) fn files_changed(&mut self, changed: &BTreeSet<PathBuf>) {
        if changed.contains(&normal(&self.path)) {
            self.reload();
        }
        let touched: Vec<(String, PathBuf)> = self
            .devices
            .iter()
            .map(|(id, entry)| (id.clone(), self.config.driver_path(&entry.config)))
            .filter(|(_, path)| changed.contains(&normal(path)))
            .collect();
        for (id, path) in touched {
            self.driver_file_changed(&id, &path);
        }
    }

    fn driver_file_changed(&mut self, id: &str, path: &Path) {
        let Some(entry) = self.devices.get(id) else { return };
        // A start under way has read the old file: it is begun anew.
        if entry.handle.is_none() || entry.starting {
            let config = entry.config.clone();
            return self.start_device(id, &config);
        }
        self.swap(id, Origin::File(path.to_owned()), "file change", None);
    }

    /// Reads the configuration file again and applies what is different.
    fn reload(&mut self) {
        let new = match Config::load(&self.path) {
            Ok(new) => new,
            Err(error) => return tracing::error!("the new configuration is refused, the old one stays: {error:#}"),
        };
        if let Err(problem) = self.check_reload(&new) {
            let path = self.path.display();
            return tracing::error!("the new configuration is refused, the old one stays: {path}: {problem}");
        }
        // Also one that is refused may show in an error.
        self.secrets.set("(configuration)", self.config.secrets().into_iter().chain(new.secrets()));
        let changes = diff(&self.config, &new);
        if let Err(problem) = self.check_configurations(&new, &changes) {
            let path = self.path.display();
            return tracing::error!("the new configuration is refused, the old one stays: {path}: {problem}");
        }
        let old = std::mem::replace(&mut self.config, new);
        // What is read at the start only stays as it is.
        self.config.state.clone_from(&old.state);
        self.config.gateway = old.gateway;
        self.config.sessions = old.sessions;
        for change in changes {
            tracing::info!("configuration: {change}");
            self.apply(change);
        }
        self.watch_files();
        self.publish_soon();
    }

    /// Refuses what would take the site apart by accident.
    fn check_reload(&self, new: &Config) -> Result<(), String> {
        // A file that is being written is empty for a moment.
        if new.devices.is_empty() && !self.config.devices.is_empty() {
            return Err("it has no devices; stop the gateway to stop them all".into());
        }
        for (id, device) in &new.devices {
            let sessions = new.sessions_of(device);
            let missing = sessions.into_iter().find(|name| !self.sessions.contains_key(*name));
            if let Some(name) = missing {
                return Err(format!(
                    "devices.{id}.session: session {name:?} starts with the next start of the gateway"
                ));
            }
        }
        Ok(())
    }

    /// Holds new configurations against the manifests of running drivers.
    fn check_configurations(&self, new: &Config, changes: &[Change]) -> Result<(), String> {
        for change in changes {
            let (Change::ConfigureDevice(id) | Change::StartDevice(id)) = change else { continue };
            let (Some(device), Some(entry)) = (new.devices.get(id), self.devices.get(id)) else { continue };
            let Some(handle) = &entry.handle else { continue };
            // Another driver may have another manifest; it is checked when it is loaded.
            if device.driver != entry.config.driver {
                continue;
            }
            let manifest = Arc::clone(&handle.status.borrow().driver.manifest);
            self.configuration(id, device)
                .check(&manifest)
                .map_err(|problem| format!("devices.{id}.configuration.{problem}"))?;
        }
        Ok(())
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::OpenBus(name) => {
                if let Some(bus) = self.config.buses.get(&name) {
                    self.buses.insert(name.clone(), bus::open(&name, bus));
                }
            }
            Change::CloseBus(name) => drop(self.buses.remove(&name)),
            Change::StopDevice(id) => self.end_device(&id),
            Change::StartDevice(id) => {
                if let Some(device) = self.config.devices.get(&id).cloned() {
                    self.start_device(&id, &device);
                }
            }
            Change::SwapDriver(id) => {
                self.adopt(&id);
                if let Some(device) = self.config.devices.get(&id) {
                    let path = self.config.driver_path(device);
                    self.driver_file_changed(&id, &path);
                }
            }
            Change::ConfigureDevice(id) => {
                self.adopt(&id);
                self.configure(&id);
            }
            Change::NeedsRestart(part) => {
                tracing::warn!("the change of {part} takes effect at the next start of the gateway");
            }
        }
    }

    /// Takes over a device's new settings.
    fn adopt(&mut self, id: &str) {
        if let (Some(entry), Some(device)) = (self.devices.get_mut(id), self.config.devices.get(id)) {
            entry.config = device.clone();
        }
    }

    fn configure(&mut self, id: &str) {
        let Some(entry) = self.devices.get(id) else { return };
        let running = entry.handle.clone().filter(|_| !entry.starting);
        let Some(handle) = running else {
            let config = entry.config.clone();
            return self.start_device(id, &config);
        };
        let Some(text) = self.wanted(id) else { return };
        let (device, report, driver) = (id.to_owned(), self.report.clone(), handle.digest());
        tokio::spawn(async move {
            let configuration = text.clone();
            if let Some(Err(reason)) = handle.ask(|reply| Input::Configure(text, reply)).await {
                tracing::error!(device, "configuration: {reason}; the old one stays");
                // The supervisor may be gone at the end of the program.
                let _ = report.send(Report::Unwanted { device, driver, configuration }).await;
            }
        });
    }

    /// The same, if the device runs with another configuration than it should.
    pub(super) fn configure_if_changed(&mut self, id: &str) {
        let Some(entry) = self.devices.get(id) else { return };
        let Some(handle) = entry.handle.as_ref().filter(|_| !entry.starting) else { return };
        let (driver, status) = (handle.digest(), handle.status.borrow().clone());
        // One that has crashed takes anything, and may crash the next time because of it.
        if status.phase != Phase::Running {
            return;
        }
        let refused = entry.refused.clone();
        let is_news = |wanted: &String| {
            **wanted != *status.configuration
                && refused.as_ref().is_none_or(|(by, refused)| *by != driver || refused != wanted)
        };
        if self.wanted(id).as_ref().is_some_and(is_news) {
            self.configure(id);
        }
    }

    /// The configuration that a running device should have, as its driver gets it.
    pub(super) fn wanted(&mut self, id: &str) -> Option<String> {
        let entry = self.devices.get(id)?;
        let status = entry.handle.as_ref()?.status.borrow().clone();
        let (wanted, left_out) = self.configuration(id, &entry.config).check(&status.driver.manifest).ok()?;
        // A driver that is rolled back wants it again.
        if let Some(problem) = left_out.filter(|_| !status.watching) {
            let driver = status.driver.manifest.label();
            tracing::warn!(
                device = id,
                "{driver} does not fit the configuration of the cloud, which is forgotten: {problem}"
            );
            self.memory.forget_configurations(id);
            self.memory.save();
            // The cloud offers it again, and is told why it is refused.
            self.publish_soon();
        }
        Some(wanted)
    }

    /// Swaps a device's driver in a task of its own.
    pub(super) fn swap(
        &mut self,
        id: &str,
        origin: Origin,
        asked_by: &str,
        reply: Option<oneshot::Sender<Result<Receipt, String>>>,
    ) {
        self.swap_checked(id, origin, asked_by, reply, None);
    }

    /// The same; with a version, the new driver must be that version of the
    /// one that runs.
    pub(super) fn swap_checked(
        &mut self,
        id: &str,
        origin: Origin,
        asked_by: &str,
        reply: Option<oneshot::Sender<Result<Receipt, String>>>,
        version: Option<String>,
    ) {
        let Some(entry) = self.devices.get(id) else { return };
        let Some(handle) = entry.handle.clone() else { return };
        let (given, settings) = (self.configuration(id, &entry.config), entry.config.clone());
        let base = self.config.driver_path(&entry.config);
        let registry = Arc::clone(&self.registry);
        let receipts = self.receipts.clone();
        let report = self.report.clone();
        let (id, asked_by) = (id.to_owned(), asked_by.to_owned());
        let only_if_new = reply.is_none();
        let last_base = self.memory.base_of(&id);
        tokio::spawn(async move {
            let file = registry.digest(&base).await.ok();
            if let Some(digest) = file {
                // A file that was only touched does not undo a choice made by hand.
                let same = digest == handle.status.borrow().driver.digest;
                if only_if_new && (same || last_base == Some(digest.to_string())) {
                    return;
                }
            }
            let loaded = registry.load(&origin, &Progress::default()).await.and_then(|driver| match &version {
                Some(version) => is_version(&driver, version, &handle).map(|()| driver),
                None => Ok(driver),
            });
            let prepare = async |driver: &Arc<Driver>| {
                settings.check(&driver.manifest)?;
                device::prepare(&handle.spec, Arc::clone(driver), &given).await.map_err(|error| error.to_string())
            };
            let result = match loaded {
                Err(error) => Err(reject(&handle, &receipts, &asked_by, &format!("{error:#}"))),
                Ok(driver) => match prepare(&driver).await {
                    Err(problem) => {
                        let mut receipt = rejection(&handle, &asked_by, &problem);
                        receipt.new = Some(DriverName::of(&driver));
                        Err(keep(&handle, &receipts, receipt))
                    }
                    Ok(_) if only_if_new && !is_wanted(&registry, &base, &driver, &handle).await => return,
                    Ok(prepared) => {
                        let ask = |reply| Input::Swap(Box::new(prepared), asked_by, reply);
                        handle.ask(ask).await.ok_or("the device was stopped".to_owned())
                    }
                },
            };
            // What was refused may run when its reason is gone, so it does not count as chosen against.
            let is_accepted = matches!(&result, Ok(Receipt { outcome: Outcome::Accepted, .. }));
            if let Some(digest) = file.filter(|_| is_accepted) {
                // The supervisor may be gone at the end of the program.
                let _ = report.send(Report::Base { device: id, digest: digest.to_string() }).await;
            }
            if let Some(reply) = reply {
                let _ = reply.send(result);
            }
        });
    }
}

/// Whether a driver is another version of the running one, and this version.
fn is_version(driver: &Driver, version: &str, handle: &DeviceHandle) -> anyhow::Result<()> {
    let (new, running) = (&driver.manifest.driver, &handle.status.borrow().driver.manifest.driver.name.clone());
    anyhow::ensure!(new.name == *running, "expected the driver {running}, found {}", new.name);
    anyhow::ensure!(new.version == version, "expected version {version}, found {}", new.version);
    Ok(())
}

/// Whether a driver that took a while to compile is still the one in the file,
/// and not running already through another change.
async fn is_wanted(registry: &Registry, file: &Path, driver: &Driver, handle: &DeviceHandle) -> bool {
    let running = handle.status.borrow().driver.digest;
    running != driver.digest && registry.digest(file).await.is_ok_and(|now| now == driver.digest)
}

/// The receipt of a swap that failed before it touched the device.
fn rejection(handle: &DeviceHandle, asked_by: &str, reason: &str) -> Receipt {
    Receipt {
        time: now(),
        device: handle.spec.id.to_string(),
        asked_by: asked_by.to_owned(),
        old: DriverName::of(&handle.status.borrow().driver),
        new: None,
        outcome: Outcome::Rejected(reason.to_owned()),
        compile_ms: 0,
        pause_us: 0,
        held: 0,
        dropped: 0,
        migrated: false,
    }
}

fn reject(handle: &DeviceHandle, receipts: &crate::receipt::Receipts, asked_by: &str, reason: &str) -> String {
    keep(handle, receipts, rejection(handle, asked_by, reason))
}

fn keep(handle: &DeviceHandle, receipts: &crate::receipt::Receipts, receipt: Receipt) -> String {
    let text = receipt.to_string();
    handle.spec.note(&handle.status.borrow().driver, crate::message::Severity::Warning, &text);
    receipts.keep(&receipt);
    text
}
