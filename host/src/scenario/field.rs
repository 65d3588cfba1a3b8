//! Simulated devices: Modbus units, web servers, devices on TCP connections,
//! serial ports and CAN buses, inputs and outputs.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::{Map, Value as Json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_modbus::{ExceptionCode, Request, Response};

use super::Captures;
use super::expect::Pattern;
use super::fault::Fault;
use super::format::{Answer, Can, Device, Http, Ordered, Tcp};
use super::registers::hex;
use super::story::Story;
use super::tables::{Tables, describe, shortened};
use crate::bus::{self, FarWire, Simulation as _, Units, Wire};
use crate::gate::TapeField;
use crate::network::{Field, FieldRequest, FieldResponse, Stream};

/// See the module documentation. Clones are the same.
#[derive(Clone)]
pub(super) struct Simulated {
    devices: Arc<Mutex<BTreeMap<String, Simulation>>>,
    story: Arc<Story>,
}

struct Simulation {
    model: Model,
    /// Of the whole device, or of a unit on a line.
    faults: HashMap<Option<u8>, Fault>,
}

enum Model {
    Modbus(BTreeMap<u8, Tables>),
    Http {
        http: Http,
        turns: HashMap<String, usize>,
    },
    /// On a TCP connection, or on a serial port.
    Tcp {
        kind: &'static str,
        tcp: Tcp,
        turns: HashMap<String, usize>,
    },
    /// The others on a CAN bus.
    Can(Can),
    /// An input or an output.
    Pin {
        kind: &'static str,
        on: bool,
        count: u64,
        value: f64,
    },
    /// It answers from a tape.
    Tape(TapeField),
}

impl Simulated {
    /// Those that are given, and lines that answer as they were captured.
    pub(super) fn new(devices: &Ordered<Device>, captures: &Captures, story: &Arc<Story>) -> Simulated {
        let simulated = Simulated { devices: Arc::default(), story: Arc::clone(story) };
        devices.0.iter().for_each(|(name, device)| simulated.change(name, device));
        for (name, exchanges) in captures {
            let model = Model::Tape(TapeField::captured(name, exchanges));
            simulated.lock().insert(name.clone(), Simulation { model, faults: HashMap::new() });
        }
        simulated
    }

    /// Lets what is not given answer from a tape: these lines, and all addresses on it.
    pub(super) fn add_tape(&self, tape: &TapeField, lines: &[String]) {
        let mut devices = self.lock();
        for name in tape.addresses().into_iter().chain(lines.iter().cloned()) {
            let simulation = || Simulation { model: Model::Tape(tape.clone()), faults: HashMap::new() };
            devices.entry(name).or_insert_with(simulation);
        }
    }

    /// Lets these be all devices; what was wrong with those that stay is so still.
    pub(super) fn reset(&self, devices: &Ordered<Device>, captures: &Captures) {
        // Aside, so that nobody finds them missing.
        let new = Simulated::new(devices, captures, &self.story);
        let mut new = std::mem::take(&mut *new.lock());
        let mut known = self.lock();
        for (name, simulation) in &mut new {
            if let Some(before) = known.get_mut(name) {
                simulation.faults = std::mem::take(&mut before.faults);
            }
        }
        *known = new;
    }

    /// All devices: their names, kinds, and what is wrong with them.
    pub(super) fn devices(&self) -> Vec<(String, &'static str, Vec<String>)> {
        let described = |(name, simulation): (&String, &Simulation)| {
            let kind = match simulation.model {
                Model::Modbus(_) => "modbus",
                Model::Http { .. } => "http",
                Model::Can(_) => "can",
                Model::Tcp { kind, .. } | Model::Pin { kind, .. } => kind,
                Model::Tape(_) => "tape",
            };
            let fault = |(unit, fault): (&Option<u8>, &Fault)| match unit {
                Some(unit) => format!("{fault} of {unit}"),
                None => fault.to_string(),
            };
            (name.clone(), kind, simulation.faults.iter().map(fault).collect())
        };
        self.lock().iter().map(described).collect()
    }

