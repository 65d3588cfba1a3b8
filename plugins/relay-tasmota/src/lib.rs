//! Driver for relays and plugs that run Tasmota, over HTTP.
//!
//! Owns when the device is polled, what the cloud hears and what survives a
//! swap. Sends it no other commands than the switching that someone asks for.

mod address;
mod answer;
mod config;
mod device;
mod energy;
mod identity;
mod relays;

use std::time::Duration;

use sandgate_driver::http::HttpError;
use sandgate_driver::{
    Attribute, Command, CommandError, Configuration, Context, Driver, Error, Found, Poller, Sample, TimerId, Turn,
    alerts, debug, export, publish_properties, result,
};
use serde::{Deserialize, Serialize};

use answer::Failure;
use config::Config;
use device::Device;
use energy::Energy;
use identity::{Identity, Memory};
use relays::word;

/// How often the properties are read and published.
const PROPERTIES_EVERY: Duration = Duration::from_secs(600);
/// How soon they are tried again when they could not be read.
const PROPERTIES_AGAIN: Duration = Duration::from_secs(30);

/// One device with Tasmota.
struct Relay {
    config: Config,
    device: Device,
    poller: Poller,
    identity: Option<Identity>,
    /// Whether it has an energy chip; none until it was asked.
    has_energy: Option<bool>,
}

#[derive(Deserialize)]
struct Arguments {
    relay: Option<u8>,
}

/// What the commands answer.
#[derive(Serialize)]
struct Answer {
    state: Option<&'static str>,
    #[serde(flatten)]
    energy: Option<Energy>,
}

impl Driver for Relay {
    fn start(context: Context) -> Result<Self, Error> {
        let config: Config = context.configuration.read()?;
        let device = Device::new(&config.connection)?;
        let poller = Poller::start("the device", config.connection.poll(), PROPERTIES_EVERY)?;
        let memory = context.restored.and_then(|state| Memory::unpack(&state, &config.connection.url));
        let (identity, has_energy) = memory.map_or((None, None), |memory| (Some(memory.identity), memory.has_energy));
        Ok(Relay { config, device, poller, identity, has_energy })
    }

    fn on_timer(&mut self, timer: TimerId) -> Result<(), Error> {
        match self.poller.turn(timer) {
            Turn::Poll => self.poll(),
            Turn::Properties => self.publish(),
        }
    }

    fn handle_command(&mut self, command: Command) -> Result<Vec<Attribute>, CommandError> {
        let Arguments { relay } = command.read()?;
        match command.name.as_str() {
            "turn_on" => self.switch(relay, true),
            "turn_off" => self.switch(relay, false),
            "status" => self.status(relay),
            name => Err(CommandError::Unsupported(format!("no command {name}"))),
        }
    }

    fn configure(&mut self, configuration: Configuration) -> Result<(), Error> {
        // All that can fail comes first: after an error the old configuration goes on.
        let config: Config = configuration.read()?;
        let device = Device::new(&config.connection)?;
        self.poller.restart(config.connection.poll())?;
        if config.connection.url != self.config.connection.url {
            (self.identity, self.has_energy) = (None, None);
        }
        (self.config, self.device) = (config, device);
        Ok(())
    }

    fn snapshot(&self) -> Vec<u8> {
        Memory::pack(&self.config.connection.url, self.identity.as_ref(), self.has_energy)
    }
}

impl Relay {
    /// Reads state and energy and sends them; a silent device is no error of the driver.
    fn poll(&mut self) -> Result<(), Error> {
        match self.read() {
            Ok(attributes) => self.found(attributes),
            Err(failure) => self.lost(failure),
        }
    }

    fn read(&mut self) -> Result<Vec<Attribute>, Failure> {
        let mut attributes = self.device.relays()?.telemetry();
        if self.has_energy != Some(false) {
            let energy = self.device.energy()?;
            self.has_energy = Some(energy.is_some());
            attributes.extend(energy.iter().flat_map(Energy::telemetry));
        }
        Ok(attributes)
    }

    fn found(&mut self, attributes: Vec<Attribute>) -> Result<(), Error> {
        let found = self.poller.found();
        if found == Found::Again {
            // It may have other firmware or be another one by now.
            self.identity = None;
        }
        if found != Found::Still && self.identity.is_none() {
            self.poller.properties_soon()?;
        }
        alerts::set(&[]).map_err(|rejected| format!("{rejected:?}"))?;
        Ok(Sample::new().with_all(attributes).with("conn_alerts", Vec::<String>::new()).send()?)
    }

    fn lost(&mut self, failure: Failure) -> Result<(), Error> {
        self.poller.lost(failure.alert(), &failure.describe());
        alerts::unknown();
        let sample = Sample::new().with("status", "conn_error");
        sample.with("conn_alerts", vec![failure.alert().to_owned()]).send()?;
        match failure {
            // The device never saw it: what this driver made of the URL is wrong.
            Failure::Http(HttpError::InvalidRequest(text)) => Err(text.into()),
            _ => Ok(()),
        }
    }

    /// Reads and publishes the properties. Best effort: they are tried again,
    /// and after an outage they come by themselves.
    fn publish(&mut self) -> Result<(), Error> {
        if !self.poller.is_answered() {
            return Ok(());
        }
        // A chip may have been set up in the meantime.
        self.has_energy = None;
        match self.device.identity() {
            Ok(identity) => Ok(publish_properties(&self.identity.insert(identity).properties())?),
            Err(failure) => {
                debug!("reading the properties: {}", failure.describe());
                self.poller.properties_after(PROPERTIES_AGAIN)?;
                Ok(())
            }
        }
    }

    fn switch(&self, relay: Option<u8>, is_on: bool) -> Result<Vec<Attribute>, CommandError> {
        let state = self.device.switch(relay, is_on)?;
        // Telemetry shall follow at once; without the timer it follows with the next poll.
        let _ = self.poller.poll_soon();
        result(&Answer { state: state.map(word), energy: None })
    }

    fn status(&self, relay: Option<u8>) -> Result<Vec<Attribute>, CommandError> {
        let relays = self.device.relays()?;
        let state = match relay {
            None => relays.any(),
            Some(number) => relays
                .get(number)
                .ok_or_else(|| CommandError::InvalidArgument(format!("the device has no relay {number}")))?,
        };
        result(&Answer { state: state.map(word), energy: self.device.energy()? })
    }
}

export!(Relay);
