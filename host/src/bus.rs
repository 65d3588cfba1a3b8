//! Field lines that the host owns: one task a line, one transaction at a time.
//!
//! Devices hold a `BusHandle` and wait for their turn, which `schedule` gives.
//! The task keeps the connection, the pause between transactions, and
//! quarantines units that do not answer a device, for that device, so that
//! they do not slow the others down.

mod frame;
mod line;
mod pin;
mod retry;
mod schedule;
mod simulated;
mod tcp_lines;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_modbus::client::{Client, Context};
use tokio_modbus::slave::{Slave, SlaveContext};
use tokio_modbus::{Request, Response};

use crate::config::{ModbusRtu, ModbusTcp};
use crate::message::DeviceId;
pub use frame::{BASE_ID, EXTENDED_ID, FarWire, Frame, MOST_DATA, Wire, wire};
use line::{Line, silent_interval};
pub use pin::Pin;
pub use retry::Retry;
use schedule::{Next, Schedule, Wanted};
pub use simulated::{Simulation, Units};
pub use tcp_lines::TcpLines;

/// How many transactions may wait for a line.
const QUEUE: usize = 256;
/// Time-outs in a row after which a unit is quarantined for the device that asked.
const PATIENCE: u32 = 3;
const SHORTEST_QUARANTINE: Duration = Duration::from_secs(2);
const LONGEST_QUARANTINE: Duration = Duration::from_secs(60);
/// How long a transaction may take, the wait for the line included.
const LONGEST_WAIT: Duration = Duration::from_secs(8);
/// Upper bound on a driver's timeout, as a multiple of the line's.
const LONGEST_TIMEOUT: u32 = 5;
/// After so long without a transaction a connection that nobody has configured is closed.
const IDLE: Duration = Duration::from_secs(60);
/// Silent units of a device that are told of.
const TOLD: usize = 10;

/// Why a transaction failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// The unit did not answer in time.
    #[error("timed out")]
    TimedOut,
    /// The unit refused with a Modbus exception code.
    #[error("Modbus exception {0}")]
    Exception(u8),
    /// The answer does not belong to the request.
    #[error("invalid response: {0}")]
    InvalidResponse(String),
    /// The line cannot be opened.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// Too many transactions wait.
    #[error("busy")]
    Busy,
}

/// Gives a device access to a line. The line closes with its last handle.
#[derive(Debug, Clone)]
pub struct BusHandle {
    line: BusLine,
    device: DeviceId,
}

#[derive(Debug)]
struct Transaction {
    device: DeviceId,
    unit: u8,
    request: Request<'static>,
    timeout: Option<Duration>,
    is_urgent: bool,
    answer: oneshot::Sender<Result<Response, BusError>>,
}

/// How a transaction is carried out.
#[derive(Debug, Clone, Copy, Default)]
pub struct Manner {
    /// How long the unit may take to answer, if not as long as the line says.
    pub timeout: Option<Duration>,
    /// Whether somebody waits for a command.
    pub is_urgent: bool,
}

/// A line, from which devices get their handles.
#[derive(Clone)]
pub struct BusLine(Way);

/// How a transaction gets to a line.
#[derive(Clone)]
enum Way {
    /// To the task that shares it.
    Task(mpsc::Sender<Transaction>),
    /// At once: there is one device only.
    Alone(Arc<Mutex<Bus>>),
}

impl BusLine {
    /// The handle of one device.
    pub fn of(&self, device: &DeviceId) -> BusHandle {
        BusHandle { line: self.clone(), device: device.clone() }
    }
}

impl std::fmt::Debug for BusLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a line")
    }
}

impl BusHandle {
    /// Waits for the line and carries out one transaction.
    pub async fn transact(&self, unit: u8, request: Request<'static>, manner: Manner) -> Result<Response, BusError> {
        let Manner { timeout, is_urgent } = manner;
        let line = match &self.line.0 {
            Way::Task(line) => line,
            Way::Alone(bus) => {
                let mut bus = bus.lock().await;
                if bus.rests(&self.device, unit) && !is_urgent {
                    return Err(BusError::TimedOut);
                }
                return bus.carry_out((&self.device, unit), request, timeout).await;
            }
        };
        let (answer, result) = oneshot::channel();
        let transaction = Transaction { device: self.device.clone(), unit, request, timeout, is_urgent, answer };
        line.try_send(transaction).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => BusError::Busy,
            mpsc::error::TrySendError::Closed(_) => BusError::Unavailable("the line is closed".into()),
        })?;
        // A line full of silent units must not use up the caller's own limit.
        match tokio::time::timeout(LONGEST_WAIT, result).await {
            Ok(result) => result.unwrap_or_else(|_| Err(BusError::Unavailable("the line is closed".into()))),
            Err(_) => Err(BusError::Busy),
        }
    }
}

/// Starts the task of a line to a Modbus TCP server or gateway.
pub fn open_tcp(name: &str, bus: &ModbusTcp) -> BusLine {
    let (host, port) = bus.address.host_and_port().unwrap_or_default();
    start(Bus::new(name, Line::Tcp(host, port), bus.timeout.0, bus.gap.map_or(Duration::ZERO, |gap| gap.0)))
}

