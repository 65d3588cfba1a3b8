//! Driver for Deye and Sunsynk three-phase hybrid inverters.
//!
//! Owns when the inverter is polled, what the cloud hears and what survives a
//! swap. Writes to the inverter only when a command asks for it.

mod battery;
mod commands;
mod config;
mod faults;
mod nameplate;
mod problem;
mod readings;
mod setting;

use std::time::Duration;

use sandgate_driver::modbus::{ModbusError, Unit};
use sandgate_driver::{
    Attribute, Command, CommandError, Configuration, Context, Describe, Driver, Error, Found, Poller, Registers,
    Sample, TimerId, Turn, alerts, attribute, debug, export, publish_properties, warning,
};

use config::Config;
use nameplate::{Family, Memory, Nameplate};
use readings::Scales;

/// The line's name under `driver.requests.modbus` in the manifest.
const LINE: &str = "line";
/// How often the properties are read and published: they change with a visit
/// of the installer.
const PROPERTIES_EVERY: Duration = Duration::from_secs(300);
/// How soon they are tried again when they could not be read.
const PROPERTIES_AGAIN: Duration = Duration::from_secs(30);
/// The alert of an inverter that does not answer.
const LOST: &str = "communication_failed";

/// One inverter.
struct Inverter {
    config: Config,
    unit: Unit,
    poller: Poller,
    nameplate: Option<Nameplate>,
}

impl Driver for Inverter {
    fn start(context: Context) -> Result<Self, Error> {
        let config: Config = context.configuration.read()?;
        let unit = open(&config)?;
        let poller = Poller::start("the inverter", config.connection.poll(), PROPERTIES_EVERY)?;
        let nameplate = context.restored.and_then(|state| Memory::unpack(&state, config.connection.unit));
        Ok(Inverter { config, unit, poller, nameplate })
    }

    fn on_timer(&mut self, timer: TimerId) -> Result<(), Error> {
        match self.poller.turn(timer) {
            Turn::Poll => self.poll(),
            Turn::Properties => self.publish(),
        }
    }

    fn handle_command(&mut self, command: Command) -> Result<Vec<Attribute>, CommandError> {
        commands::handle(&self.unit, &command)
    }

    fn configure(&mut self, configuration: Configuration) -> Result<(), Error> {
        // All that can fail comes first: after an error the old configuration goes on.
        let config: Config = configuration.read()?;
        let unit = open(&config)?;
        self.poller.restart(config.connection.poll())?;
        if config.connection.unit != self.config.connection.unit {
            self.nameplate = None;
        }
        (self.config, self.unit) = (config, unit);
        Ok(())
    }

    fn snapshot(&self) -> Vec<u8> {
        Memory::pack(self.config.connection.unit, self.nameplate.as_ref())
    }
}

impl Inverter {
    /// Reads both blocks and sends them; a silent inverter is no error of the driver.
    fn poll(&mut self) -> Result<(), Error> {
        match self.read() {
            Ok((first, second, family)) => self.found(&first, &second, family),
            Err(error) => self.lost(&error),
        }
    }

    /// The scales depend on the nameplate, so that comes before all else.
    fn read(&mut self) -> Result<(Registers, Registers, Family), ModbusError> {
        if self.nameplate.is_none() {
            self.identify()?;
        }
        let family = self.nameplate.as_ref().and_then(Nameplate::family).unwrap_or(Family::LowVoltage);
        let (first, count) = readings::FIRST_BLOCK;
        let one = self.unit.holding(first, count)?;
        let (first, count) = readings::SECOND_BLOCK;
        Ok((one, self.unit.holding(first, count)?, family))
    }

    fn identify(&mut self) -> Result<(), ModbusError> {
        let registers = self.unit.holding(nameplate::FIRST, nameplate::COUNT)?;
        match Nameplate::decode(&registers) {
            Ok(nameplate) => {
                if nameplate.family().is_none() && self.nameplate.as_ref() != Some(&nameplate) {
                    let code = nameplate.device_type();
                    warning!("device type {code:#06x} is no three-phase hybrid; its values may be wrong");
                }
                self.nameplate = Some(nameplate);
            }
            // The count was checked by the host, so this cannot be; if it were, telemetry goes on.
            Err(error) => warning!("the nameplate does not decode: {}", error.text()),
        }
        Ok(())
    }

    fn found(&mut self, first: &Registers, second: &Registers, family: Family) -> Result<(), Error> {
        if self.poller.found() != Found::Still {
            // After an outage it may be another inverter, or have other firmware.
            self.poller.properties_soon()?;
        }
        let scales = Scales { family, pv_string_voltage: self.config.inverter.pv_string_voltage };
        let attributes = readings::decode(first, second, scales)?;
        alerts::set(&faults::active(first)?).map_err(|rejected| format!("{rejected:?}"))?;
        Ok(Sample::new().with_all(attributes).with("conn_alerts", Vec::<String>::new()).send()?)
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

    /// Reads and publishes the properties. Best effort: what cannot be read is
    /// left out and tried again.
    fn publish(&mut self) -> Result<(), Error> {
        let mut properties = vec![attribute("vendor", self.config.inverter.vendor.as_str())];
        if self.poller.is_answered()
            && let Err(problem) = self.read_properties(&mut properties)
        {
            debug!("reading the properties: {}", problem.text());
            self.poller.properties_after(PROPERTIES_AGAIN)?;
        }
        Ok(publish_properties(&properties)?)
    }

    fn read_properties(&mut self, properties: &mut Vec<Attribute>) -> Result<(), Error> {
        self.identify().map_err(|error| error.describe())?;
        let inverter = &self.config.inverter;
        properties.extend(self.nameplate.iter().flat_map(|nameplate| nameplate.properties(inverter)));
        if let Some(registers) = self.read_if_there(battery::BATTERY)? {
            properties.extend(battery::battery_properties(&registers, inverter.battery_voltage)?);
        }
        if let Some(registers) = self.read_if_there(battery::PARALLEL)? {
            properties.extend(battery::parallel_properties(&registers)?);
        }
        Ok(())
    }

    /// Reads a block that not every model has; one that refuses will refuse
    /// the next time too.
    fn read_if_there(&self, (first, count): (u16, u16)) -> Result<Option<Registers>, Error> {
        match self.unit.holding(first, count) {
            Ok(registers) => Ok(Some(registers)),
            Err(ModbusError::DeviceException(_)) => Ok(None),
            Err(error) => Err(error.describe().into()),
        }
    }
}

/// Opens the unit with the pause and patience that the inverter needs.
fn open(config: &Config) -> Result<Unit, Error> {
    let open = || {
        let unit = Unit::open(LINE, config.connection.unit)?;
        unit.set_pause(config.connection.pause_ms)?;
        unit.set_timeout(config.connection.timeout_ms)?;
        Ok(unit)
    };
    open().map_err(|error: ModbusError| error.describe().into())
}

export!(Inverter);
