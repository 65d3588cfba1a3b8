//! A device that answers as the one on a tape did: by what it is asked, and when.
//!
//! Registers that were read in other blocks are put together from those; what a
//! driver writes is read back; what the tape has no answer to is named. A
//! capture of Modbus TCP is played in the same way.

mod captured;
mod reader;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use reqwest::Url;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::{Instant, sleep};
use tokio_modbus::{ExceptionCode, Request, Response};

use crate::bus::{self, Frame, Simulation, Units, Wire};
use crate::capture;
use crate::io::PinKind;
use crate::network::{Field, FieldRequest, FieldResponse, Stream};
use crate::sandbox::contract::sandgate::driver::http::{self, HttpError};
use crate::sandbox::contract::sandgate::driver::modbus::ModbusError;
use crate::sandbox::contract::sandgate::driver::net::NetError;
use crate::tape::Tape;

/// What is asked a little earlier than on the tape gets the answer from there.
const EARLIER: Duration = Duration::from_millis(20);
/// What took longer waited for others.
const QUICK: Duration = Duration::from_millis(100);
/// Things without an answer that are named.
const NAMED: usize = 20;

/// See the module documentation. Clones are the same.
#[derive(Clone)]
pub(crate) struct TapeField(Arc<Shared>);

struct Shared {
    begin: Instant,
    /// Where on the tape that is.
    first: Duration,
    known: Known,
    changed: Mutex<Changed>,
}

/// What devices have answered.
#[derive(Default)]
struct Known {
    units: HashMap<(String, u8), Unit>,
    web: HashMap<String, Series<Result<http::Response, HttpError>>>,
    peers: HashMap<String, Peer>,
    /// What inputs and outputs have shown, by their names and by what was asked.
    pins: HashMap<(String, &'static str), Series<Result<f64, String>>>,
    /// Frames that came from CAN buses, and when.
    frames: HashMap<String, Vec<(Duration, Frame)>>,
    /// Which inputs and outputs there are.
    pin_kinds: BTreeMap<String, PinKind>,
    /// What the driver had stored.
    stored: BTreeMap<String, Vec<u8>>,
}

/// What has happened since.
#[derive(Default)]
struct Changed {
    /// What was written, by line, unit, table and address.
    registers: HashMap<(String, u8, Table, u16), u16>,
    /// How outputs were switched.
    switched: HashMap<String, bool>,
    unknown: BTreeSet<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Table {
    Coils,
    Discrete,
    Holding,
    Input,
}

/// A unit on a line: what was read in each block.
#[derive(Default)]
struct Unit(BTreeMap<Block, Series<Result<Vec<u16>, ModbusError>>>);

/// A table, an address in it, and how many registers or bits from there on.
type Block = (Table, u16, u16);

/// A TCP peer.
#[derive(Default)]
struct Peer {
    /// Whether connecting went well, and what came before anything was sent.
    connections: Series<Result<Vec<Part>, NetError>>,
    /// What was sent, and what came after it.
    answers: Vec<(Vec<u8>, Series<Vec<Part>>)>,
}

/// What came, and how long after the part before.
type Part = (Duration, Result<Vec<u8>, NetError>);

/// Answers with their times, oldest first.
struct Series<T> {
    answers: Vec<At<T>>,
    /// How many of them have been given, or were gone over.
    given: AtomicUsize,
}

struct At<T> {
    at: Duration,
    took: Duration,
    value: T,
}

impl<T> Default for Series<T> {
    fn default() -> Self {
        Series { answers: Vec::new(), given: AtomicUsize::new(0) }
    }
}

impl<T> Series<T> {
    fn push(&mut self, at: Duration, took: Duration, value: T) {
        self.answers.push(At { at, took, value });
    }

    /// The last one by then, or the first one.
    fn at(&self, time: Duration) -> Option<&At<T>> {
        let next = self.answers.partition_point(|answer| answer.at <= time);
        self.answers.get(next.saturating_sub(1))
    }

