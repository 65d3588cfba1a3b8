//! Applying changes: of the configuration file and of driver files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::swap::{Asker, Gating, SwapOrder};
use super::{Report, Supervisor};
use crate::config::{Change, Config, diff};
use crate::device::{Input, Phase};
use crate::registry::Origin;
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
        if entry.settled().is_none() {
            let config = entry.config.clone();
            return self.start_device(id, &config);
        }
        let origin = Origin::File(path.to_owned());
        self.swap(id, SwapOrder { origin, asked_by: Asker::File, gating: Gating::Usual }, None);
    }

    /// Reads the configuration file again and applies what is different.
    fn reload(&mut self) {
        let new = match Config::load(&self.path) {
            Ok(new) => new,
            Err(error) => return tracing::error!("the new configuration is refused, the old one stays: {error:#}"),
        };
        if let Err(problem) = self.check_reload(&new) {
            return tracing::error!("the new configuration is refused, the old one stays: {problem}");
        }
        // Also one that is refused may show in an error.
        self.secrets.set("(configuration)", self.config.secrets().into_iter().chain(new.secrets()));
        let changes = diff(&self.config, &new);
        if let Err(problem) = self.check_configurations(&new, &changes) {
            return tracing::error!("the new configuration is refused, the old one stays: {problem}");
        }
        let old = std::mem::replace(&mut self.config, new);
        // What is read at the start only stays as it is.
        self.config.state.clone_from(&old.state);
        self.config.gateway = old.gateway;
        self.config.sessions = old.sessions;
        self.config.tapes = old.tapes;
        for change in changes {
            tracing::info!("configuration: {change}");
            self.apply(change);
        }
        self.bound_outboxes();
        self.watch_files();
        self.publish_soon();
    }

    /// Refuses what would take the site apart by accident.
    fn check_reload(&self, new: &Config) -> Result<(), String> {
        // A file that is being written is empty for a moment.
        if new.devices.is_empty() && !self.config.devices.is_empty() {
            return Err(new.wrong(&["devices"], "there are none; stop the gateway to stop them all"));
        }
        for device in new.devices.values() {
            let sessions = new.sessions_of(device);
            let missing = sessions.into_iter().find(|name| !self.sessions.contains_key(*name));
            if let Some(name) = missing {
                let problem = format!("session {name:?} starts with the next start of the gateway");
                return Err(device.wrong(&["session"], &problem));
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
            device.check_configuration(&manifest)?;
        }
        Ok(())
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::OpenBus(name) => {
                if let Some(bus) = self.config.buses.get(&name).cloned() {
                    self.lines.open(&name, &bus);
                }
            }
            Change::CloseBus(name) => self.lines.close(&name),
            Change::StopDevice(id) => self.end_device(&id),
            Change::StartDevice(id) => {
                if let Some(device) = self.config.devices.get(&id).cloned() {
                    self.start_device(&id, &device);
                }
            }
            Change::SwapDriver(id) => {
                self.take_over_settings(&id);
                if let Some(device) = self.config.devices.get(&id) {
                    let path = self.config.driver_path(device);
                    self.driver_file_changed(&id, &path);
                }
            }
            Change::ConfigureDevice(id) => {
                self.take_over_settings(&id);
                self.configure(&id);
            }
            Change::NeedsRestart(part) => {
                tracing::warn!("the change of {part} takes effect at the next start of the gateway");
            }
        }
    }

    /// Takes over a device's new settings.
    fn take_over_settings(&mut self, id: &str) {
        if let (Some(entry), Some(device)) = (self.devices.get_mut(id), self.config.devices.get(id)) {
            entry.config = device.clone();
        }
    }

    fn configure(&mut self, id: &str) {
        let Some(entry) = self.devices.get(id) else { return };
        let running = entry.settled().cloned();
        let Some(handle) = running else {
            let config = entry.config.clone();
            return self.start_device(id, &config);
        };
        let Some(text) = self.configuration_now(id) else { return };
        let (device, report, driver) = (id.to_owned(), self.report.clone(), handle.digest());
        tokio::spawn(async move {
            let configuration = text.clone();
            if let Some(Err(reason)) = handle.ask(|reply| Input::Configure(text, reply)).await {
                tracing::error!(device, "configuration: {reason}; the old one stays");
                // The supervisor may be gone at the end of the program.
                let _ = report.send(Report::ConfigurationRefused { device, driver, configuration }).await;
            }
        });
    }

    /// The same, if the device runs with another configuration than it should.
    pub(super) fn configure_if_changed(&mut self, id: &str) {
        let Some(entry) = self.devices.get(id) else { return };
        let Some(handle) = entry.settled() else { return };
        let (driver, status) = (handle.digest(), handle.status.borrow().clone());
        // One that has crashed takes anything, and may crash the next time because of it.
        if status.phase != Phase::Running {
            return;
        }
        let refused = entry.refused.clone();
        let is_news = |text: &String| {
            **text != *status.configuration
                && refused.as_ref().is_none_or(|(by, refused)| *by != driver || refused != text)
        };
        if self.configuration_now(id).as_ref().is_some_and(is_news) {
            self.configure(id);
        }
    }

    /// The configuration that a running device should have, as its driver gets it.
    pub(super) fn configuration_now(&mut self, id: &str) -> Option<String> {
        let entry = self.devices.get(id)?;
        let status = entry.handle.as_ref()?.status.borrow().clone();
        let (text, left_out) = self.configuration(id, &entry.config).check(&status.driver.manifest).ok()?;
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
        Some(text)
    }
}