    /// The tape from which a device answers.
    fn tape_of(&self, name: &str) -> Option<TapeField> {
        match self.lock().get(name).map(|simulation| &simulation.model) {
            Some(Model::Tape(tape)) => Some(tape.clone()),
            _ => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Simulation>> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a device, or changes what is there.
    pub(super) fn change(&self, name: &str, device: &Device) {
        let mut devices = self.lock();
        let is_new = !devices.contains_key(name);
        if is_new {
            let model = match device {
                Device::Modbus(_) => Model::Modbus(BTreeMap::new()),
                Device::Http(_) => Model::Http { http: Http::default(), turns: HashMap::new() },
                Device::Tcp(_) | Device::Serial(_) => {
                    Model::Tcp { kind: device.kind(), tcp: Tcp::default(), turns: HashMap::new() }
                }
                Device::Can(_) => Model::Can(Can::default()),
                Device::Output(_) | Device::Input(_) | Device::Analog(_) => {
                    Model::Pin { kind: device.kind(), on: false, count: 0, value: 0.0 }
                }
                // It is added with what was captured.
                Device::Capture(_) => return,
            };
            devices.insert(name.to_owned(), Simulation { model, faults: HashMap::new() });
        }
        let Some(simulation) = devices.get_mut(name) else { return };
        match (&mut simulation.model, device) {
            (Model::Modbus(units), Device::Modbus(changes)) => {
                for (address, change) in changes {
                    units.entry(*address).or_default().change(change);
                }
            }
            (Model::Http { http, turns }, Device::Http(change)) => {
                super::format::lay_over(&mut http.state, change.state.clone());
                for (route, answers) in &change.routes.0 {
                    let routes = &mut http.routes.0;
                    turns.remove(route);
                    match routes.iter_mut().find(|(other, _)| other == route) {
                        Some((_, known)) => known.clone_from(answers),
                        None => {
                            // The first that fits answers: what stands for much comes last.
                            let many = routes.iter().position(|(other, _)| other.contains('*') && !route.contains('*'));
                            routes.insert(many.unwrap_or(routes.len()), (route.clone(), answers.clone()));
                        }
                    }
                }
            }
            (Model::Tcp { tcp, turns, .. }, Device::Tcp(change) | Device::Serial(change)) => {
                if change.greeting.is_some() {
                    tcp.greeting.clone_from(&change.greeting);
                }
                turns.retain(|asked, _| !change.answers.contains_key(asked));
                tcp.answers.extend(change.answers.clone());
            }
            (Model::Can(can), Device::Can(change)) => {
                can.sends = change.sends.clone().or(can.sends.take());
                can.every = change.every.or(can.every);
                can.answers.extend(change.answers.clone());
            }
            (Model::Pin { on, .. }, Device::Output(change)) => *on = *change,
            (Model::Pin { on, count, .. }, Device::Input(change)) => {
                let goes_on = change.on == Some(true) && !std::mem::replace(on, change.on.unwrap_or(*on));
                *on = change.on.unwrap_or(*on);
                *count = change.count.unwrap_or(*count + u64::from(goes_on && !is_new));
            }
            (Model::Pin { value, .. }, Device::Analog(change)) => *value = *change,
            // What a device is stays: the format was checked.
            _ => {}
        }
    }

    /// Lets something be wrong with a device, or with nothing any more.
    pub(super) fn set_fault(&self, name: &str, fault: Option<Fault>) {
        let (device, unit) = match name.split_once('/').and_then(|(line, unit)| Some((line, unit.parse().ok()?))) {
            Some((line, unit)) => (line, Some(unit)),
            None => (name, None),
        };
        if let Some(simulation) = self.lock().get_mut(device) {
            match fault {
                Some(fault) => {
                    // What is wrong with a line is wrong with all its units.
                    if unit.is_none() {
                        simulation.faults.clear();
                    }
                    simulation.faults.insert(unit, fault);
                }
                None if unit.is_none() => simulation.faults.clear(),
                None => drop(simulation.faults.remove(&unit)),
            }
        }
    }

    fn fault(&self, name: &str, unit: Option<u8>) -> Option<Fault> {
        let devices = self.lock();
        let faults = &devices.get(name)?.faults;
        faults.get(&unit).or_else(|| faults.get(&None)).copied()
    }

    fn modbus(&self, name: &str, unit: u8, request: &Request<'_>) -> Option<Result<Response, ExceptionCode>> {
        let mut devices = self.lock();
        let Model::Modbus(units) = &mut devices.get_mut(name)?.model else { return None };
        Some(units.get_mut(&unit)?.answer(request))
    }
}

/// A line of Modbus units.
struct Line {
    field: Simulated,
    name: String,
}

#[wasmtime_wasi::async_trait]
impl Units for Line {
    fn connect(&self) -> io::Result<()> {
        match self.field.fault(&self.name, None) {
            Some(Fault::Refuses) => Err(io::ErrorKind::ConnectionRefused.into()),
            _ => Ok(()),
        }
    }

    async fn answer(&self, unit: u8, request: Request<'_>) -> tokio_modbus::Result<Response> {
        let (text, is_write) = describe(&self.name, unit, &request);
        self.field.story.request(text, is_write);
        let fault = self.field.fault(&self.name, Some(unit));
        let failed = |kind: io::ErrorKind, text: &str| Err(tokio_modbus::Error::Transport(io::Error::new(kind, text)));
        match fault {
            Some(Fault::Timeout) => return std::future::pending().await,
            Some(Fault::Closes | Fault::Refuses) => return failed(io::ErrorKind::ConnectionReset, "connection closed"),
            Some(Fault::Garbage) => return failed(io::ErrorKind::InvalidData, "the answer makes no sense"),
            Some(Fault::Exception(code)) => return Ok(Err(ExceptionCode::new(code))),
            Some(Fault::Slow(time)) => tokio::time::sleep(time).await,
            Some(Fault::WrongCount | Fault::Status(_)) | None => {}
        }
        if let Some(tape) = self.field.tape_of(&self.name) {
            return tape.transact(&self.name, unit, request).await;
        }
        let Some(answer) = self.field.modbus(&self.name, unit, &request) else {
            // No such unit: nobody answers.
            return std::future::pending().await;
        };
        let is_short = fault == Some(Fault::WrongCount);
        Ok(answer.map(|answer| if is_short { shortened(answer) } else { answer }))
    }
}

impl bus::Simulation for Simulated {
    fn line(&self, name: &str) -> Arc<dyn Units> {
        // Modbus TCP by address.
        let name = name.strip_prefix("tcp://").unwrap_or(name);
        Arc::new(Line { field: self.clone(), name: name.to_owned() })
    }

    fn serial(&self, name: &str) -> BoxFuture<'static, io::Result<Box<dyn Stream>>> {
        self.peer(name.to_owned())
    }

    fn can(&self, name: &str) -> io::Result<Wire> {
        if let Some(Fault::Refuses | Fault::Closes) = self.fault(name, None) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        if let Some(tape) = self.tape_of(name) {
            return tape.can(name);
        }
        let (near, far) = bus::wire();
        let (field, name) = (self.clone(), name.to_owned());
        tokio::spawn(async move { field.be_on(&name, far).await });
        Ok(near)
    }

    fn pin(&self, name: &str) -> Box<dyn bus::Pin> {
        Box::new(Pin { field: self.clone(), name: name.to_owned() })
    }
}

/// An input or an output.
struct Pin {
    field: Simulated,
    name: String,
}

impl Pin {
    /// Asks what it is, unless something is wrong with it.
    fn ask<T>(&self, ask: impl FnOnce(&mut bool, &mut u64, &mut f64) -> T) -> io::Result<T> {
        if let Some(fault) = self.field.fault(&self.name, None) {
            return Err(io::Error::other(fault.to_string()));
        }
        let mut devices = self.field.lock();
        match devices.get_mut(&self.name).map(|simulation| &mut simulation.model) {
            Some(Model::Pin { on, count, value, .. }) => Ok(ask(on, count, value)),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// What answers from a tape.
    fn on_tape(&self) -> Option<Box<dyn bus::Pin>> {
        Some(self.field.tape_of(&self.name)?.pin(&self.name))
    }
}

impl bus::Pin for Pin {
    fn get(&self) -> io::Result<bool> {
        self.on_tape().map_or_else(|| self.ask(|on, _, _| *on), |tape| tape.get())
    }

    fn set(&self, on: bool) -> io::Result<()> {
        self.field.story.request(format!("{} = {}", self.name, if on { "on" } else { "off" }), true);
        self.on_tape().map_or_else(|| self.ask(|own, _, _| *own = on), |tape| tape.set(on))
    }

    fn count(&self) -> io::Result<u64> {
        self.on_tape().map_or_else(|| self.ask(|_, count, _| *count), |tape| tape.count())
    }

    fn set_count(&self, count: u64) -> io::Result<()> {
        self.on_tape().map_or_else(|| self.ask(|_, own, _| *own = count), |tape| tape.set_count(count))
    }

    fn set_debounce(&self, _: Duration) -> io::Result<()> {
        self.ask(|_, _, _| ())
    }

    fn read(&self) -> io::Result<f64> {
        self.on_tape().map_or_else(|| self.ask(|_, _, value| *value), |tape| tape.read())
    }
}

impl Field for Simulated {
    fn connect(&self, host: &str, port: u16) -> BoxFuture<'static, io::Result<Box<dyn Stream>>> {
        self.peer(format!("{host}:{port}"))
    }

    fn fetch(&self, request: FieldRequest) -> BoxFuture<'static, Result<FieldResponse, String>> {
        let field = self.clone();
        async move {
            let name = format!("{}:{}", request.host.0, request.host.1);
            let body = String::from_utf8_lossy(&request.body);
            let asked = format!("{} {}", request.method, request.path);
            let text = if body.is_empty() { format!("{name} {asked}") } else { format!("{name} {asked} {body}") };
            field.story.request(text, false);
            match field.fault(&name, None) {
                Some(Fault::Timeout) => return std::future::pending().await,
                Some(Fault::Closes) => return Err("connection closed before message completed".into()),
                Some(Fault::Refuses) => return Err("connection refused".into()),
                Some(Fault::Status(status)) => return Ok(FieldResponse { status, ..FieldResponse::default() }),
                Some(Fault::Garbage) => {
                    return Ok(FieldResponse { status: 200, headers: Vec::new(), body: b"\x00\xff{]".to_vec() });
                }
                Some(Fault::Slow(time)) => tokio::time::sleep(time).await,
                Some(Fault::Exception(_) | Fault::WrongCount) | None => {}
            }
            if let Some(tape) = field.tape_of(&name) {
                return tape.fetch(request).await;
            }
            let mut devices = field.lock();
            match devices.get_mut(&name).map(|simulation| &mut simulation.model) {
                Some(Model::Http { http, turns }) => Ok(answer(http, turns, &asked)),
                _ => Err("connection refused".into()),
            }
        }
        .boxed()
    }
}

/// The answer of a web server.
fn answer(http: &mut Http, turns: &mut HashMap<String, usize>, asked: &str) -> FieldResponse {
    let found = http.routes.0.iter().find(|(route, _)| Pattern(route.clone()).matches(asked));
    let Some((route, answers)) = found else {
        let body = format!("no route for {asked}").into_bytes();
        return FieldResponse { status: 404, headers: Vec::new(), body };
    };
    let turn = turns.entry(route.clone()).or_default();
    let Some(answer) = answers.0.get(*turn).or(answers.0.last()).cloned() else { return FieldResponse::default() };
    *turn += 1;
    let Answer { status, json, text, headers, set } = answer;
    super::format::lay_over(&mut http.state, set);
    let mut headers: Vec<(String, String)> = headers.into_iter().collect();
    let body = match (json, text) {
        (Some(json), _) => {
            headers.push(("content-type".into(), "application/json".into()));
            filled(&json, &http.state).to_string()
        }
        (None, Some(text)) => filled_text(&text, &http.state),
        (None, None) => String::new(),
    };
    FieldResponse { status: status.unwrap_or(200), headers, body: body.into_bytes() }
}

/// A document with what `${name}` stands for; a text that is nothing else
/// becomes the value itself.
fn filled(json: &Json, state: &Map<String, Json>) -> Json {
    match json {
        Json::String(text) => {
            let name = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'));
            match name.and_then(|name| state.get(name)) {
                Some(value) => value.clone(),
                None => Json::String(filled_text(text, state)),
            }
        }
        Json::Array(values) => values.iter().map(|value| filled(value, state)).collect(),
        Json::Object(values) => {
            Json::Object(values.iter().map(|(name, value)| (name.clone(), filled(value, state))).collect())
        }
        other => other.clone(),
    }
}

fn filled_text(text: &str, state: &Map<String, Json>) -> String {
    let mut text = text.to_owned();
    for (name, value) in state {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        text = text.replace(&format!("${{{name}}}"), &value);
    }
    text
}

/// Bytes of a text, or of `hex …`.
fn bytes_of(text: &str) -> Vec<u8> {
    let digits = text.strip_prefix("hex ").and_then(|digits| hex(digits).ok());
    digits.unwrap_or_else(|| text.as_bytes().to_vec())
}

impl Simulated {
    /// What a CAN bus has now; none when there is none.
    fn can_now(&self, name: &str) -> Option<Can> {
        match self.lock().get(name).map(|simulation| &simulation.model) {
            Some(Model::Can(can)) => Some(can.clone()),
            _ => None,
        }
    }

