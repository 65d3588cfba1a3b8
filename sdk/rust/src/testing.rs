//! A gateway for `cargo test`: on the author's machine a driver's calls to the
//! host go to the `FakeHost` of the test's thread.
//!
//! It keeps what the driver sends and answers from what the test has set. It
//! checks nothing against the manifest and has no clock: a test calls
//! `on_timer` itself.
//!
//! ```
//! use sandgate_driver::testing::{self, FakeHost};
//! use sandgate_driver::{Context, Driver, Error, Sample, TimerId, Value, modbus::Unit};
//!
//! struct Meter(Unit);
//! impl Driver for Meter {
//!     fn start(_: Context) -> Result<Self, Error> {
//!         Ok(Meter(Unit::open("line", 1)?))
//!     }
//!     fn on_timer(&mut self, _: TimerId) -> Result<(), Error> {
//!         Ok(Sample::new().with("voltage", self.0.holding(100, 1)?.scaled(100, 0.1)?).send()?)
//!     }
//! }
//!
//! let host = FakeHost::new();
//! host.modbus("line", 1).holding(100, &[2305]);
//! let mut meter = Meter::start(testing::context(())).unwrap();
//! meter.on_timer(1).unwrap();
//! assert_eq!(host.sent("voltage"), Some(Value::Float(230.5)));
//! ```

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value as Json;

pub use crate::bindings::sandgate::driver::logging::Level;
pub use crate::bindings::sandgate::driver::telemetry::Sample;
use crate::can::Frame;
use crate::driver::value_of;
use crate::http::{HttpError, Request, Response};
use crate::modbus::ModbusError;
use crate::{Alert, Attribute, Command, Configuration, Context, StartReason, TimerId, Value};

/// Answers a request.
type HttpServer = Box<dyn FnMut(&Request) -> Result<Response, HttpError>>;

/// Answers the bytes that come over a connection or a serial port.
type Peer = Box<dyn FnMut(&[u8]) -> Vec<u8>>;

/// What the driver of this thread did, and what it gets.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) samples: Vec<Sample>,
    pub(crate) properties: BTreeMap<String, Value>,
    pub(crate) alerts: Option<Vec<Alert>>,
    pub(crate) log: Vec<(Level, String)>,
    pub(crate) command_log: Vec<String>,
    pub(crate) timers: BTreeMap<TimerId, Duration>,
    pub(crate) next_timer: TimerId,
    pub(crate) stored: BTreeMap<String, Vec<u8>>,
    pub(crate) metadata: Option<BTreeMap<String, Value>>,
    pub(crate) uploads: Vec<(String, Vec<u8>)>,
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    pub(crate) units: BTreeMap<(String, u8), UnitState>,
    pub(crate) http: Option<HttpServer>,
    pub(crate) peers: BTreeMap<(String, u16), Peer>,
    pub(crate) ports: BTreeMap<String, Peer>,
    pub(crate) pins: BTreeMap<String, PinState>,
    pub(crate) can: BTreeMap<String, CanState>,
}

/// A CAN bus.
#[derive(Default)]
pub(crate) struct CanState {
    pub(crate) heard: Vec<Frame>,
    pub(crate) sent: Vec<Frame>,
}

/// An input or an output.
#[derive(Default)]
pub(crate) struct PinState {
    pub(crate) on: bool,
    pub(crate) count: u64,
    pub(crate) value: f64,
    pub(crate) deeds: Vec<String>,
}

/// One Modbus unit.
#[derive(Default)]
pub(crate) struct UnitState {
    pub(crate) holding: BTreeMap<u16, u16>,
    pub(crate) input: BTreeMap<u16, u16>,
    pub(crate) coils: BTreeMap<u16, bool>,
    pub(crate) discrete: BTreeMap<u16, bool>,
    pub(crate) error: Option<ModbusError>,
    pub(crate) writes: Vec<(u16, Vec<u16>)>,
}

thread_local! {
    // Each test has a thread of its own.
    static STATE: RefCell<State> = RefCell::default();
}

pub(crate) fn with<R>(act: impl FnOnce(&mut State) -> R) -> R {
    STATE.with_borrow_mut(act)
}

/// The host of this thread's driver.
pub struct FakeHost {
    // It belongs to its thread.
    thread: PhantomData<*const ()>,
}

