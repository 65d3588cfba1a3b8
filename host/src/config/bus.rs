//! Field lines that the host owns.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::Span;
use crate::manifest::RequestKind;
use crate::network::Target;

/// A field line that the host owns.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bus {
    /// Modbus over TCP.
    ModbusTcp(ModbusTcp),
    /// Modbus RTU on a serial port.
    ModbusRtu(ModbusRtu),
    /// A serial port for whoever speaks something else than Modbus there.
    Serial(Serial),
    /// A CAN bus.
    Can(Can),
    /// A relay or another output.
    DigitalOutput(DigitalOutput),
    /// A contact or another input.
    DigitalInput(DigitalInput),
    /// A voltage, a current or a temperature.
    AnalogInput(AnalogInput),
}

impl Bus {
    /// What it is there for: the kind of request that it answers.
    pub fn kind(&self) -> RequestKind {
        match self {
            Bus::ModbusTcp(_) | Bus::ModbusRtu(_) => RequestKind::Modbus,
            Bus::Serial(_) => RequestKind::Serial,
            Bus::Can(_) => RequestKind::Can,
            Bus::DigitalOutput(_) | Bus::DigitalInput(_) | Bus::AnalogInput(_) => RequestKind::Io,
        }
    }
}

/// A Modbus TCP server or gateway.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModbusTcp {
    /// `host:port`.
    pub address: Target,
    /// How long a unit may take to answer.
    #[serde(default = "default_bus_timeout")]
    pub timeout: Span,
    /// Pause between the end of a transaction and the next; none by default.
    pub gap: Option<Span>,
}

/// A serial line with Modbus RTU.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModbusRtu {
    /// The serial port, such as `/dev/ttyUSB0`.
    pub port: PathBuf,
    /// Bits a second.
    #[serde(default = "default_baud_rate")]
    pub baud_rate: u32,
    /// Parity bit.
    #[serde(default)]
    pub parity: Parity,
    /// Stop bits, 1 or 2.
    #[serde(default = "default_stop_bits")]
    pub stop_bits: u8,
    /// How long a unit may take to answer.
    #[serde(default = "default_bus_timeout")]
    pub timeout: Span,
    /// Pause between the end of a transaction and the next; by default the
    /// 3.5 characters that the Modbus specification asks for.
    pub gap: Option<Span>,
}

/// A serial port without Modbus.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Serial {
    /// The serial port, such as `/dev/ttyUSB0`.
    pub port: PathBuf,
    /// Bits a second.
    pub baud_rate: u32,
    /// Bits of a byte, 5 to 8.
    pub data_bits: u8,
    /// Parity bit.
    pub parity: Parity,
    /// Stop bits, 1 or 2.
    pub stop_bits: u8,
}

impl Default for Serial {
    fn default() -> Self {
        Serial {
            port: PathBuf::new(),
            baud_rate: default_baud_rate(),
            data_bits: 8,
            parity: Parity::default(),
            stop_bits: default_stop_bits(),
        }
    }
}

/// A CAN bus of Linux. Who brings its interface up also sets its speed.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Can {
    /// Its interface, such as `can0`.
    pub interface: String,
}

/// A digital output of Linux's GPIO character devices.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DigitalOutput {
    /// The device, such as `/dev/gpiochip0`.
    pub chip: PathBuf,
    /// The pin's number there.
    pub line: u32,
    /// Whether it is on when its level is low.
    #[serde(default)]
    pub active_low: bool,
}

/// A digital input of Linux's GPIO character devices.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DigitalInput {
    /// The device, such as `/dev/gpiochip0`.
    pub chip: PathBuf,
    /// The pin's number there.
    pub line: u32,
    /// Whether it is on when its level is low.
    #[serde(default)]
    pub active_low: bool,
    /// The resistor at it; as it is when nothing is said.
    pub bias: Option<Bias>,
    /// How long a change has to last.
    pub debounce: Option<Span>,
}

/// The resistor at a digital input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bias {
    /// To the supply.
    PullUp,
    /// To ground.
    PullDown,
    /// None.
    Disabled,
}

/// An analog input of Linux's industrial I/O.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnalogInput {
    /// What its files begin with, such as `/sys/bus/iio/devices/iio:device0/in_voltage0`.
    pub channel: PathBuf,
    /// What its value in V, A or degrees Celsius is multiplied by: a divider, a shunt.
    #[serde(default = "default_factor")]
    pub factor: f64,
}

fn default_factor() -> f64 {
    1.0
}

/// The parity of a serial line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Parity {
    /// No parity bit.
    #[default]
    None,
    /// Even number of ones; the default of the Modbus specification.
    Even,
    /// Odd number of ones.
    Odd,
}

fn default_bus_timeout() -> Span {
    Span(Duration::from_secs(1))
}

fn default_baud_rate() -> u32 {
    9600
}

fn default_stop_bits() -> u8 {
    1
}
