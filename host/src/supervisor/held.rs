//! Commands that no driver has now: those that came before a device's driver
//! was ready, and those that the gateway's last life has left.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Supervisor;
use crate::device::Waiting;
use crate::journal::{Leftover, Progress as Done, interrupted};
use crate::message::{CommandError, DeviceId, SessionName, size_of_request};
use crate::router::{GATEWAY, Outlet};

/// Commands that are kept between two lives of a device.
const HELD: usize = 256;
/// Their bytes.
const MOST_HELD: usize = 1 << 20;
/// The answer to a command for a device that is not there any more.
pub(super) const GONE: &str = "this device is no longer configured";

impl Supervisor {
    /// Keeps commands that the life before had not begun, ahead of later ones.
    pub(super) fn keep_commands(&mut self, device: &str, waiting: Vec<Waiting>) {
        match self.devices.get_mut(device) {
            Some(entry) => drop(entry.held.splice(0..0, waiting)),
            None => waiting.into_iter().for_each(|waiting| self.late_command(device, waiting)),
        }
    }

    /// Gives a command to a device, now or when it has started.
    pub(super) fn late_command(&mut self, id: &str, (request, reply): Waiting) {
        let Some(entry) = self.devices.get_mut(id) else {
            let (outlet, gone) = (self.outlet(id, None), CommandError::Failed(GONE.into()));
            return self.journal.finish(&outlet, request.session.as_ref(), &request.id, Err(gone));
        };
        let held = entry.held.iter().map(|(request, _)| size_of_request(request)).sum::<usize>();
        if entry.work.is_start() && entry.held.len() < HELD && held < MOST_HELD {
            return entry.held.push((request, reply));
        }
        let (command, session) = (request.id.clone(), request.session.clone());
        let result = match entry.handle.as_ref().filter(|handle| handle.is_alive()) {
            Some(handle) => handle.command(request, reply),
            // Why not is for the operator: it names files of this machine.
            None => Err(CommandError::Failed("the driver of this device is not running".into())),
        };
        if let Err(error) = result {
            let outlet = self.outlet(id, session.as_ref());
            self.journal.finish(&outlet, session.as_ref(), &command, Err(error));
        }
    }

    /// Goes on with the commands that were not over when the gateway died.
    pub(super) fn resume_commands(&mut self, leftovers: Vec<Leftover>) {
        let mut held: BTreeMap<String, Vec<Waiting>> = BTreeMap::new();
        for Leftover { device, command, session, progress } in leftovers {
            if matches!(progress, Done::Interrupted(_)) {
                tracing::warn!(
                    device = device.as_str(),
                    "command {command} was interrupted by a restart of the gateway"
                );
            }
            let is_here = session.is_some() && self.devices.contains_key(device.as_str());
            let result = match progress {
                Done::Answered(result) => result,
                // The driver says whether what was cut short may run again.
                Done::Waiting(request) | Done::Interrupted(Some(request)) if is_here => {
                    held.entry(device.to_string()).or_default().push((request, None));
                    continue;
                }
                Done::Waiting(request) if device.as_str() == GATEWAY => {
                    self.gateway_command(request);
                    continue;
                }
                Done::Waiting(_) => Err(CommandError::Failed(GONE.into())),
                Done::Interrupted(_) => Err(interrupted()),
            };
            let outlet = self.outlet(device.as_str(), session.as_ref());
            self.journal.finish(&outlet, session.as_ref(), &command, result);
        }
        // All of them start; none has a handle yet.
        for (device, commands) in held {
            self.keep_commands(&device, commands);
        }
    }

    /// The way up of a device, or of the gateway in a session.
    pub(super) fn outlet(&self, device: &str, session: Option<&SessionName>) -> Arc<Outlet> {
        if let Some(entry) = self.devices.get(device) {
            return self.specification(device, &entry.config, &entry.statistics).capabilities.outlet;
        }
        let gateway = session.filter(|_| device == GATEWAY);
        let entry = gateway.and_then(|name| Some((name, self.sessions.get(name)?)));
        match entry {
            Some((name, entry)) => Arc::new(self.gateway_outlet(name, entry)),
            None => Arc::new(Outlet { device: DeviceId::new(device), routes: Vec::new() }),
        }
    }
}