impl FakeHost {
    /// A host to which nothing has happened yet, in the place of an earlier one.
    #[allow(clippy::new_without_default)] // it changes the thread
    pub fn new() -> FakeHost {
        with(|state| *state = State::default());
        FakeHost { thread: PhantomData }
    }

    /// All samples, the oldest first.
    pub fn samples(&self) -> Vec<Sample> {
        with(|state| state.samples.clone())
    }

    /// The value that was sent last under a name.
    pub fn sent(&self, name: &str) -> Option<Value> {
        with(|state| {
            let mut all = state.samples.iter().rev().flat_map(|sample| &sample.attributes);
            all.find(|attribute| attribute.name == name).map(|attribute| attribute.value.clone())
        })
    }

    /// The value of a published property.
    pub fn property(&self, name: &str) -> Option<Value> {
        with(|state| state.properties.get(name).cloned())
    }

    /// The active alerts; none while they are unknown.
    pub fn alerts(&self) -> Option<Vec<Alert>> {
        with(|state| state.alerts.clone())
    }

    /// All log lines, the oldest first.
    pub fn log(&self) -> Vec<(Level, String)> {
        with(|state| state.log.clone())
    }

    /// The progress of commands.
    pub fn command_log(&self) -> Vec<String> {
        with(|state| state.command_log.clone())
    }

    /// The timers that are set, with their interval or delay.
    pub fn timers(&self) -> Vec<(TimerId, Duration)> {
        with(|state| state.timers.iter().map(|(id, time)| (*id, *time)).collect())
    }

    /// What is stored under a key.
    pub fn stored(&self, key: &str) -> Option<Vec<u8>> {
        with(|state| state.stored.get(key).cloned())
    }

    /// Stores a value, as an earlier life of the driver would have.
    pub fn store(&self, key: &str, value: &[u8]) {
        with(|state| drop(state.stored.insert(key.to_owned(), value.to_vec())));
    }

    /// Gives the cloud metadata of the device; before, it has none.
    pub fn metadata(&self, entries: &[Attribute]) {
        let entries = entries.iter().map(|entry| (entry.name.clone(), entry.value.clone()));
        with(|state| state.metadata = Some(entries.collect()));
    }

    /// The files that were uploaded, by name.
    pub fn uploads(&self) -> Vec<(String, Vec<u8>)> {
        with(|state| state.uploads.clone())
    }

    /// Puts a file into the driver.
    pub fn file(&self, name: &str, content: &[u8]) {
        with(|state| state.files.insert(name.to_owned(), content.to_owned()));
    }

    /// A unit on a Modbus line, which is granted from now on.
    pub fn modbus(&self, line: &str, unit: u8) -> FakeUnit {
        let key = (line.to_owned(), unit);
        with(|state| {
            state.units.entry(key.clone()).or_default();
        });
        FakeUnit { key, thread: PhantomData }
    }

    /// Answers HTTP requests; before, no host is granted.
    pub fn http(&self, answer: impl FnMut(&Request) -> Result<Response, HttpError> + 'static) {
        with(|state| state.http = Some(Box::new(answer)));
    }

    /// A peer for TCP: it is given what the driver sends, and returns what it
    /// answers. Other addresses are not granted.
    pub fn tcp(&self, host: &str, port: u16, answer: impl FnMut(&[u8]) -> Vec<u8> + 'static) {
        with(|state| drop(state.peers.insert((host.to_owned(), port), Box::new(answer))));
    }

    /// A CAN bus, which is granted from now on; the others on it send these frames.
    pub fn can(&self, name: &str, frames: &[Frame]) {
        with(|state| state.can.entry(name.to_owned()).or_default().heard.extend_from_slice(frames));
    }

    /// The frames that were sent on a CAN bus.
    pub fn frames(&self, name: &str) -> Vec<Frame> {
        with(|state| state.can.get(name).map(|bus| bus.sent.clone()).unwrap_or_default())
    }

    /// An input or an output, which is granted from now on.
    pub fn pin(&self, name: &str) -> FakePin {
        with(|state| {
            state.pins.entry(name.to_owned()).or_default();
        });
        FakePin { name: name.to_owned(), thread: PhantomData }
    }

