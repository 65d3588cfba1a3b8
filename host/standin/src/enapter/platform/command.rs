//! The platform's side of commands: sending them, and ending those that no
//! device answers.

use serde_json::{Value as Json, json};

use super::{Platform, Refused, Request};
use crate::enapter::event::Kind;
use crate::enapter::execution::{Execution, Order, State};
use crate::enapter::topic::short;
use crate::time::Time;
use sandgate_manifest::{ArgumentError, Manifest};

impl Platform {
    /// Opens a command and returns what is to be published.
    ///
    /// Arguments are passed on as they are: in the cloud only the form for
    /// people checks them. What does not fit the blueprint gets a line.
    pub fn execute(&mut self, id: &str, order: Order, now: Time) -> Result<Request, Refused> {
        let address = order.device.clone();
        let Some(channel) = self.channels.get(&address) else {
            return Err(Refused::NotFound(format!("no device {address}")));
        };
        if channel.gone.is_some() {
            return Err(Refused::Gone(address.channel));
        }
        let manifest = self.blueprint(&address);
        let problem = manifest.and_then(|manifest| manifest.check_command(&order.name, order.arguments.clone()).err());
        let shown = hidden(manifest, &order);
        let payload = json!({"id": id, "name": order.name, "arguments": order.arguments});
        let text = format!("{} NEW {shown}", short(&order.name));
        let name = short(&order.name);
        self.executions.open(id.to_owned(), order, now).ok_or(Refused::TooMany)?;
        self.events.tell(now, Kind::Command, Some(&address), &text);
        if let Some(problem) = problem {
            let text = match problem {
                ArgumentError::UnknownCommand(..) => format!("the blueprint declares {problem}"),
                ArgumentError::Invalid(_) => format!("{name}: the cloud's form would not send this: {problem}"),
            };
            self.events.tell(now, Kind::Note, Some(&address), &text);
        }
        Ok(Request { topic: address.requests(), payload: payload.to_string().into_bytes() })
    }

    /// Notes how many clients a command was delivered to.
    pub fn delivered(&mut self, id: &str, receivers: usize, now: Time) {
        if let Some(execution) = self.executions.find(id).filter(|_| receivers == 0) {
            let address = execution.order.device.clone();
            let text = format!("{} is lost: nobody is subscribed to {}", execution.order.name, address.requests());
            self.events.tell(now, Kind::Note, Some(&address), &text);
        }
    }

    /// Ends the commands whose time is over; returns when to look again.
    pub fn expire(&mut self, now: Time) -> Option<Time> {
        let late: Vec<_> =
            self.executions.expire(now).iter().map(|late| (late.order.clone(), progress(late))).collect();
        for (order, state) in late {
            let text = format!("{} {state} after {}", order.name, humantime::format_duration(order.timeout));
            self.events.tell(now, Kind::Command, Some(&order.device), &text);
        }
        self.executions.next_deadline()
    }
}

/// The word for how far a command is, in a line.
pub(super) fn progress(execution: &Execution) -> &'static str {
    match execution.state {
        State::InProgress => "log",
        state => state.name(),
    }
}

/// The arguments for a line, without what must not show.
fn hidden(manifest: Option<&Manifest>, order: &Order) -> String {
    let declared = manifest.and_then(|manifest| manifest.blueprint.commands.get(&order.name));
    let is_secret = |name: &str| {
        declared.and_then(|command| command.arguments.get(name)).is_some_and(|argument| argument.sensitive)
    };
    let show = |(name, value): (&String, &Json)| match is_secret(name) {
        true => format!("{name}=…"),
        false => format!("{name}={}", short(&value.to_string())),
    };
    order.arguments.iter().take(20).map(show).collect::<Vec<_>>().join(" ")
}
