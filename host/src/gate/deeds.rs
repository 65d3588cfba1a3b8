//! What a driver has done on a tape, sorted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::message::{Attribute, CommandResult, Rejection, Value};
use crate::sandbox::boundary;
use crate::sandbox::contract::sandgate::driver::alerts::Alert;
use crate::sandbox::contract::sandgate::driver::can::{self, CanError};
use crate::sandbox::contract::sandgate::driver::http::Request;
use crate::sandbox::contract::sandgate::driver::io::IoError;
use crate::sandbox::contract::sandgate::driver::logging::Level;
use crate::sandbox::contract::sandgate::driver::modbus::ModbusError;
use crate::sandbox::contract::sandgate::driver::net::NetError;
use crate::sandbox::contract::sandgate::driver::serial::SerialError;
use crate::sandbox::contract::sandgate::driver::telemetry::{Sample, SendError};
use crate::tape::{Exchange, Tape};

/// Longer texts are cut.
const LONG: usize = 200;

/// See the module documentation.
#[derive(Debug, Default)]
pub(crate) struct Deeds {
    /// What was sent, and when.
    pub samples: Vec<(Duration, BTreeMap<String, Value>)>,
    /// The last ones.
    pub properties: BTreeMap<String, Value>,
    /// Each set of active alerts that was another one than before; none when nothing was known.
    pub alerts: Vec<Option<BTreeSet<String>>>,
    /// How often each thing was asked.
    pub requests: BTreeMap<String, u64>,
    /// What was written to Modbus units, or sent to web servers other than by GET, in order.
    pub writes: Vec<String>,
    /// Warnings and errors.
    pub logs: BTreeSet<String>,
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    postcard::from_bytes(bytes).ok()
}

impl Deeds {
    /// What is on a tape.
    pub fn of(tape: &Tape) -> Deeds {
        let mut deeds = Deeds::default();
        let mut handles: BTreeMap<u32, String> = BTreeMap::new();
        for call in tape.calls() {
            for exchange in &call.asked {
                // What has no answer has not happened.
                let _ = deeds.exchange(exchange, &mut handles);
            }
        }
        deeds
    }

