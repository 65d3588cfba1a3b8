//! Takes what a cloud sends to whom it is for: commands to devices, offers and
//! what concerns no single device to the gateway.

use std::sync::Arc;

use serde_json::Value as Json;
use tokio::sync::{mpsc, watch};

use super::acknowledgements::Receipt;
use super::complaints::Complaints;
use super::picture::{Order, Picture};
use crate::journal::{Journal, Seen};
use crate::message::{CommandError, CommandRequest, CommandResult, DeviceId, Offer, SessionName, Uplink};
use crate::outbox::Outbox;
use crate::router::{GATEWAY, Outlet, Recipient, Route};

/// See the module documentation.
pub(super) struct Reception {
    pub session: SessionName,
    /// The gateway as it is now.
    pub picture: watch::Receiver<Arc<Picture>>,
    /// Where orders for the gateway itself go.
    pub gateway: mpsc::Sender<Order>,
    /// Where commands are noted.
    pub journal: Arc<Journal>,
    /// Where answers go.
    pub outbox: Arc<Outbox>,
    /// Messages that could not be used.
    pub complaints: Complaints,
}

impl Reception {
    /// Gives a command to whom it is for, once; whoever cannot be given one is
    /// answered for. `receipt` is held until it is noted.
    pub(super) fn command(&self, recipient: &Recipient, request: CommandRequest, receipt: Receipt) {
        let picture = self.picture.borrow().clone();
        let (id, session) = (request.id.clone(), request.session.clone());
        let device = device_of(recipient);
        match self.journal.receive(&request, &device, receipt) {
            Seen::New => {}
            Seen::Before => return,
            Seen::Answered(result) => return self.answer(recipient, &id, &result),
        }
        let result = match recipient {
            Recipient::Gateway => self.order(Order::Command(request)),
            Recipient::Device(device) => match picture.devices.get(device) {
                Some(handle) if handle.is_alive() => handle.command(request, None),
                // It is being started, for the first time or afresh, or cannot be.
                _ => self.order(Order::Late { device: device.clone(), request }),
            },
        };
        if let Err(error) = result {
            self.journal.finish(&Arc::new(self.outlet(recipient)), session.as_ref(), &id, Err(error));
        }
    }

    /// What is offered and cannot be handed on now is offered again by the
    /// cloud, at the next connect at the latest.
    pub(super) fn offer(&self, device: DeviceId, offer: Offer, document: Json) {
        let order = Order::Offer { session: self.session.clone(), device, offer, document };
        if self.order(order).is_err() {
            let session = self.session.as_str();
            tracing::warn!(session, "the gateway is busy; an offer of the cloud is left for the next time");
        }
    }

    /// A command cannot be used, and whoever gave it is told.
    pub(super) fn unusable(&mut self, recipient: &Recipient, command: &str, problem: String) {
        self.complaints.refused(&format!("a command: {problem}"));
        self.answer(recipient, command, &Err(CommandError::InvalidArgument(problem)));
    }

    fn order(&self, order: Order) -> Result<(), CommandError> {
        self.gateway.try_send(order).map_err(|_| CommandError::Busy("the gateway is busy".into()))
    }

    fn answer(&self, recipient: &Recipient, command: &str, result: &CommandResult) {
        self.outlet(recipient).answer(Some(&self.session), &Uplink::CommandResult { command, result });
    }

    /// The way back of a recipient's answers.
    fn outlet(&self, recipient: &Recipient) -> Outlet {
        let channel = self.picture.borrow().table.channel(recipient).cloned();
        let (session, outbox) = (self.session.clone(), Arc::clone(&self.outbox));
        let route = channel.map(|channel| Route { session, channel, outbox, questions: None, binary_data: None });
        Outlet { device: device_of(recipient), routes: route.into_iter().collect() }
    }
}

fn device_of(recipient: &Recipient) -> DeviceId {
    match recipient {
        Recipient::Gateway => DeviceId::new(GATEWAY),
        Recipient::Device(device) => device.clone(),
    }
}