    /// The others on a CAN bus, until the gateway has left it.
    async fn be_on(&self, name: &str, mut wire: FarWire) {
        loop {
            let Some(can) = self.can_now(name) else { return wire.outgoing.closed().await };
            let every = can.every.map_or(Duration::from_secs(1), |span| span.0);
            let said = tokio::select! {
                () = tokio::time::sleep(every) => self.can_now(name).and_then(|can| can.sends),
                frame = wire.incoming.recv() => {
                    let Some(frame) = frame else { return };
                    self.story.request(format!("{name} {frame}"), true);
                    let text = frame.to_string();
                    // Whoever answers has to hear it first.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    let known = can.answers.into_iter().filter(|(asked, _)| text.starts_with(&asked.to_uppercase()));
                    known.max_by_key(|(asked, _)| asked.len()).map(|(_, answer)| answer)
                }
            };
            match self.fault(name, None) {
                Some(Fault::Refuses | Fault::Closes) => return,
                Some(Fault::Timeout) => continue,
                Some(Fault::Slow(time)) => tokio::time::sleep(time).await,
                _ => {}
            }
            let is_garbage = self.fault(name, None) == Some(Fault::Garbage);
            for mut frame in said.into_iter().flat_map(|frames| frames.0) {
                if is_garbage {
                    frame.data = vec![0xff; 1];
                }
                if wire.outgoing.send(frame).await.is_err() {
                    return;
                }
            }
        }
    }