    fn exchange(&mut self, exchange: &Exchange<'_>, handles: &mut BTreeMap<u32, String>) -> Option<()> {
        let name = boundary::import(exchange.number)?.name;
        let (arguments, answer) = (exchange.arguments, exchange.answer?);
        let rejected = || match read::<Result<(), SendError>>(answer)? {
            Ok(()) => Some(Vec::new()),
            Err(SendError::Rejected(rejected)) => Some(rejected),
            Err(_) => None,
        };
        match name {
            "telemetry.send" => {
                let (sample,): (Sample,) = read(arguments)?;
                let values = accepted(sample.attributes, &rejected()?);
                if !values.is_empty() {
                    self.samples.push((exchange.at, values));
                }
            }
            "properties.publish" => {
                let (attributes,): (Vec<Attribute>,) = read(arguments)?;
                self.properties.extend(accepted(attributes, &rejected()?));
            }
            "alerts.set" => {
                let (active,): (Vec<Alert>,) = read(arguments)?;
                let rejected = read::<Result<(), Vec<Rejection>>>(answer)?.err().unwrap_or_default();
                let is_taken = |id: &String| !rejected.iter().any(|rejection| rejection.name == *id);
                self.alert(Some(active.into_iter().map(|alert| alert.id).filter(is_taken).collect()));
            }
            "alerts.unknown" => self.alert(None),
            "logging.log" => {
                let (level, text): (Level, String) = read(arguments)?;
                if matches!(level, Level::Warning | Level::Error) {
                    self.logs.insert(cut(&text));
                }
            }
            "net.tcp-connection.connect" => {
                let (host, port, _): (String, u16, f64) = read(arguments)?;
                handles.insert(read::<Result<u32, NetError>>(answer)?.ok()?, format!("{host}:{port}"));
            }
            "net.tcp-connection.send" => {
                let (handle, bytes, _): (u32, Vec<u8>, f64) = read(arguments)?;
                let peer = handles.get(&handle).cloned().unwrap_or_default();
                self.request(format!("{peer} {}", bytes.escape_ascii()));
            }
            "can.channel.open" => {
                let (bus,): (String,) = read(arguments)?;
                handles.insert(read::<Result<u32, CanError>>(answer)?.ok()?, bus);
            }
            "can.channel.send" => {
                let (handle, frame): (u32, can::Frame) = read(arguments)?;
                let bus = handles.get(&handle).cloned().unwrap_or_default();
                let frame = crate::bus::Frame { id: frame.id, is_extended: frame.extended, data: frame.data };
                self.writes.push(format!("{bus} {frame}"));
            }
            "io.output.open" => {
                let (pin,): (String,) = read(arguments)?;
                handles.insert(read::<Result<u32, IoError>>(answer)?.ok()?, pin);
            }
            "io.output.set" => {
                let (handle, on): (u32, bool) = read(arguments)?;
                let pin = handles.get(&handle).cloned().unwrap_or_default();
                self.writes.push(format!("{pin} {}", if on { "on" } else { "off" }));
            }
            "io.output.pulse" => {
                let (handle, duration): (u32, f64) = read(arguments)?;
                let pin = handles.get(&handle).cloned().unwrap_or_default();
                self.writes.push(format!("{pin} pulse of {duration} ms"));
            }
            "serial.port.open" => {
                let (port,): (String,) = read(arguments)?;
                handles.insert(read::<Result<u32, SerialError>>(answer)?.ok()?, port);
            }
            "serial.port.write" => {
                let (handle, bytes): (u32, Vec<u8>) = read(arguments)?;
                let port = handles.get(&handle).cloned().unwrap_or_default();
                self.request(format!("{port} {}", bytes.escape_ascii()));
            }
            "modbus.unit.open" => {
                let (line, unit): (String, u8) = read(arguments)?;
                handles.insert(read::<Result<u32, ModbusError>>(answer)?.ok()?, format!("{line}/{unit}"));
            }
            "http.fetch" => {
                let (request,): (Request,) = read(arguments)?;
                let text = format!("{} {} {}", request.method, request.url, request.body.escape_ascii());
                match request.method.eq_ignore_ascii_case("GET") {
                    true => self.request(text),
                    false => self.writes.push(text),
                }
            }
            name if name.starts_with("modbus.unit.read_") => {
                let (handle, address, count): (u32, u16, u16) = read(arguments)?;
                let table = name.trim_start_matches("modbus.unit.");
                let unit = handles.get(&handle).cloned().unwrap_or_default();
                self.request(format!("{unit} {table} {address} x {count}"));
            }
            name if name.starts_with("modbus.unit.write_") => {
                let handle = read_handle(arguments)?;
                let unit = handles.get(&handle).cloned().unwrap_or_default();
                let shown = (boundary::import(exchange.number)?.show_arguments)(arguments);
                // Without the handle, which stands for the unit.
                let values = shown.split_once(", ").map_or("", |(_, values)| values).trim_end_matches(')');
                self.writes.push(format!("{unit} {} {values}", name.trim_start_matches("modbus.unit.")));
            }
            _ => {}
        }
        Some(())
    }

    fn alert(&mut self, now: Option<BTreeSet<String>>) {
        if self.alerts.last() != Some(&now) {
            self.alerts.push(now);
        }
    }

    fn request(&mut self, request: String) {
        *self.requests.entry(request.trim_end().to_owned()).or_default() += 1;
    }
}

fn read_handle(arguments: &[u8]) -> Option<u32> {
    postcard::take_from_bytes::<u32>(arguments).ok().map(|(handle, _)| handle)
}

/// The first part of a text.
pub(super) fn cut(text: &str) -> String {
    crate::text::cut(text, LONG).to_owned()
}

/// A result in words.
pub(super) fn shown(result: &CommandResult) -> String {
    match result {
        Ok(attributes) => cut(&serde_json::Value::from(crate::message::json_object(attributes)).to_string()),
        Err(error) => cut(&error.to_string()),
    }
}

/// What was taken of a sample.
fn accepted(attributes: Vec<Attribute>, rejected: &[Rejection]) -> BTreeMap<String, Value> {
    let is_taken = |attribute: &Attribute| !rejected.iter().any(|rejection| rejection.name == attribute.name);
    attributes.into_iter().filter(is_taken).map(|attribute| (attribute.name, attribute.value)).collect()
}
