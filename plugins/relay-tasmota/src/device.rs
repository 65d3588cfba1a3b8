//! A Tasmota device on the network: asks and switches.

use sandgate_driver::http::{HttpError, Request, fetch};
use sandgate_driver::{CommandError, Error, command_log};
use serde_json::Value as Json;

use crate::address::Address;
use crate::answer::{self, Failure, Fields};
use crate::config::Connection;
use crate::energy::Energy;
use crate::identity::Identity;
use crate::relays::{Relays, word};

/// Sends commands to one device, one at a time: its web server has no room
/// for more.
pub struct Device {
    address: Address,
    timeout: f64,
}

impl Device {
    /// Checks where the device is; does not talk to it.
    pub fn new(connection: &Connection) -> Result<Device, Error> {
        Ok(Device { address: Address::new(connection)?, timeout: connection.timeout_ms })
    }

    /// Reads which relays are on.
    pub fn relays(&self) -> Result<Relays, Failure> {
        let answer = self.ask("Status 11")?;
        match answer.get("StatusSTS") {
            Some(Json::Object(state)) => Ok(Relays::find(state)),
            _ => Err(Failure::Unexpected("expected StatusSTS in the answer to Status 11".into())),
        }
    }

    /// Reads the energy chip; none when there is none.
    pub fn energy(&self) -> Result<Option<Energy>, Failure> {
        match self.ask("Status 10") {
            Ok(answer) => Ok(Energy::find(&answer)),
            Err(Failure::Refused(_)) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Reads which device it is.
    pub fn identity(&self) -> Result<Identity, Failure> {
        Ok(Identity::find(&self.ask("Status 2")?, &self.ask("Status 5")?))
    }

    /// Switches a relay, the first one when none is named, and returns the
    /// state it has then; none when the device's word for it is unknown.
    pub fn switch(&self, relay: Option<u8>, is_on: bool) -> Result<Option<bool>, CommandError> {
        let number = relay.map(|number| number.to_string()).unwrap_or_default();
        let wanted = if is_on { "On" } else { "Off" };
        let answer = self.ask(&format!("Power{number} {wanted}")).map_err(|failure| switch_error(relay, failure))?;
        match Relays::find(&answer).get(relay.unwrap_or(1)) {
            Some(Some(state)) if state != is_on => {
                let (state, wanted) = (word(state), word(is_on));
                let why = "PulseTime, Interlock or PowerLock on the device may hold it";
                Err(CommandError::Failed(format!("the relay is {state} and not {wanted}; {why}")))
            }
            Some(Some(state)) => Ok(Some(state)),
            Some(None) => {
                command_log::write("the device took the command; its word for the new state is neither ON nor OFF");
                Ok(None)
            }
            None => Err(CommandError::Failed("the device took the command and does not tell the new state".into())),
        }
    }

    fn ask(&self, command: &str) -> Result<Fields, Failure> {
        let response = fetch(&Request {
            method: "GET".into(),
            url: self.address.url_of(command),
            headers: Vec::new(),
            body: Vec::new(),
            timeout: Some(self.timeout),
        })?;
        answer::fields(response.status, &response.body)
    }
}

/// A refusal means that there is no such relay; without an answer nobody knows
/// whether it switched.
fn switch_error(relay: Option<u8>, failure: Failure) -> CommandError {
    match (failure, relay) {
        (Failure::Refused(_), Some(number)) => {
            CommandError::InvalidArgument(format!("the device has no relay {number}"))
        }
        (Failure::Refused(text), None) => CommandError::Unsupported(format!("{text}: it may have no relay")),
        (Failure::Http(HttpError::TimedOut), _) => {
            CommandError::TimedOut("the device does not answer; whether it switched is unknown".into())
        }
        (other, _) => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_switch_says_what_is_wrong() {
        let refused = || Failure::Refused("the device refuses the command".into());
        let error = switch_error(Some(3), refused());
        assert_eq!(error, CommandError::InvalidArgument("the device has no relay 3".into()));
        assert!(matches!(switch_error(None, refused()), CommandError::Unsupported(_)));
        assert!(matches!(switch_error(None, Failure::Http(HttpError::TimedOut)), CommandError::TimedOut(_)));
        assert!(matches!(switch_error(None, Failure::Unauthorized), CommandError::Failed(_)));
    }
}