    /// A connection to a device that talks.
    fn peer(&self, name: String) -> BoxFuture<'static, io::Result<Box<dyn Stream>>> {
        let field = self.clone();
        async move {
            field.story.tell(|line| line.push_str(&format!("{name} connect")));
            let fault = field.fault(&name, None);
            if let Some(tape) = field.tape_of(&name).filter(|_| fault.is_none()) {
                return tape.peer(name).await;
            }
            let greeting = match field.lock().get(&name).map(|simulation| &simulation.model) {
                Some(Model::Tcp { tcp, .. }) if fault != Some(Fault::Refuses) => tcp.greeting.clone(),
                _ => return Err(io::ErrorKind::ConnectionRefused.into()),
            };
            let (near, far) = tokio::io::duplex(64 << 10);
            tokio::spawn(async move {
                // The driver may be gone.
                let _ = field.talk(&name, greeting, far).await;
            });
            Ok(Box::new(near) as Box<dyn Stream>)
        }
        .boxed()
    }

    /// The longest text with an answer that what was heard begins with, and its length.
    fn asked(&self, name: &str, heard: &[u8]) -> Option<(String, usize)> {
        let devices = self.lock();
        let Model::Tcp { tcp, .. } = &devices.get(name)?.model else { return None };
        let known = tcp.answers.keys().map(|asked| (asked, bytes_of(asked)));
        let begun = known.filter(|(_, bytes)| heard.starts_with(bytes));
        begun.max_by_key(|(_, bytes)| bytes.len()).map(|(asked, bytes)| (asked.clone(), bytes.len()))
    }