    /// A device on a serial port, in the same way. Other ports are not granted.
    pub fn serial(&self, name: &str, answer: impl FnMut(&[u8]) -> Vec<u8> + 'static) {
        with(|state| drop(state.ports.insert(name.to_owned(), Box::new(answer))));
    }
}

/// An input or an output of the fake host.
pub struct FakePin {
    name: String,
    thread: PhantomData<*const ()>,
}

impl FakePin {
    fn with<R: Default>(&self, act: impl FnOnce(&mut PinState) -> R) -> R {
        // A newer host has other pins.
        with(|state| state.pins.get_mut(&self.name).map(act)).unwrap_or_default()
    }

    /// Lets it be on or off.
    pub fn set(&self, on: bool) -> &Self {
        self.with(|pin| pin.on = on);
        self
    }

    /// Lets it have counted so many pulses.
    pub fn count(&self, count: u64) -> &Self {
        self.with(|pin| pin.count = count);
        self
    }

    /// Lets it show a value.
    pub fn value(&self, value: f64) -> &Self {
        self.with(|pin| pin.value = value);
        self
    }

    /// What was done with it: `on`, `off`, `pulse of 500 ms`.
    pub fn deeds(&self) -> Vec<String> {
        self.with(|pin| pin.deeds.clone())
    }
}

/// A Modbus unit of the fake host. What is not set is an illegal address.
pub struct FakeUnit {
    key: (String, u8),
    thread: PhantomData<*const ()>,
}

impl FakeUnit {
    fn with<R: Default>(&self, act: impl FnOnce(&mut UnitState) -> R) -> R {
        // A newer host has other units.
        with(|state| state.units.get_mut(&self.key).map(act)).unwrap_or_default()
    }

    /// Sets holding registers from an address on.
    pub fn holding(&self, first: u16, words: &[u16]) -> &Self {
        self.with(|unit| unit.holding.extend((first..).zip(words.iter().copied())));
        self
    }

    /// Sets input registers from an address on.
    pub fn input(&self, first: u16, words: &[u16]) -> &Self {
        self.with(|unit| unit.input.extend((first..).zip(words.iter().copied())));
        self
    }

    /// Sets coils from an address on.
    pub fn coils(&self, first: u16, values: &[bool]) -> &Self {
        self.with(|unit| unit.coils.extend((first..).zip(values.iter().copied())));
        self
    }

    /// Sets discrete inputs from an address on.
    pub fn discrete(&self, first: u16, values: &[bool]) -> &Self {
        self.with(|unit| unit.discrete.extend((first..).zip(values.iter().copied())));
        self
    }

    /// Lets every transaction fail, until it is called with none.
    pub fn fail(&self, error: Option<ModbusError>) {
        self.with(|unit| unit.error = error);
    }

    /// What was written: the first address and the values; a coil is 0 or 1.
    pub fn writes(&self) -> Vec<(u16, Vec<u16>)> {
        self.with(|unit| unit.writes.clone())
    }
}

/// What a driver gets at its first start, with a configuration
/// `{bucket: {parameter: value}}`; `()` is an empty one.
///
/// # Panics
///
/// When the configuration is none that JSON can hold.
pub fn context(configuration: impl Serialize) -> Context {
    let reason = StartReason::FirstStart;
    Context { device_id: "test".into(), configuration: self::configuration(configuration), reason, restored: None }
}

/// A configuration as `configure` gets it.
///
/// # Panics
///
/// When it is none that JSON can hold.
#[allow(clippy::expect_used)] // a test ends so
pub fn configuration(configuration: impl Serialize) -> Configuration {
    let json = serde_json::to_value(configuration).expect("a configuration is JSON");
    let json = if json.is_null() { Json::Object(serde_json::Map::new()) } else { json };
    Configuration::new(json.to_string())
}

/// A command with its arguments.
///
/// # Panics
///
/// When the arguments are none that JSON can hold.
#[allow(clippy::expect_used)] // a test ends so
pub fn command(name: &str, arguments: impl Serialize) -> Command {
    let json = serde_json::to_value(arguments).expect("arguments are JSON");
    let raw = if json.is_null() { "{}".to_owned() } else { json.to_string() };
    let typed = json.as_object().cloned().unwrap_or_default().into_iter();
    let typed = typed.map(|(name, value)| Attribute { name, value: value_of(value) });
    Command::new("test", name, typed.collect(), raw)
}
