//! Reads from a tape what devices have answered.

use std::collections::HashMap;

use serde::de::DeserializeOwned;

use super::{Known, Part, Series, Table, key_of};
use crate::bus;
use crate::io::PinKind;
use crate::sandbox::boundary;
use crate::sandbox::contract::sandgate::driver::can::{self, CanError};
use crate::sandbox::contract::sandgate::driver::http;
use crate::sandbox::contract::sandgate::driver::io::{Counter, IoError};
use crate::sandbox::contract::sandgate::driver::modbus::ModbusError;
use crate::sandbox::contract::sandgate::driver::net::NetError;
use crate::sandbox::contract::sandgate::driver::serial::SerialError;
use crate::sandbox::contract::sandgate::driver::storage::StorageError;
use crate::tape::{Exchange, Tape};

impl Known {
    /// What devices have answered on a tape.
    pub(super) fn on(tape: &Tape) -> Known {
        let mut reader = Reader { handles: tape.header.handles.clone().into_iter().collect(), ..Reader::default() };
        for call in tape.calls() {
            for exchange in &call.asked {
                // What cannot be read is what the tape does not hold.
                let _ = reader.exchange(exchange);
            }
        }
        reader.known
    }
}

/// What is being read from a tape.
#[derive(Default)]
struct Reader {
    known: Known,
    /// What handles stand for: a unit on a line, or a peer.
    handles: HashMap<u32, String>,
    /// What each connection has sent last, if anything.
    sent: HashMap<u32, Vec<u8>>,
}

impl Reader {
    fn exchange(&mut self, exchange: &Exchange<'_>) -> Option<()> {
        let name = boundary::import(exchange.number)?.name;
        let (arguments, answer) = (exchange.arguments, exchange.answer?);
        match name {
            "modbus.unit.open" => {
                let (line, unit): (String, u8) = read(arguments)?;
                let handle = read::<Result<u32, ModbusError>>(answer)?.ok()?;
                self.handles.insert(handle, format!("{line}/{unit}"));
            }
            "modbus.unit.read_coils" | "modbus.unit.read_discrete_inputs" => {
                let table = if name.ends_with("coils") { Table::Coils } else { Table::Discrete };
                let bits = read::<Result<Vec<bool>, ModbusError>>(answer)?;
                self.registers(exchange, table, bits.map(|bits| bits.into_iter().map(u16::from).collect()))?;
            }
            "modbus.unit.read_holding_registers" => self.registers(exchange, Table::Holding, read(answer)?)?,
            "modbus.unit.read_input_registers" => self.registers(exchange, Table::Input, read(answer)?)?,
            "http.fetch" => {
                let (request,): (http::Request,) = read(arguments)?;
                let key = key_of(&request)?;
                self.known.web.entry(key).or_default().push(exchange.at, exchange.took, read(answer)?);
            }
            "net.tcp-connection.connect" => {
                let (host, port, _): (String, u16, f64) = read(arguments)?;
                let peer = format!("{host}:{port}");
                let connected = read::<Result<u32, NetError>>(answer)?;
                if let Ok(handle) = &connected {
                    self.handles.insert(*handle, peer.clone());
                    self.sent.remove(handle);
                }
                self.known.peers.entry(peer).or_default().connections.push(
                    exchange.at,
                    exchange.took,
                    connected.map(|_| Vec::new()),
                );
            }
            "serial.port.open" => {
                let (port,): (String,) = read(arguments)?;
                let handle = read::<Result<u32, SerialError>>(answer)?.ok()?;
                self.handles.insert(handle, port.clone());
                let connections = &mut self.known.peers.entry(port).or_default().connections;
                connections.push(exchange.at, exchange.took, Ok(Vec::new()));
            }
            "serial.port.write" => {
                let (handle, bytes): (u32, Vec<u8>) = read(arguments)?;
                self.sent(exchange, handle, bytes)?;
            }
            name if name.starts_with("serial.port.read") => {
                let (handle, _) = postcard::take_from_bytes::<u32>(arguments).ok()?;
                let part = read::<Result<Vec<u8>, SerialError>>(answer)?.map_err(|_| NetError::TimedOut);
                self.received(handle, (exchange.took, part))?;
            }
            "net.tcp-connection.send" => {
                let (handle, bytes, _): (u32, Vec<u8>, f64) = read(arguments)?;
                self.sent(exchange, handle, bytes)?;
            }
            "net.tcp-connection.receive" => {
                let (handle, _, _): (u32, u32, f64) = read(arguments)?;
                let part = (exchange.took, read::<Result<Vec<u8>, NetError>>(answer)?);
                self.received(handle, part)?;
            }
            "can.channel.open" => {
                let (bus,): (String,) = read(arguments)?;
                self.handles.insert(read::<Result<u32, CanError>>(answer)?.ok()?, bus);
            }
            "can.channel.monitor" | "can.channel.queue" => {
                let (channel, _) = postcard::take_from_bytes::<u32>(arguments).ok()?;
                let bus = self.handles.get(&channel)?.clone();
                self.handles.insert(read::<Result<u32, CanError>>(answer)?.ok()?, bus);
            }
            "can.monitor.pop" | "can.queue.pop" => {
                let (handle, _) = postcard::take_from_bytes::<u32>(arguments).ok()?;
                let bus = self.handles.get(&handle)?.clone();
                let frames = read::<Vec<can::Frame>>(answer)?.into_iter().map(|frame| {
                    (exchange.at, bus::Frame { id: frame.id, is_extended: frame.extended, data: frame.data })
                });
                self.known.frames.entry(bus).or_default().extend(frames);
            }
            "io.output.open" | "io.input.open" | "io.analog.open" => {
                let (pin,): (String,) = read(arguments)?;
                self.handles.insert(read::<Result<u32, IoError>>(answer)?.ok()?, pin.clone());
                let kind = match name {
                    "io.output.open" => PinKind::Output,
                    "io.input.open" => PinKind::Input,
                    _ => PinKind::Analog,
                };
                self.known.pin_kinds.insert(pin, kind);
            }
            "io.output.get" | "io.input.get" => {
                let answer = read::<Result<bool, IoError>>(answer)?;
                self.pin(exchange, "get", answer.map(|on| f64::from(u8::from(on))))?;
            }
            #[allow(clippy::cast_precision_loss)] // of pulses beyond 2^53
            "io.input.count" => {
                let answer = read::<Result<Counter, IoError>>(answer)?;
                self.pin(exchange, "count", answer.map(|counter| counter.count as f64))?;
            }
            "io.analog.read" => self.pin(exchange, "read", read(answer)?)?,
            "storage.get" => {
                let (key,): (String,) = read(arguments)?;
                if let Some(Ok(Some(value))) = read::<Result<Option<Vec<u8>>, StorageError>>(answer) {
                    // The first time it is read tells what was there before.
                    self.known.stored.entry(key).or_insert(value);
                }
            }
            _ => {}
        }
        Some(())
    }