    /// The same for who asks for it; one that comes soon when that was given before.
    fn take(&self, time: Duration) -> Option<&At<T>> {
        let next = self.answers.partition_point(|answer| answer.at <= time);
        let comes = self.answers.get(next).filter(|answer| answer.at <= time.saturating_add(EARLIER));
        let place = if comes.is_some() && self.given.load(Relaxed) >= next { next } else { next.saturating_sub(1) };
        self.given.fetch_max(place + 1, Relaxed);
        self.answers.get(place)
    }
}

/// What a request is known by.
fn key_of(request: &http::Request) -> Option<String> {
    let url = Url::parse(&request.url).ok()?;
    let (host, port) = (url.host_str()?, url.port_or_known_default()?);
    let query = url.query().map_or(String::new(), |query| format!("?{query}"));
    Some(key(&request.method.to_ascii_uppercase(), (host, port), &format!("{}{query}", url.path()), &request.body))
}

fn key(method: &str, (host, port): (&str, u16), path: &str, body: &[u8]) -> String {
    format!("{method} {host}:{port}{path} {}", String::from_utf8_lossy(body)).trim_end().to_owned()
}

impl TapeField {
    /// From now on, which is the begin of the tape.
    pub(crate) fn new(tape: &Tape, first: Duration) -> TapeField {
        TapeField::of(Known::on(tape), first)
    }

    /// A line whose units were captured.
    pub(crate) fn captured(line: &str, exchanges: &[capture::Exchange]) -> TapeField {
        let first = exchanges.first().map_or(Duration::ZERO, |exchange| exchange.at);
        TapeField::of(Known { units: captured::units(line, exchanges), ..Known::default() }, first)
    }

    fn of(known: Known, first: Duration) -> TapeField {
        TapeField(Arc::new(Shared { begin: Instant::now(), first, known, changed: Mutex::default() }))
    }

    /// What the driver had stored.
    pub(crate) fn stored(&self) -> impl Iterator<Item = (&String, &Vec<u8>)> {
        self.0.known.stored.iter()
    }

    /// What was asked that the tape has no answer to.
    pub(crate) fn unknown(&self) -> Vec<String> {
        self.lock().unknown.iter().cloned().collect()
    }

    /// The inputs and outputs on the tape.
    pub(crate) fn pins(&self) -> BTreeMap<String, PinKind> {
        self.0.known.pin_kinds.clone()
    }

