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
    Attribute, Command, CommandError, Configuration, Context, Describe, Driver, Error, Registers, Sample, TimerId,
    alerts, attribute, debug, export, info, publish_properties, timers, warning,
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
/// The host calls for it once the present call is over: `start` stays free of
/// waiting, so that a swap takes no longer than the switch itself.
const AT_ONCE: Duration = Duration::from_millis(1);

/// One inverter.
struct Inverter {
    config: Config,
    unit: Unit,
    poll: TimerId,
    properties: TimerId,
    /// A single call for the properties, before their turn.
    properties_soon: Option<TimerId>,
    nameplate: Option<Nameplate>,
    /// How the last poll ended; none before the first.
    answers: Option<bool>,
}

impl Driver for Inverter {
    fn start(context: Context) -> Result<Self, Error> {
        let config: Config = context.configuration.read()?;
        let unit = open(&config)?;
        let poll = begin_polling(&config)?;
        let properties = timers::every(PROPERTIES_EVERY)?;
        let nameplate = context.restored.and_then(|state| Memory::unpack(&state, config.connection.unit));
        Ok(Inverter { config, unit, poll, properties, properties_soon: None, nameplate, answers: None })
    }

    fn on_timer(&mut self, timer: TimerId) -> Result<(), Error> {
        if timer == self.properties || self.properties_soon.take_if(|soon| *soon == timer).is_some() {
            return self.publish();
        }
        self.poll()
    }

    fn handle_command(&mut self, command: Command) -> Result<Vec<Attribute>, CommandError> {
        commands::handle(&self.unit, &command)
    }

    fn configure(&mut self, configuration: Configuration) -> Result<(), Error> {
        // All that can fail comes first: after an error the old configuration goes on.
        let config: Config = configuration.read()?;
        let unit = open(&config)?;
        let poll = begin_polling(&config)?;
        timers::cancel(self.poll);
        if config.connection.unit != self.config.connection.unit {
            self.nameplate = None;
        }
        (self.config, self.unit, self.poll, self.answers) = (config, unit, poll, None);
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
        let before = self.answers.replace(true);
        if before == Some(false) {
            info!("the inverter answers again");
        }
        if before != Some(true) {
            // After an outage it may be another inverter, or have other firmware.
            self.properties_soon = Some(timers::after(AT_ONCE)?);
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
        if self.answers.replace(false) != Some(false) {
            warning!("the inverter cannot be read: {}", error.describe());
        }
        alerts::unknown();
        let sample = Sample::new().with("status", "conn_error");
        Ok(sample.with("conn_alerts", vec!["communication_failed".to_owned()]).send()?)
    }

    /// Reads and publishes the properties. Best effort: what cannot be read is
    /// left out and tried again.
    fn publish(&mut self) -> Result<(), Error> {
        let mut properties = vec![attribute("vendor", self.config.inverter.vendor.as_str())];
        if self.answers == Some(true)
            && let Err(problem) = self.read_properties(&mut properties)
        {
            debug!("reading the properties: {}", problem.text());
            self.properties_soon = Some(timers::after(PROPERTIES_AGAIN)?);
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

/// Sets the timer of the poll, and a single one for a first poll now.
fn begin_polling(config: &Config) -> Result<TimerId, Error> {
    let poll = timers::every(config.connection.poll())?;
    timers::after(AT_ONCE)?;
    Ok(poll)
}

export!(Inverter);
