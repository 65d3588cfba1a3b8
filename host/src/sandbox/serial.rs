//! The import `serial`: bytes on granted serial ports.

use std::collections::BTreeMap;
use std::time::Duration;

use wasmtime::component::Resource;

use super::contract::sandgate::driver::serial::{Parity, SerialError, Settings};
use super::net::timeout;
use super::state::State;
use crate::config;
use crate::manifest::RequestKind;
use crate::serial::{self, Turn, Until};

/// A port that a driver has opened, by its name.
pub struct Port(String);

/// The ports that a device has for itself while it is called.
pub(super) type Turns = BTreeMap<String, Turn>;

/// At once.
const MAX_WRITE: usize = 4096;
const MAX_READ: u32 = 1 << 16;
const MAX_DELIMITER: usize = 16;

type Outcome<T> = wasmtime::Result<Result<T, SerialError>>;

impl From<serial::SerialError> for SerialError {
    fn from(error: serial::SerialError) -> Self {
        match error {
            serial::SerialError::TimedOut => SerialError::TimedOut,
            serial::SerialError::Unavailable(text) => SerialError::Unavailable(text),
            serial::SerialError::Busy => SerialError::Busy,
        }
    }
}

impl From<config::Parity> for Parity {
    fn from(parity: config::Parity) -> Self {
        match parity {
            config::Parity::None => Parity::None,
            config::Parity::Even => Parity::Even,
            config::Parity::Odd => Parity::Odd,
        }
    }
}

fn check(name: &str, count: usize, most: usize) -> Result<(), SerialError> {
    if (1..=most).contains(&count) {
        Ok(())
    } else {
        Err(SerialError::InvalidArgument(format!("{name}: expected 1 to {most} bytes, found {count}")))
    }
}

fn time(milliseconds: f64) -> Result<Duration, SerialError> {
    timeout(milliseconds).map_err(SerialError::InvalidArgument)
}

impl State {
    pub(super) fn open_port(&mut self, name: &str) -> Outcome<Resource<Port>> {
        if !self.lines.serial.contains_key(name) {
            let text = self.no_line(RequestKind::Serial, name);
            return Ok(Err(SerialError::NotGranted(text)));
        }
        Ok(Ok(self.table.push(Port(name.to_owned()))?))
    }

    pub(super) fn port_settings(&mut self, port: Resource<Port>) -> wasmtime::Result<Settings> {
        let Port(name) = self.table.get(&port)?;
        let settings = self.lines.serial.get(name).map(|port| port.settings.clone()).unwrap_or_default();
        Ok(Settings {
            baud_rate: settings.baud_rate,
            data_bits: settings.data_bits,
            parity: settings.parity.into(),
            stop_bits: settings.stop_bits,
        })
    }

    /// The device's turn at a port: the one that it has, or the next that it gets.
    async fn turn(&mut self, port: &Resource<Port>) -> Outcome<&mut Turn> {
        let name = self.table.get(port)?.0.clone();
        if self.turns.get(&name).is_some_and(Turn::is_over) {
            self.turns.remove(&name);
        }
        if !self.turns.contains_key(&name) {
            let Some(port) = self.lines.serial.get(&name) else { return Ok(Err(SerialError::Busy)) };
            match port.take(&self.outlet.device).await {
                Ok(turn) => drop(self.turns.insert(name.clone(), turn)),
                Err(error) => return Ok(Err(error.into())),
            }
        }
        Ok(self.turns.get_mut(&name).ok_or(SerialError::Busy))
    }

    pub(super) async fn serial_write(&mut self, port: Resource<Port>, bytes: Vec<u8>) -> Outcome<()> {
        if let Err(error) = check("bytes", bytes.len(), MAX_WRITE) {
            return Ok(Err(error));
        }
        Ok(match self.turn(&port).await? {
            Ok(turn) => turn.write(&bytes).await.map_err(SerialError::from),
            Err(error) => Err(error),
        })
    }

    async fn read_serial(
        &mut self,
        port: Resource<Port>,
        until: Until<'_>,
        (limit, milliseconds): (u32, f64),
    ) -> Outcome<Vec<u8>> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let patience = check("limit", limit, MAX_READ as usize).and_then(|()| time(milliseconds));
        let patience = match patience {
            Ok(patience) => patience,
            Err(error) => return Ok(Err(error)),
        };
        Ok(match self.turn(&port).await? {
            Ok(turn) => turn.read(until, limit, patience).await.map_err(SerialError::from),
            Err(error) => Err(error),
        })
    }

    pub(super) async fn serial_read(&mut self, port: Resource<Port>, limit: u32, timeout: f64) -> Outcome<Vec<u8>> {
        self.read_serial(port, Until::Any, (limit, timeout)).await
    }

    pub(super) async fn serial_read_exact(
        &mut self,
        port: Resource<Port>,
        count: u32,
        timeout: f64,
    ) -> Outcome<Vec<u8>> {
        self.read_serial(port, Until::Count, (count, timeout)).await
    }

    pub(super) async fn serial_read_until(
        &mut self,
        port: Resource<Port>,
        delimiter: Vec<u8>,
        limit: u32,
        timeout: f64,
    ) -> Outcome<Vec<u8>> {
        match check("delimiter", delimiter.len(), MAX_DELIMITER) {
            Ok(()) => self.read_serial(port, Until::Delimiter(&delimiter), (limit, timeout)).await,
            Err(error) => Ok(Err(error)),
        }
    }

    pub(super) async fn serial_read_frame(
        &mut self,
        port: Resource<Port>,
        silence: f64,
        limit: u32,
        timeout: f64,
    ) -> Outcome<Vec<u8>> {
        match time(silence) {
            Ok(silence) => self.read_serial(port, Until::Silence(silence), (limit, timeout)).await,
            Err(error) => Ok(Err(error)),
        }
    }

    pub(super) async fn serial_discard(&mut self, port: Resource<Port>) -> Outcome<()> {
        Ok(match self.turn(&port).await? {
            Ok(turn) => turn.discard().await.map_err(SerialError::from),
            Err(error) => Err(error),
        })
    }

    pub(super) fn serial_release(&mut self, port: Resource<Port>) -> wasmtime::Result<()> {
        let Port(name) = self.table.get(&port)?;
        self.turns.remove(name);
        Ok(())
    }
}