    /// The peers and web servers on the tape, as `host:port`.
    pub(crate) fn addresses(&self) -> BTreeSet<String> {
        let hosts = self.0.known.web.keys().filter_map(|key| key.split([' ', '/']).nth(1));
        let peers = self.0.known.peers.keys().map(String::as_str).filter(|name| name.contains(':'));
        peers.chain(hosts).map(str::to_owned).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Changed> {
        self.0.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Now, on the tape.
    fn now(&self) -> Duration {
        self.0.first.saturating_add(self.0.begin.elapsed())
    }

    fn no_answer(&self, asked: String) {
        let mut changed = self.lock();
        if changed.unknown.len() < NAMED {
            changed.unknown.insert(asked);
        }
    }

    /// What a unit answers to a read, and how long it takes; none when the tape does not say.
    fn registers(&self, line: &str, unit: u8, block: Block) -> Option<(Duration, Result<Vec<u16>, ModbusError>)> {
        let (table, address, count) = block;
        let known = self.0.known.units.get(&(line.to_owned(), unit))?;
        let now = self.now();
        let (took, mut values) = match known.0.get(&block).and_then(|series| series.take(now)) {
            Some(answer) => (answer.took, answer.value.clone()),
            None => known.assemble(block, now)?,
        };
        if let Ok(values) = &mut values {
            let changed = self.lock();
            for (value, address) in values.iter_mut().zip(address..).take(usize::from(count)) {
                if let Some(written) = changed.registers.get(&(line.to_owned(), unit, table, address)) {
                    *value = *written;
                }
            }
        }
        Some((took, values))
    }

    fn write(&self, line: &str, unit: u8, table: Table, address: u16, values: impl Iterator<Item = u16>) {
        let mut changed = self.lock();
        for (value, address) in values.zip(address..) {
            changed.registers.insert((line.to_owned(), unit, table, address), value);
        }
    }

    /// A connection to a peer, or to the device on a serial port.
    pub(crate) fn peer(&self, name: String) -> BoxFuture<'static, io::Result<Box<dyn Stream>>> {
        let field = self.clone();
        async move {
            let Some(peer) = field.0.known.peers.get(&name) else {
                field.no_answer(format!("{name} connect"));
                return Err(io::ErrorKind::ConnectionRefused.into());
            };
            let begin = match peer.connections.take(field.now()) {
                // It was connected before the tape begins.
                None => Vec::new(),
                Some(At { value: Ok(begin), .. }) => begin.clone(),
                Some(At { value: Err(NetError::TimedOut), .. }) => return std::future::pending().await,
                Some(At { value: Err(_), .. }) => return Err(io::ErrorKind::ConnectionRefused.into()),
            };
            let (near, far) = tokio::io::duplex(64 << 10);
            let (field, name) = (field.clone(), name.clone());
            tokio::spawn(async move {
                // The driver may be gone.
                let _ = field.talk(&name, begin, far).await;
            });
            Ok(Box::new(near) as Box<dyn Stream>)
        }
        .boxed()
    }

    /// Answers one connection until the other side closes it.
    async fn talk(&self, name: &str, begin: Vec<Part>, mut connection: DuplexStream) -> io::Result<()> {
        if !say(&mut connection, begin).await? {
            return Ok(());
        }
        let mut heard = Vec::new();
        loop {
            let Some(peer) = self.0.known.peers.get(name) else { return Ok(()) };
            let known = peer.answers.iter().filter(|(sent, _)| !sent.is_empty() && heard.starts_with(sent));
            if let Some((sent, answers)) = known.max_by_key(|(sent, _)| sent.len()) {
                heard.drain(..sent.len());
                let parts = answers.take(self.now()).map(|answer| answer.value.clone()).unwrap_or_default();
                if !say(&mut connection, parts).await? {
                    return Ok(());
                }
                continue;
            }
            if !peer.answers.iter().any(|(sent, _)| sent.starts_with(&heard)) {
                self.no_answer(format!("{name} {}", heard.escape_ascii()));
                heard.clear();
            }
            if connection.read_buf(&mut heard).await? == 0 {
                return Ok(());
            }
        }
    }
}

/// Says what a peer said; false when it closed the connection then.
async fn say(connection: &mut DuplexStream, parts: Vec<Part>) -> io::Result<bool> {
    for (took, part) in parts {
        match part {
            Ok(bytes) => {
                sleep(took.min(QUICK)).await;
                connection.write_all(&bytes).await?;
            }
            // Whoever waits does so as long as it wants to.
            Err(NetError::TimedOut) => {}
            Err(_) => return Ok(false),
        }
    }
    Ok(true)
}

impl Unit {
    /// A block put together from others that were read by then.
    fn assemble(
        &self,
        (table, address, count): Block,
        now: Duration,
    ) -> Option<(Duration, Result<Vec<u16>, ModbusError>)> {
        let mut took = Duration::ZERO;
        let mut values = Vec::with_capacity(usize::from(count));
        for address in (address..=u16::MAX).take(usize::from(count)) {
            let holds = |(_, first, count): &(Table, u16, u16)| {
                (u32::from(*first)..u32::from(*first) + u32::from(*count)).contains(&address.into())
            };
            let blocks = self.0.range((table, 0, 0)..=(table, address, u16::MAX)).filter(|(block, _)| holds(block));
            let answers = blocks.filter_map(|((_, first, _), series)| Some((*first, series.at(now)?)));
            // The newest by then, one with values before one without.
            let (first, answer) = answers.max_by_key(|(_, answer)| (answer.value.is_ok(), answer.at.min(now)))?;
            took = took.max(answer.took);
            match &answer.value {
                Ok(words) => values.push(*words.get(usize::from(address - first))?),
                Err(error) => return Some((took, Err(error.clone()))),
            }
        }
        Some((took, Ok(values)))
    }
}

/// A line of Modbus units.
struct Line {
    field: TapeField,
    name: String,
}

#[wasmtime_wasi::async_trait]
impl Units for Line {
    async fn answer(&self, unit: u8, request: Request<'_>) -> tokio_modbus::Result<Response> {
        self.field.transact(&self.name, unit, request).await
    }
}

impl TapeField {
    /// Carries out a request to a unit on a line.
    pub(crate) async fn transact(&self, name: &str, unit: u8, request: Request<'_>) -> tokio_modbus::Result<Response> {
        let bits = |words: Vec<u16>| words.into_iter().map(|word| word != 0).collect();
        let (block, answer): (_, Box<dyn FnOnce(Vec<u16>) -> Response + Send>) = match request {
            Request::ReadHoldingRegisters(address, count) => {
                ((Table::Holding, address, count), Box::new(Response::ReadHoldingRegisters))
            }
            Request::ReadInputRegisters(address, count) => {
                ((Table::Input, address, count), Box::new(Response::ReadInputRegisters))
            }
            Request::ReadCoils(address, count) => {
                ((Table::Coils, address, count), Box::new(move |words| Response::ReadCoils(bits(words))))
            }
            Request::ReadDiscreteInputs(address, count) => {
                ((Table::Discrete, address, count), Box::new(move |words| Response::ReadDiscreteInputs(bits(words))))
            }
            Request::WriteSingleRegister(address, value) => {
                self.write(name, unit, Table::Holding, address, [value].into_iter());
                return Ok(Ok(Response::WriteSingleRegister(address, value)));
            }
            Request::WriteMultipleRegisters(address, values) => {
                self.write(name, unit, Table::Holding, address, values.iter().copied());
                return Ok(Ok(Response::WriteMultipleRegisters(address, number_of(&values))));
            }
            Request::WriteSingleCoil(address, value) => {
                self.write(name, unit, Table::Coils, address, [u16::from(value)].into_iter());
                return Ok(Ok(Response::WriteSingleCoil(address, value)));
            }
            Request::WriteMultipleCoils(address, values) => {
                self.write(name, unit, Table::Coils, address, values.iter().copied().map(u16::from));
                return Ok(Ok(Response::WriteMultipleCoils(address, number_of(&values))));
            }
            _ => return Ok(Err(ExceptionCode::IllegalFunction)),
        };
        let Some((took, result)) = self.registers(name, unit, block) else {
            let (table, address, count) = block;
            self.no_answer(format!("{name}/{unit} {table:?} {address} x {count}"));
            return Ok(Err(ExceptionCode::IllegalDataAddress));
        };
        let failed =
            |kind: io::ErrorKind, text: String| Err(tokio_modbus::Error::Transport(io::Error::new(kind, text)));
        match result {
            Ok(words) => {
                sleep(took.min(QUICK)).await;
                Ok(Ok(answer(words)))
            }
            Err(ModbusError::DeviceException(code)) => Ok(Err(ExceptionCode::new(code))),
            Err(ModbusError::InvalidResponse(text)) => failed(io::ErrorKind::InvalidData, text),
            Err(ModbusError::Unavailable(text)) => failed(io::ErrorKind::ConnectionReset, text),
            // Nobody answers.
            Err(_) => std::future::pending().await,
        }
    }
}

fn number_of<T>(values: &[T]) -> u16 {
    u16::try_from(values.len()).unwrap_or(u16::MAX)
}

impl Simulation for TapeField {
    fn line(&self, name: &str) -> Arc<dyn Units> {
        Arc::new(Line { field: self.clone(), name: name.to_owned() })
    }

