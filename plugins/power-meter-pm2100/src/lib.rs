//! Driver for Schneider Electric PM2100 power meters.
//!
//! Owns when the meter is polled, what the cloud hears and what survives a
//! swap. Only ever reads: it changes nothing in the meter.

mod config;
mod identity;
mod readings;

use std::time::Duration;

use sandgate_driver::modbus::{ModbusError, Unit};
use sandgate_driver::{
    Attribute, Configuration, Context, Describe, Driver, Error, Found, Poller, Sample, TimerId, Turn, alerts, debug,
    export, publish_properties,
};

use config::Config;
use identity::{Identity, Memory};

/// The line's name under `driver.requests.modbus` in the manifest.
const LINE: &str = "line";
/// How often the properties are repeated.
const PROPERTIES_EVERY: Duration = Duration::from_secs(30);
/// The alert of a meter that does not answer.
const LOST: &str = "communication_failed";

/// One power meter.
struct PowerMeter {
    config: Config,
    unit: Unit,
    poller: Poller,
    identity: Option<Identity>,
}

impl Driver for PowerMeter {
    fn start(context: Context) -> Result<Self, Error> {
        let config: Config = context.configuration.read()?;
        let unit = open(&config)?;
        let poller = Poller::start("the meter", config.connection.poll(), PROPERTIES_EVERY)?;
        let identity = context.restored.and_then(|state| Memory::unpack(&state, config.connection.unit));
        let meter = PowerMeter { config, unit, poller, identity };
        // Otherwise the first answer of the meter brings them.
        if meter.identity.is_some() {
            meter.publish()?;
        }
        Ok(meter)
    }

    fn on_timer(&mut self, timer: TimerId) -> Result<(), Error> {
        match self.poller.turn(timer) {
            Turn::Poll => self.poll(),
            Turn::Properties => {
                self.identify();
                self.publish()
            }
        }
    }

    fn configure(&mut self, configuration: Configuration) -> Result<(), Error> {
        // All that can fail comes first: after an error the old configuration goes on.
        let config: Config = configuration.read()?;
        let unit = open(&config)?;
        self.poller.restart(config.connection.poll())?;
        if config.connection.unit != self.config.connection.unit {
            self.identity = None;
        }
        (self.config, self.unit) = (config, unit);
        Ok(())
    }

    fn snapshot(&self) -> Vec<u8> {
        Memory::pack(self.config.connection.unit, self.identity.as_ref())
    }
}

impl PowerMeter {
    /// Reads all quantities and sends them; a silent meter is no error of the driver.
    fn poll(&mut self) -> Result<(), Error> {
        let mut attributes: Vec<Attribute> = Vec::new();
        for block in &readings::BLOCKS {
            match self.unit.holding(block.first, block.count()) {
                Ok(registers) => attributes.extend(block.decode(&registers, self.config.meter.scale_kilo)?),
                Err(error) => return self.lost(&error),
            }
        }
        self.found(attributes)
    }

    fn found(&mut self, attributes: Vec<Attribute>) -> Result<(), Error> {
        let found = self.poller.found();
        if found == Found::Again {
            // It may be another one by now.
            self.identity = None;
        }
        if found != Found::Still && self.identity.is_none() {
            self.poller.properties_soon()?;
        }
        alerts::set(&[]).map_err(|rejected| format!("{rejected:?}"))?;
        let sample = Sample::new().with("status", "ok").with("conn_alerts", Vec::<String>::new());
        Ok(sample.with_all(attributes).send()?)
    }

    fn lost(&mut self, error: &ModbusError) -> Result<(), Error> {
        if let ModbusError::NotGranted(text) | ModbusError::InvalidArgument(text) = error {
            return Err(text.into());
        }
        self.poller.lost(LOST, &error.describe());
        alerts::unknown();
        let sample = Sample::new().with("status", "conn_error");
        Ok(sample.with("conn_alerts", vec![LOST.to_owned()]).send()?)
    }

    /// Asks the meter who it is, unless that is known. Best effort: the next
    /// turn of the properties tries again.
    fn identify(&mut self) {
        if self.identity.is_some() || !self.poller.is_answered() {
            return;
        }
        match Identity::read(&self.unit) {
            Ok(identity) => self.identity = Some(identity),
            Err(error) => debug!("reading the model: {}", error.describe()),
        }
    }

    fn publish(&self) -> Result<(), Error> {
        Ok(publish_properties(&identity::properties(self.identity.as_ref()))?)
    }
}

fn open(config: &Config) -> Result<Unit, Error> {
    Unit::open(LINE, config.connection.unit).map_err(|error| error.describe().into())
}

export!(PowerMeter);