    /// What was sent to a peer or a serial port.
    fn sent(&mut self, exchange: &Exchange<'_>, handle: u32, bytes: Vec<u8>) -> Option<()> {
        let peer = self.known.peers.entry(self.handles.get(&handle)?.clone()).or_default();
        let place = peer.answers.iter().position(|(sent, _)| *sent == bytes);
        let place = place.unwrap_or_else(|| {
            peer.answers.push((bytes.clone(), Series::default()));
            peer.answers.len() - 1
        });
        peer.answers.get_mut(place)?.1.push(exchange.at, exchange.took, Vec::new());
        self.sent.insert(handle, bytes);
        Some(())
    }

    /// What came after that, or before anything was sent.
    fn received(&mut self, handle: u32, part: Part) -> Option<()> {
        let peer = self.known.peers.entry(self.handles.get(&handle)?.clone()).or_default();
        match self.sent.get(&handle) {
            Some(bytes) => {
                let answers = peer.answers.iter_mut().find(|(sent, _)| sent == bytes);
                answers?.1.answers.last_mut()?.value.push(part);
            }
            None => peer.connections.answers.last_mut()?.value.as_mut().ok()?.push(part),
        }
        Some(())
    }

    /// What an input or an output has shown.
    fn pin(&mut self, exchange: &Exchange<'_>, what: &'static str, answer: Result<f64, IoError>) -> Option<()> {
        let (handle, _) = postcard::take_from_bytes::<u32>(exchange.arguments).ok()?;
        let name = self.handles.get(&handle)?.clone();
        let answer = answer.map_err(|error| format!("{error:?}"));
        self.known.pins.entry((name, what)).or_default().push(exchange.at, exchange.took, answer);
        Some(())
    }

    fn registers(
        &mut self,
        exchange: &Exchange<'_>,
        table: Table,
        values: Result<Vec<u16>, ModbusError>,
    ) -> Option<()> {
        let (handle, address, count): (u32, u16, u16) = read(exchange.arguments)?;
        let (line, unit) = self.handles.get(&handle)?.rsplit_once('/')?;
        let unit = self.known.units.entry((line.to_owned(), unit.parse().ok()?)).or_default();
        unit.0.entry((table, address, count)).or_default().push(exchange.at, exchange.took, values);
        Some(())
    }
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    postcard::from_bytes(bytes).ok()
}
