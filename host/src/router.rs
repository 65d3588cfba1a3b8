//! Where messages go: the way up from a device to its outboxes, and the table
//! from a cloud's channel to the device behind it.
//!
//! Immutable data: built from the configuration, replaced as a whole.

use std::collections::HashMap;
use std::sync::Arc;

use crate::cloud::Cloud;
use crate::message::{DeviceId, Time, Uplink};
use crate::outbox::{Class, Outbox};

/// Every message is checked for size before; this is the last line of defence.
const MAX_PAYLOAD: usize = 1 << 20;

/// One way up: a channel of a session.
#[derive(Clone)]
pub struct Route {
    /// The device's address in the cloud.
    pub channel: String,
    /// How to encode.
    pub cloud: Arc<dyn Cloud>,
    /// Where it waits for the session.
    pub outbox: Arc<Outbox>,
}

/// All ways up of one device.
#[derive(Clone)]
pub struct Outlet {
    /// The device.
    pub device: DeviceId,
    /// Its channels, one a session.
    pub routes: Vec<Route>,
}

impl Outlet {
    /// Encodes a message for each session and puts it into its outbox.
    pub fn send(&self, now: Time, uplink: &Uplink<'_>) {
        let class = match uplink {
            Uplink::Telemetry { .. } | Uplink::Log { .. } | Uplink::CommandLog { .. } => Class::Stream,
            Uplink::Properties { .. } | Uplink::CommandResult { .. } => Class::Keep,
        };
        for route in &self.routes {
            let publication = route.cloud.encode(&route.channel, uplink);
            // What no broker takes would break the connection again and again.
            if publication.payload.len() > MAX_PAYLOAD {
                let (device, size) = (self.device.as_str(), publication.payload.len());
                tracing::error!(device, "dropped a message of {size} bytes; expected at most {MAX_PAYLOAD}");
                continue;
            }
            route.outbox.append(&self.device, class, now, publication);
        }
    }
}

/// Who is behind a channel of one session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recipient {
    /// The gateway itself.
    Gateway,
    /// A device.
    Device(DeviceId),
}

/// Channel → recipient, of one session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table(HashMap<String, Recipient>);

impl Table {
    /// The table for a gateway and its devices.
    pub fn new<'a>(cloud: &dyn Cloud, devices: impl Iterator<Item = &'a DeviceId>) -> Self {
        let mut table: HashMap<_, _> =
            devices.map(|device| (cloud.channel(device), Recipient::Device(device.clone()))).collect();
        table.insert(cloud.gateway_channel(), Recipient::Gateway);
        Table(table)
    }

    /// Who is behind a channel.
    pub fn find(&self, channel: &str) -> Option<&Recipient> {
        self.0.get(channel)
    }

    /// All channels.
    pub fn channels(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }
}
