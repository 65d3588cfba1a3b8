//! What the gateway says of itself.

use super::{SessionEntry, Supervisor};
use crate::gateway;
use crate::message::{DeviceId, SessionName, Uplink, now};
use crate::router::{GATEWAY, Outlet};
use crate::status::{DeviceReport, SessionReport, Status, resident_memory};

impl Supervisor {
    /// The state of everything, as one value.
    pub(super) fn status(&self) -> Status {
        let devices = self.devices.iter().map(|(id, entry)| match &entry.handle {
            Some(handle) => DeviceReport::of(handle),
            None => {
                let stage = entry.work.stage();
                DeviceReport::without_driver(&DeviceId::new(id), &entry.statistics, entry.problem.clone(), stage)
            }
        });
        let sessions = self.sessions.iter().map(|(name, entry)| {
            let status = entry.status.borrow().clone();
            let report = SessionReport::new(status, entry.address.clone(), &entry.outbox, entry.refused.get());
            (name.to_string(), report)
        });
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: self.started.elapsed().as_secs(),
            memory: resident_memory(),
            sessions: sessions.collect(),
            devices: devices.collect(),
        }
    }

    pub(super) fn send_telemetry(&mut self) {
        let status = self.status();
        self.was_well = self.is_well();
        let (attributes, alerts) = gateway::telemetry(&status);
        self.send_as_gateway(&Uplink::Telemetry {
            time: now(),
            is_own: true,
            attributes: &attributes,
            alerts: &alerts,
            tells_alerts: self.told_alerts.as_ref() != Some(&alerts),
        });
        self.told_alerts = Some(alerts);
    }

    /// Whether no device has failed.
    pub(super) fn is_well(&self) -> bool {
        self.devices.values().all(|entry| match &entry.handle {
            Some(handle) => gateway::is_well_in(&handle.status.borrow().phase),
            None => entry.work.is_start() || entry.problem.is_none(),
        })
    }

    pub(super) fn send_as_gateway(&self, uplink: &Uplink<'_>) {
        for (name, entry) in &self.sessions {
            self.gateway_outlet(name, entry).send(uplink);
        }
    }

    pub(super) fn gateway_outlet(&self, name: &SessionName, entry: &SessionEntry) -> Outlet {
        let route = entry.cloud.gateway().map(|channel| entry.route(name, channel));
        Outlet { device: DeviceId::new(GATEWAY), routes: route.into_iter().collect() }
    }
}
