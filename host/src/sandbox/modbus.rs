//! The import `modbus`: transactions on granted buses.

use std::time::Duration;

use tokio::time::Instant;
use tokio_modbus::{Request, Response};
use wasmtime::component::{Resource, ResourceTable};

use super::contract::sandgate::driver::modbus::ModbusError;
use super::net::timeout;
use super::state::State;
use crate::bus::{self, BusError, BusHandle, Manner};
use crate::config::WriteKind;
use crate::lines::{BusGrant, SIMULATED_TIMEOUT};
use crate::manifest::RequestKind;
use crate::network::{AccessError, Target};
use crate::sockets::Socket;
use crate::text;

/// A unit on a line, as one driver sees it.
pub struct Unit {
    line: UnitLine,
    unit: u8,
    timeout: Option<Duration>,
    pause: Duration,
    last: Option<Instant>,
}

/// How a unit is reached.
enum UnitLine {
    /// By a line that the operator has granted.
    Granted(BusGrant),
    /// By a line to an address that the operator has granted.
    Address {
        host: String,
        port: u16,
        /// The line, once the name is resolved.
        found: Option<BusHandle>,
        _socket: Socket,
    },
}

/// Lets go of the lines of a driver that are shared by address.
pub(super) fn close_all(table: &mut ResourceTable) {
    for unit in table.iter_mut().filter_map(|entry| entry.downcast_mut::<Unit>()) {
        if let UnitLine::Address { found, .. } = &mut unit.line {
            *found = None;
        }
    }
}

/// How Modbus TCP by address is written.
const TCP: &str = "tcp://";
/// How long a name server may take.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(3);

type Outcome<T> = wasmtime::Result<Result<T, ModbusError>>;

impl From<BusError> for ModbusError {
    fn from(error: BusError) -> Self {
        match error {
            BusError::TimedOut => ModbusError::TimedOut,
            BusError::Exception(code) => ModbusError::DeviceException(code),
            BusError::InvalidResponse(text) => ModbusError::InvalidResponse(text),
            BusError::Unavailable(text) => ModbusError::Unavailable(text),
            BusError::Busy => ModbusError::Busy,
        }
    }
}

fn check(name: &str, count: usize, most: usize) -> Result<(), ModbusError> {
    if (1..=most).contains(&count) {
        Ok(())
    } else {
        Err(ModbusError::InvalidArgument(format!("{name}: expected 1 to {most}, found {count}")))
    }
}

fn wrong_count(found: usize, expected: u16) -> ModbusError {
    ModbusError::InvalidResponse(format!("expected {expected} values, found {found}"))
}

fn unexpected(response: &Response) -> ModbusError {
    ModbusError::InvalidResponse(format!("expected values, found an answer to function {}", response.function_code()))
}

impl State {
    async fn transact(&mut self, handle: &Resource<Unit>, request: Request<'static>) -> Outcome<Response> {
        let is_urgent = self.command.is_some();
        let bus = match self.line_of(handle).await? {
            Ok(bus) => bus,
            Err(error) => return Ok(Err(error)),
        };
        let unit = self.table.get_mut(handle)?;
        if let Some(last) = unit.last.filter(|_| !unit.pause.is_zero()) {
            tokio::time::sleep_until(last + unit.pause).await;
        }
        let manner = Manner { timeout: unit.timeout, is_urgent };
        let result = bus.transact(unit.unit, request, manner).await;
        unit.last = Some(Instant::now());
        if let (UnitLine::Address { found, .. }, Err(BusError::Unavailable(_))) = (&mut unit.line, &result) {
            // The name may stand for another address by now.
            *found = None;
        }
        Ok(result.map_err(ModbusError::from))
    }

