//! What a session sees of the gateway, and what it tells and asks it.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::cloud::Greeting;
use crate::device::DeviceHandle;
use crate::message::{CommandRequest, DeviceId, Offer, OfferKind, SessionName};
use crate::router::{Recipient, Table};

/// What a session needs to know of the gateway; replaced as a whole.
#[derive(Clone, Default)]
pub struct Picture {
    /// Who is behind each channel.
    pub table: Table,
    /// What is said after each connect.
    pub greeting: Greeting,
    /// The devices that run.
    pub devices: HashMap<DeviceId, DeviceHandle>,
    /// What a cloud wants to know of those that run, and of the gateway.
    pub facts: HashMap<Recipient, Facts>,
}

/// What a cloud wants to know of a device before it commands it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The commands that it takes.
    pub commands: Vec<String>,
    /// The version of its software.
    pub version: Option<String>,
    /// What the cloud offered and it applied last: ids.
    pub applied: BTreeMap<OfferKind, String>,
}

/// What a session tells about itself.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SessionStatus {
    /// Whether it is connected and subscribed.
    pub connected: bool,
    /// Why not.
    pub problem: Option<String>,
    /// How often it has connected.
    pub connects: u64,
}

/// What a cloud wants of the gateway itself.
#[derive(Debug)]
pub enum Order {
    /// To carry out a command.
    Command(CommandRequest),
    /// To give a command to a device that has ended here: it may be starting afresh.
    Late {
        /// The device.
        device: DeviceId,
        /// The command.
        request: CommandRequest,
    },
    /// To let a device take over a configuration or software.
    Offer {
        /// The session that it came by.
        session: SessionName,
        /// The device.
        device: DeviceId,
        /// What is offered.
        offer: Offer,
        /// The configuration, or the description of the software.
        document: Json,
    },
}