/// Starts the task of a Modbus RTU line on a serial port.
pub fn open_rtu(name: &str, bus: &ModbusRtu) -> BusLine {
    let gap = bus.gap.map_or_else(|| silent_interval(bus.baud_rate), |gap| gap.0);
    let line =
        Line::Rtu { port: bus.port.clone(), baud_rate: bus.baud_rate, parity: bus.parity, stop_bits: bus.stop_bits };
    start(Bus::new(name, line, bus.timeout.0, gap))
}

fn start(bus: Bus) -> BusLine {
    let (line, inbox) = mpsc::channel(QUEUE);
    tokio::spawn(bus.run(inbox));
    BusLine(Way::Task(line))
}

/// The same for a line of one device with simulated units.
pub fn open_simulated(name: &str, units: Arc<dyn Units>, timeout: Duration) -> BusLine {
    let bus = Bus::new(name, Line::Simulated(units), timeout, Duration::ZERO);
    BusLine(Way::Alone(Arc::new(Mutex::new(bus))))
}

struct Bus {
    name: String,
    line: Line,
    timeout: Duration,
    gap: Duration,
    connection: Option<Context>,
    last: Option<Instant>,
    retry: Retry,
    /// How units behaved to devices that asked them.
    health: HashMap<(DeviceId, u8), Health>,
    schedule: Schedule,
    waiting: Vec<Transaction>,
}

/// How a unit behaved lately.
#[derive(Debug, Default)]
struct Health {
    /// Whether it has ever answered.
    is_known: bool,
    timeouts: u32,
    ask_again: Option<Instant>,
}

impl Bus {
    fn new(name: &str, line: Line, timeout: Duration, gap: Duration) -> Self {
        Bus {
            name: name.to_owned(),
            line,
            timeout,
            gap,
            connection: None,
            last: None,
            retry: Retry::default(),
            health: HashMap::new(),
            schedule: Schedule::new(Instant::now()),
            waiting: Vec::new(),
        }
    }