    /// The line of a unit; an address is looked up and held against the grants.
    async fn line_of(&mut self, handle: &Resource<Unit>) -> Outcome<BusHandle> {
        let (host, port) = match &self.table.get(handle)?.line {
            UnitLine::Granted(grant) => return Ok(Ok(grant.bus.clone())),
            UnitLine::Address { found: Some(found), .. } => return Ok(Ok(found.clone())),
            UnitLine::Address { host, port, .. } => (host.clone(), *port),
        };
        let line = match &self.field {
            Some(field) => match self.tcp.check_simulated(&host, port) {
                Ok(()) => {
                    let name = format!("{TCP}{host}:{port}");
                    Ok(bus::open_simulated(&name, field.line(&name), SIMULATED_TIMEOUT))
                }
                Err(error) => Err(error),
            },
            None => {
                let found = tokio::time::timeout(LOOKUP_TIMEOUT, self.tcp.resolve(&host, port, &self.lookups)).await;
                let found = found.unwrap_or_else(|_| Err(AccessError::Unresolved(host.clone())));
                found.map(|addresses| self.tcp_lines.open(addresses))
            }
        };
        let line = match line {
            Ok(line) => line.of(&self.outlet.device),
            Err(AccessError::NotGranted(text)) => {
                self.complain(&text, &text);
                return Ok(Err(ModbusError::NotGranted(text)));
            }
            Err(error) => return Ok(Err(ModbusError::Unavailable(error.to_string()))),
        };
        if let UnitLine::Address { found, .. } = &mut self.table.get_mut(handle)?.line {
            *found = Some(line.clone());
        }
        Ok(Ok(line))
    }

    async fn read_words(&mut self, handle: Resource<Unit>, count: u16, request: Request<'static>) -> Outcome<Vec<u16>> {
        if let Err(error) = check("count", usize::from(count), 125) {
            return Ok(Err(error));
        }
        let response = match self.transact(&handle, request).await? {
            Ok(Response::ReadHoldingRegisters(words) | Response::ReadInputRegisters(words)) => words,
            Ok(other) => return Ok(Err(unexpected(&other))),
            Err(error) => return Ok(Err(error)),
        };
        Ok(if response.len() == usize::from(count) { Ok(response) } else { Err(wrong_count(response.len(), count)) })
    }

    async fn read_bits(&mut self, handle: Resource<Unit>, count: u16, request: Request<'static>) -> Outcome<Vec<bool>> {
        if let Err(error) = check("count", usize::from(count), 2000) {
            return Ok(Err(error));
        }
        let mut response = match self.transact(&handle, request).await? {
            Ok(Response::ReadCoils(bits) | Response::ReadDiscreteInputs(bits)) => bits,
            Ok(other) => return Ok(Err(unexpected(&other))),
            Err(error) => return Ok(Err(error)),
        };
        // Bits come in whole bytes.
        if response.len() < usize::from(count) || response.len() >= usize::from(count) + 8 {
            return Ok(Err(wrong_count(response.len(), count)));
        }
        response.truncate(usize::from(count));
        Ok(Ok(response))
    }

    /// Writes `count` registers or coils from `address` on, if the grant covers them.
    async fn write(
        &mut self,
        handle: Resource<Unit>,
        (kind, address, count): (WriteKind, u16, usize),
        request: Request<'static>,
    ) -> Outcome<()> {
        let unit = self.table.get(&handle)?;
        if let UnitLine::Granted(grant) = &unit.line
            && let Err(text) = grant.access.check_write(unit.unit, kind, address, count, &self.units)
        {
            self.complain(&text, &text);
            return Ok(Err(ModbusError::NotGranted(text)));
        }
        Ok(self.transact(&handle, request).await?.map(|_| ()))
    }
}

impl State {
    pub(super) fn open_unit(&mut self, bus: String, unit: u8) -> Outcome<Resource<Unit>> {
        if let Some(address) = bus.strip_prefix(TCP) {
            return self.open_unit_at(address, unit);
        }
        let Some(handle) = self.lines.modbus.get(&bus).cloned() else {
            let text = self.no_line(RequestKind::Modbus, &bus);
            return Ok(Err(ModbusError::NotGranted(text)));
        };
        if let Err(text) = handle.access.check_unit(unit, &self.units) {
            self.complain(&text, &text);
            return Ok(Err(ModbusError::NotGranted(text)));
        }
        let line = UnitLine::Granted(handle);
        Ok(Ok(self.table.push(Unit { line, unit, timeout: None, pause: Duration::ZERO, last: None })?))
    }

