//! Takes what a cloud sends to whom it is for: commands to devices, offers and
//! what concerns no single device to the gateway.

use std::sync::Arc;

use serde_json::Value as Json;
use tokio::sync::{mpsc, watch};

use super::complaints::Complaints;
use super::picture::{Order, Picture};
use crate::clock::Moment;
use crate::message::{CommandError, CommandRequest, DeviceId, Offer, SessionName, Uplink};
use crate::outbox::Outbox;
use crate::router::{self, GATEWAY, Recipient};

/// See the module documentation.
pub(super) struct Reception {
    pub session: SessionName,
    /// The gateway as it is now.
    pub picture: watch::Receiver<Arc<Picture>>,
    /// Where orders for the gateway itself go.
    pub gateway: mpsc::Sender<Order>,
    /// Where answers go.
    pub outbox: Arc<Outbox>,
    /// Messages that could not be used.
    pub complaints: Complaints,
}

impl Reception {
    /// Gives a command to whom it is for; whoever cannot be given one is answered for.
    pub(super) fn command(&self, recipient: &Recipient, request: CommandRequest) {
        let picture = self.picture.borrow().clone();
        let id = request.id.clone();
        let result = match recipient {
            Recipient::Gateway => self.order(Order::Command(request)),
            Recipient::Device(device) => match picture.devices.get(device) {
                Some(handle) if handle.is_alive() => handle.command(request, None),
                // It is being started, for the first time or afresh, or cannot be.
                _ => self.order(Order::Late { device: device.clone(), request }),
            },
        };
        if let Err(error) = result {
            self.answer(recipient, &id, error);
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
        self.answer(recipient, command, CommandError::InvalidArgument(problem));
    }

    fn order(&self, order: Order) -> Result<(), CommandError> {
        self.gateway.try_send(order).map_err(|_| CommandError::Busy("the gateway is busy".into()))
    }

    fn answer(&self, recipient: &Recipient, command: &str, error: CommandError) {
        let result = Err(error);
        let picture = self.picture.borrow();
        let Some(channel) = picture.table.channel(recipient) else { return };
        let device = match recipient {
            Recipient::Gateway => DeviceId::new(GATEWAY),
            Recipient::Device(device) => device.clone(),
        };
        let uplink = Uplink::CommandResult { command, result: &result };
        router::send(channel, &self.outbox, &device, Moment::now(), &uplink);
    }
}