    /// What a device on a TCP connection says to that, in its turn.
    fn reply(&self, name: &str, asked: &str) -> Option<Vec<u8>> {
        let mut devices = self.lock();
        let Model::Tcp { tcp, turns, .. } = &mut devices.get_mut(name)?.model else { return None };
        let answers = &tcp.answers.get(asked)?.0;
        let turn = turns.entry(asked.to_owned()).or_default();
        let answer = answers.get(*turn).or(answers.last())?;
        *turn += 1;
        Some(bytes_of(answer))
    }

    /// One connection of a device, until the other side closes it.
    async fn talk(&self, name: &str, greeting: Option<String>, mut connection: DuplexStream) -> io::Result<()> {
        if let Some(greeting) = greeting {
            connection.write_all(&bytes_of(&greeting)).await?;
        }
        let mut heard = Vec::new();
        loop {
            if connection.read_buf(&mut heard).await? == 0 {
                return Ok(());
            }
            while let Some((asked, length)) = self.asked(name, &heard) {
                let rest = heard.split_off(length);
                self.story.request(format!("{name} {:?}", String::from_utf8_lossy(&heard)), false);
                heard = rest;
                match self.fault(name, None) {
                    Some(Fault::Timeout) => continue,
                    Some(Fault::Closes | Fault::Refuses) => return Ok(()),
                    Some(Fault::Garbage) => connection.write_all(b"\x00\xff?!\r\n").await?,
                    Some(Fault::Slow(time)) => {
                        tokio::time::sleep(time).await;
                        connection.write_all(&self.reply(name, &asked).unwrap_or_default()).await?;
                    }
                    _ => connection.write_all(&self.reply(name, &asked).unwrap_or_default()).await?,
                }
            }
            let is_begin = match self.lock().get(name).map(|simulation| &simulation.model) {
                Some(Model::Tcp { tcp, .. }) => tcp.answers.keys().any(|asked| bytes_of(asked).starts_with(&heard)),
                _ => false,
            };
            if !is_begin {
                let unknown = String::from_utf8_lossy(&heard).into_owned();
                self.story.tell(|line| line.push_str(&format!("{name} has no answer to {unknown:?}")));
                heard.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_list_of_texts_answers_in_turn_and_its_last_one_stays() {
        let tcp = serde_json::json!({"answers": {"A": ["1", "2"], "AB": "hex ff"}});
        let devices = Ordered(vec![("host:1".to_owned(), Device::Tcp(serde_json::from_value(tcp).unwrap()))]);
        let field = Simulated::new(&devices, &Captures::new(), &Arc::new(Story::new()));
        let mut connection = field.connect("host", 1).await.unwrap();
        let mut heard = vec![0; 4];
        connection.write_all(b"AAABA").await.unwrap();
        connection.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard, b"12\xff2");
        // What is not said because of a fault is said later.
        field.change(
            "host:1",
            &Device::Tcp(serde_json::from_value(serde_json::json!({"answers": {"A": ["3", "4"]}})).unwrap()),
        );
        field.set_fault("host:1", Some(Fault::Garbage));
        connection.write_all(b"A").await.unwrap();
        let mut garbage = vec![0; 6];
        connection.read_exact(&mut garbage).await.unwrap();
        field.set_fault("host:1", None);
        connection.write_all(b"A").await.unwrap();
        connection.read_exact(&mut heard[..1]).await.unwrap();
        assert_eq!(heard[0], b'3');
    }
}