    fn serial(&self, name: &str) -> BoxFuture<'static, io::Result<Box<dyn Stream>>> {
        self.peer(name.to_owned())
    }

    /// Sends what came from the bus, when it was asked for.
    fn can(&self, name: &str) -> io::Result<Wire> {
        let (near, far) = bus::wire();
        let (field, name) = (self.clone(), name.to_owned());
        tokio::spawn(async move {
            let frames = field.0.known.frames.get(&name).map_or(&[][..], Vec::as_slice);
            for (at, frame) in frames.iter().filter(|(at, _)| *at >= field.0.first) {
                sleep(at.saturating_sub(EARLIER).saturating_sub(field.now())).await;
                if far.outgoing.send(frame.clone()).await.is_err() {
                    return;
                }
            }
            // The bus stays.
            far.outgoing.closed().await;
        });
        Ok(near)
    }

    fn pin(&self, name: &str) -> Box<dyn bus::Pin> {
        Box::new(Pin { field: self.clone(), name: name.to_owned() })
    }
}

/// An input or an output.
struct Pin {
    field: TapeField,
    name: String,
}

impl Pin {
    fn asked(&self, what: &'static str) -> io::Result<f64> {
        let series = self.field.0.known.pins.get(&(self.name.clone(), what));
        match series.and_then(|series| series.take(self.field.now())) {
            Some(answer) => answer.value.clone().map_err(io::Error::other),
            None => {
                self.field.no_answer(format!("{} {what}", self.name));
                Err(io::Error::other("the tape has no answer to this"))
            }
        }
    }
}

impl bus::Pin for Pin {
    fn get(&self) -> io::Result<bool> {
        let switched = self.field.lock().switched.get(&self.name).copied();
        switched.map_or_else(|| self.asked("get").map(|value| value != 0.0), Ok)
    }

