//! The lines of the configuration, open, and what of them a device is granted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::bus::{self, BusHandle, BusLine, Simulation};
use crate::can::CanBus;
use crate::config::{Bus, Can, Grants, ModbusAccess, Serial};
use crate::io::{Pin, PinKind};
use crate::manifest::{RequestKind, Requests};
use crate::message::DeviceId;
use crate::serial::SerialPort;

/// How long a unit on a simulated line may take, as on a real one.
pub const SIMULATED_TIMEOUT: Duration = Duration::from_secs(1);

/// See the module documentation.
#[derive(Default)]
pub struct Lines {
    open: BTreeMap<String, Line>,
    simulation: Option<Arc<dyn Simulation>>,
}

enum Line {
    Modbus(BusLine),
    Serial(SerialPort),
    Can(CanBus),
    Io(Pin),
}

/// A granted Modbus line: what a device may do there, and how.
#[derive(Debug, Clone)]
pub struct BusGrant {
    /// The line.
    pub bus: BusHandle,
    /// The units and writes that are granted.
    pub access: ModbusAccess,
}

/// What a device may use, by its driver's names.
#[derive(Clone, Default)]
pub struct Granted {
    /// Modbus lines.
    pub modbus: BTreeMap<String, BusGrant>,
    /// Serial ports.
    pub serial: BTreeMap<String, SerialPort>,
    /// CAN buses.
    pub can: BTreeMap<String, CanBus>,
    /// Inputs and outputs.
    pub io: BTreeMap<String, Pin>,
}

impl Lines {
    /// Opens all.
    pub fn of(buses: &BTreeMap<String, Bus>) -> Lines {
        let mut lines = Lines::default();
        buses.iter().for_each(|(name, bus)| lines.open(name, bus));
        lines
    }

    /// Puts simulated devices in the place of all that are on them.
    pub fn simulate(&mut self, simulation: Arc<dyn Simulation>, buses: &BTreeMap<String, Bus>) {
        self.simulation = Some(simulation);
        buses.iter().for_each(|(name, bus)| self.open(name, bus));
    }

    /// What is simulated, if anything.
    pub fn simulation(&self) -> Option<&Arc<dyn Simulation>> {
        self.simulation.as_ref()
    }

    /// Opens one, in the place of an earlier one.
    pub fn open(&mut self, name: &str, bus: &Bus) {
        let line = match (bus, &self.simulation) {
            (Bus::Serial(settings), simulation) => Line::Serial(SerialPort::new(name, settings, simulation.clone())),
            (Bus::Can(settings), simulation) => Line::Can(CanBus::open(name, settings, simulation.clone())),
            (Bus::DigitalOutput(_), Some(simulation)) => Line::Io(pin(name, PinKind::Output, simulation.as_ref())),
            (Bus::DigitalInput(_), Some(simulation)) => Line::Io(pin(name, PinKind::Input, simulation.as_ref())),
            (Bus::AnalogInput(_), Some(simulation)) => Line::Io(pin(name, PinKind::Analog, simulation.as_ref())),
            (Bus::DigitalOutput(settings), None) => Line::Io(Pin::output(name, settings)),
            (Bus::DigitalInput(settings), None) => Line::Io(Pin::input(name, settings)),
            (Bus::AnalogInput(settings), None) => Line::Io(Pin::analog(name, settings)),
            (_, Some(simulation)) => Line::Modbus(simulated(name, simulation.as_ref())),
            (Bus::ModbusTcp(bus), None) => Line::Modbus(bus::open_tcp(name, bus)),
            (Bus::ModbusRtu(bus), None) => Line::Modbus(bus::open_rtu(name, bus)),
        };
        self.open.insert(name.to_owned(), line);
    }

    /// Closes one, when the last device has let go of it.
    pub fn close(&mut self, name: &str) {
        self.open.remove(name);
    }

    /// What a device is granted.
    pub fn granted(&self, device: &DeviceId, grants: &Grants) -> Granted {
        let mut granted = Granted::default();
        for (name, grant) in &grants.modbus {
            if let Some(Line::Modbus(line)) = self.open.get(&grant.bus) {
                let grant = BusGrant { bus: line.of(device), access: grant.access.clone() };
                granted.modbus.insert(name.clone(), grant);
            }
        }
        for (name, bus) in &grants.serial {
            if let Some(Line::Serial(port)) = self.open.get(bus) {
                granted.serial.insert(name.clone(), port.clone());
            }
        }
        for (name, bus) in &grants.can {
            if let Some(Line::Can(bus)) = self.open.get(bus) {
                granted.can.insert(name.clone(), bus.clone());
            }
        }
        for (name, bus) in &grants.io {
            if let Some(Line::Io(pin)) = self.open.get(bus) {
                granted.io.insert(name.clone(), pin.clone());
            }
        }
        granted
    }
}

fn pin(name: &str, kind: PinKind, simulation: &dyn Simulation) -> Pin {
    Pin::simulated(name, kind, simulation.pin(name))
}

fn simulated(name: &str, simulation: &dyn Simulation) -> BusLine {
    bus::open_simulated(name, simulation.line(name), SIMULATED_TIMEOUT)
}

impl Granted {
    /// Adds a Modbus line with simulated units.
    pub fn add_modbus(&mut self, name: &str, simulation: &dyn Simulation, device: &DeviceId, access: ModbusAccess) {
        let grant = BusGrant { bus: simulated(name, simulation).of(device), access };
        self.modbus.insert(name.to_owned(), grant);
    }

    /// Adds a serial port with a simulated device.
    pub fn add_serial(&mut self, name: &str, simulation: Arc<dyn Simulation>) {
        let port = SerialPort::new(name, &Serial::default(), Some(simulation));
        self.serial.insert(name.to_owned(), port);
    }

    /// Adds a simulated CAN bus.
    pub fn add_can(&mut self, name: &str, simulation: Arc<dyn Simulation>) {
        let settings = Can { interface: name.to_owned() };
        self.can.insert(name.to_owned(), CanBus::open(name, &settings, Some(simulation)));
    }

    /// Adds a simulated input or output.
    pub fn add_io(&mut self, name: &str, kind: PinKind, simulation: &dyn Simulation) {
        self.io.insert(name.to_owned(), pin(name, kind, simulation));
    }

    /// What of it a driver asks for.
    pub fn requested(&self, requests: &Requests) -> Granted {
        Granted {
            modbus: covered(&self.modbus, RequestKind::Modbus, requests),
            serial: covered(&self.serial, RequestKind::Serial, requests),
            can: covered(&self.can, RequestKind::Can, requests),
            io: covered(&self.io, RequestKind::Io, requests),
        }
    }
}

fn covered<T: Clone>(lines: &BTreeMap<String, T>, kind: RequestKind, requests: &Requests) -> BTreeMap<String, T> {
    let covered = lines.iter().filter(|(name, _)| requests.covers(kind, name));
    covered.map(|(name, line)| (name.clone(), line.clone())).collect()
}