    /// Opens a unit by the address of its line, under the grants for TCP.
    fn open_unit_at(&mut self, address: &str, unit: u8) -> Outcome<Resource<Unit>> {
        let target = address.parse::<Target>().ok().and_then(|target| target.host_and_port());
        let Some((host, port)) = target else {
            let text = format!("expected {TCP}HOST:PORT, found {TCP}{}", text::shortened(address, 100));
            return Ok(Err(ModbusError::InvalidArgument(text)));
        };
        if let Err(error) = self.tcp.check_name(&host, port) {
            let text = error.to_string();
            self.complain(&text, &text);
            return Ok(Err(ModbusError::NotGranted(text)));
        }
        let socket = match self.sockets.take() {
            Ok(socket) => socket,
            Err(text) => return Ok(Err(ModbusError::Unavailable(text))),
        };
        let line = UnitLine::Address { host, port, found: None, _socket: socket };
        Ok(Ok(self.table.push(Unit { line, unit, timeout: None, pause: Duration::ZERO, last: None })?))
    }

    pub(super) async fn read_coils(&mut self, unit: Resource<Unit>, address: u16, count: u16) -> Outcome<Vec<bool>> {
        self.read_bits(unit, count, Request::ReadCoils(address, count)).await
    }

    pub(super) async fn read_discrete_inputs(
        &mut self,
        unit: Resource<Unit>,
        address: u16,
        count: u16,
    ) -> Outcome<Vec<bool>> {
        self.read_bits(unit, count, Request::ReadDiscreteInputs(address, count)).await
    }

    pub(super) async fn read_holding_registers(
        &mut self,
        unit: Resource<Unit>,
        address: u16,
        count: u16,
    ) -> Outcome<Vec<u16>> {
        self.read_words(unit, count, Request::ReadHoldingRegisters(address, count)).await
    }

    pub(super) async fn read_input_registers(
        &mut self,
        unit: Resource<Unit>,
        address: u16,
        count: u16,
    ) -> Outcome<Vec<u16>> {
        self.read_words(unit, count, Request::ReadInputRegisters(address, count)).await
    }

    pub(super) async fn write_coil(&mut self, unit: Resource<Unit>, address: u16, value: bool) -> Outcome<()> {
        self.write(unit, (WriteKind::Coils, address, 1), Request::WriteSingleCoil(address, value)).await
    }

    pub(super) async fn write_register(&mut self, unit: Resource<Unit>, address: u16, value: u16) -> Outcome<()> {
        self.write(unit, (WriteKind::Registers, address, 1), Request::WriteSingleRegister(address, value)).await
    }

    pub(super) async fn write_coils(&mut self, unit: Resource<Unit>, address: u16, values: Vec<bool>) -> Outcome<()> {
        match check("values", values.len(), 1968) {
            Ok(()) => {
                let place = (WriteKind::Coils, address, values.len());
                self.write(unit, place, Request::WriteMultipleCoils(address, values.into())).await
            }
            Err(error) => Ok(Err(error)),
        }
    }

    pub(super) async fn write_registers(
        &mut self,
        unit: Resource<Unit>,
        address: u16,
        values: Vec<u16>,
    ) -> Outcome<()> {
        match check("values", values.len(), 123) {
            Ok(()) => {
                let place = (WriteKind::Registers, address, values.len());
                self.write(unit, place, Request::WriteMultipleRegisters(address, values.into())).await
            }
            Err(error) => Ok(Err(error)),
        }
    }

    pub(super) fn set_unit_timeout(&mut self, unit: Resource<Unit>, milliseconds: f64) -> Outcome<()> {
        let timeout = match timeout(milliseconds) {
            Ok(timeout) => timeout,
            Err(text) => return Ok(Err(ModbusError::InvalidArgument(text))),
        };
        self.table.get_mut(&unit)?.timeout = Some(timeout);
        Ok(Ok(()))
    }

    pub(super) fn set_unit_pause(&mut self, unit: Resource<Unit>, milliseconds: f64) -> Outcome<()> {
        if milliseconds == 0.0 {
            self.table.get_mut(&unit)?.pause = Duration::ZERO;
            return Ok(Ok(()));
        }
        let pause = match timeout(milliseconds) {
            Ok(pause) => pause,
            Err(text) => return Ok(Err(ModbusError::InvalidArgument(text.replace("timeout", "pause")))),
        };
        self.table.get_mut(&unit)?.pause = pause;
        Ok(Ok(()))
    }
}