    fn set(&self, on: bool) -> io::Result<()> {
        self.field.lock().switched.insert(self.name.clone(), on);
        Ok(())
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // it was a count
    fn count(&self) -> io::Result<u64> {
        self.asked("count").map(|count| count as u64)
    }

    fn set_count(&self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn set_debounce(&self, _: Duration) -> io::Result<()> {
        Ok(())
    }

    fn read(&self) -> io::Result<f64> {
        self.asked("read")
    }
}

impl Field for TapeField {
    fn connect(&self, host: &str, port: u16) -> BoxFuture<'static, io::Result<Box<dyn Stream>>> {
        self.peer(format!("{host}:{port}"))
    }

    fn fetch(&self, request: FieldRequest) -> BoxFuture<'static, Result<FieldResponse, String>> {
        let field = self.clone();
        async move {
            let FieldRequest { method, host, path, body } = request;
            let key = key(&method.to_ascii_uppercase(), (&host.0, host.1), &path, &body);
            let Some(At { took, value, .. }) = field.0.known.web.get(&key).and_then(|series| series.take(field.now()))
            else {
                field.no_answer(key);
                return Err("the tape has no answer to this".into());
            };
            match value {
                Ok(response) => {
                    sleep((*took).min(QUICK)).await;
                    let headers = response.headers.iter().map(|header| (header.name.clone(), header.value.clone()));
                    let (headers, body) = (headers.collect(), response.body.clone());
                    Ok(FieldResponse { status: response.status, headers, body })
                }
                Err(HttpError::TimedOut) => std::future::pending().await,
                Err(HttpError::Failed(text) | HttpError::NotGranted(text) | HttpError::InvalidRequest(text)) => {
                    Err(text.clone())
                }
                Err(HttpError::TooLarge(_)) => Err("too large".into()),
            }
        }
        .boxed()
    }
}