    async fn run(mut self, mut inbox: mpsc::Receiver<Transaction>) {
        loop {
            while let Ok(transaction) = inbox.try_recv() {
                self.take(transaction);
            }
            if self.idle_at().is_some_and(|time| time <= Instant::now()) {
                self.connection = None;
            }
            // The device may have been stopped, or have given up, while it waited.
            self.waiting.retain(|transaction| !transaction.answer.is_closed());
            let wanted: Vec<Wanted> = self.waiting.iter().map(|transaction| self.wanted(transaction)).collect();
            let next = self.schedule.next(&wanted, Instant::now());
            let wait = match next {
                Next::Now(place) => {
                    let transaction = self.waiting.remove(place);
                    self.serve(transaction).await;
                    continue;
                }
                Next::At(time) => Some(time),
                Next::Nothing => self.idle_at(),
            };
            let wait = async move {
                match wait {
                    Some(time) => sleep_until(time).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                transaction = inbox.recv() => match transaction {
                    Some(transaction) => self.take(transaction),
                    None => return,
                },
                () = wait => {}
            }
        }
    }

    /// When the connection is to be closed if nothing comes.
    fn idle_at(&self) -> Option<Instant> {
        let is_by_address = matches!(self.line, Line::Addresses(_)) && self.connection.is_some();
        self.last.filter(|_| is_by_address).map(|last| last + IDLE)
    }

    /// Lets a transaction wait, or refuses it when its unit is in quarantine.
    fn take(&mut self, transaction: Transaction) {
        if self.rests(&transaction.device, transaction.unit) && !transaction.is_urgent {
            // Nobody waits for it any more if the device was stopped just now.
            return drop(transaction.answer.send(Err(BusError::TimedOut)));
        }
        self.schedule.asked(&transaction.device, Instant::now());
        self.waiting.push(transaction);
    }

    /// Whether a unit is in quarantine for a device.
    fn rests(&self, device: &DeviceId, unit: u8) -> bool {
        let health = self.health.get(&(device.clone(), unit));
        health.and_then(|health| health.ask_again).is_some_and(|time| Instant::now() < time)
    }

    fn wanted(&self, transaction: &Transaction) -> Wanted {
        let health = self.health.get(&(transaction.device.clone(), transaction.unit));
        Wanted {
            device: transaction.device.clone(),
            is_urgent: transaction.is_urgent,
            is_doubtful: health.is_none_or(|health| !health.is_known || health.timeouts > 0),
        }
    }

    async fn serve(&mut self, transaction: Transaction) {
        let wanted = self.wanted(&transaction);
        let Transaction { device, unit, request, timeout, mut answer, .. } = transaction;
        let begin = Instant::now();
        let result = tokio::select! {
            result = self.carry_out((&device, unit), request, timeout) => Some(result),
            // The device was stopped or gave up: the line is free for the next.
            () = answer.closed() => None,
        };
        self.schedule.used(&wanted, begin.elapsed(), Instant::now());
        match result {
            // The same.
            Some(result) => drop(answer.send(result)),
            None => {
                self.connection = None;
                self.last = Some(Instant::now());
            }
        }
    }

    async fn carry_out(
        &mut self,
        (device, unit): (&DeviceId, u8),
        request: Request<'static>,
        limit: Option<Duration>,
    ) -> Result<Response, BusError> {
        if let Some(last) = self.last.filter(|_| !self.gap.is_zero()) {
            sleep_until(last + self.gap).await;
        }
        let limit = limit.unwrap_or(self.timeout).min(self.timeout * LONGEST_TIMEOUT);
        let function = request.function_code();
        let result = self.exchange(unit, request, limit).await;
        tracing::debug!(bus = self.name, device = device.as_str(), unit, "function {function}: {result:?}");
        self.last = Some(Instant::now());
        // A driver in a hurry says little about a unit.
        if limit >= self.timeout || result != Err(BusError::TimedOut) {
            self.judge(device, unit, &result);
        }
        result
    }

    async fn exchange(&mut self, unit: u8, request: Request<'static>, limit: Duration) -> Result<Response, BusError> {
        let Some(mut connection) = self.take_connection().await? else {
            return Err(BusError::Unavailable(format!("no connection to {}; trying again soon", self.line)));
        };
        connection.set_slave(Slave(unit));
        match timeout(limit, connection.call(request)).await {
            // A late answer must not be taken for the next one's: start afresh.
            Err(_) => Err(BusError::TimedOut),
            Ok(Ok(Ok(response))) => {
                self.connection = Some(connection);
                Ok(response)
            }
            Ok(Ok(Err(exception))) => {
                self.connection = Some(connection);
                Err(BusError::Exception(exception.into()))
            }
            Ok(Err(tokio_modbus::Error::Protocol(error))) => Err(BusError::InvalidResponse(error.to_string())),
            Ok(Err(tokio_modbus::Error::Transport(error))) if error.kind() == std::io::ErrorKind::InvalidData => {
                Err(BusError::InvalidResponse(error.to_string()))
            }
            Ok(Err(tokio_modbus::Error::Transport(error))) => Err(BusError::Unavailable(error.to_string())),
        }
    }

    /// The open connection, or a new one; none while a broken line rests.
    async fn take_connection(&mut self) -> Result<Option<Context>, BusError> {
        if let Some(connection) = self.connection.take() {
            return Ok(Some(connection));
        }
        if self.retry.rests() {
            return Ok(None);
        }
        match timeout(self.timeout.max(Duration::from_secs(1)), self.line.connect()).await {
            Ok(Ok(connection)) => {
                if self.retry.succeeded() {
                    tracing::info!(bus = self.name, "connected to {}", self.line);
                }
                Ok(Some(connection))
            }
            failed => {
                let problem = match failed {
                    Ok(Err(error)) => error.to_string(),
                    _ => "timed out".to_owned(),
                };
                if self.retry.failed() {
                    tracing::warn!(bus = self.name, "cannot connect to {}: {problem}", self.line);
                }
                Err(BusError::Unavailable(format!("cannot connect to {}: {problem}", self.line)))
            }
        }
    }

    /// Keeps account of who answers whom.
    fn judge(&mut self, device: &DeviceId, unit: u8, result: &Result<Response, BusError>) {
        let silent = self.health.iter().filter(|((other, _), health)| other == device && health.is_told()).count();
        let health = self.health.entry((device.clone(), unit)).or_default();
        match result {
            Err(BusError::TimedOut) => {
                health.timeouts = health.timeouts.saturating_add(1);
                if let Some(beyond) = health.timeouts.checked_sub(PATIENCE) {
                    if beyond == 0 && silent < TOLD {
                        let device = device.as_str();
                        tracing::warn!(bus = self.name, device, unit, "does not answer; asking less often");
                    }
                    let rest = doubled(SHORTEST_QUARANTINE, beyond, LONGEST_QUARANTINE);
                    health.ask_again = Some(Instant::now() + rest);
                }
            }
            Err(BusError::Unavailable(_) | BusError::Busy) => {}
            Ok(_) | Err(BusError::Exception(_) | BusError::InvalidResponse(_)) => {
                if health.is_told() && silent <= TOLD {
                    tracing::info!(bus = self.name, device = device.as_str(), unit, "answers again");
                }
                *health = Health { is_known: true, ..Health::default() };
            }
        }
    }
}

impl Health {
    /// Whether its silence was told to people.
    fn is_told(&self) -> bool {
        self.timeouts >= PATIENCE
    }
}

fn doubled(first: Duration, times: u32, longest: Duration) -> Duration {
    first.saturating_mul(1 << times.min(16)).min(longest)
}

#[cfg(test)]
mod misbehaviour;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest() {
        let delays: Vec<_> = (0..5)
            .map(|times| doubled(Duration::from_millis(500), times, Duration::from_secs(3)).as_millis())
            .collect();
        assert_eq!(delays, [500, 1000, 2000, 3000, 3000]);
    }
}
