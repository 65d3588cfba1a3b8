//! The trait that a driver implements, and its way to the contract.

use std::cell::RefCell;
use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use crate::bindings::exports::sandgate::driver::{device_driver, migration};
use crate::{Attribute, CommandError, Error, StartReason, TimerId, Value};

/// A device driver. One value lives for as long as the device runs.
///
/// The gateway makes one call at a time. Only `start` must be written; the
/// other methods have defaults.
pub trait Driver: Sized + 'static {
    /// Begins: reads the configuration and sets timers. After an error the
    /// gateway tries again later.
    fn start(context: Context) -> Result<Self, Error>;

    /// A timer is due. An error is logged and counted; the driver goes on.
    fn on_timer(&mut self, timer: TimerId) -> Result<(), Error> {
        let _ = timer;
        Ok(())
    }

    /// Carries out a command; the attributes are its result.
    fn handle_command(&mut self, command: Command) -> Result<Vec<Attribute>, CommandError> {
        Err(CommandError::Unsupported(format!("no command {}", command.name)))
    }

    /// Takes a new configuration. After an error the old one stays.
    ///
    /// By default every change is rejected.
    fn configure(&mut self, configuration: Configuration) -> Result<(), Error> {
        let _ = configuration;
        Err("this driver takes its configuration at the start only; restart the device".into())
    }

    /// Ends.
    fn stop(&mut self) {}

    /// Packs what the next version of the driver should know: it finds it in
    /// `Context::restored`. Nothing by default.
    fn snapshot(&self) -> Vec<u8> {
        Vec::new()
    }
}

/// What a driver gets at its start.
pub struct Context {
    /// The device's id, unique in the gateway.
    pub device_id: String,
    /// The configuration.
    pub configuration: Configuration,
    /// Why the driver starts.
    pub reason: StartReason,
    /// What the version before packed, after a swap.
    pub restored: Option<Vec<u8>>,
}

/// A configuration: `{"<bucket>": {"<parameter>": value}}` as the manifest
/// declares it, checked by the gateway, with defaults filled in.
pub struct Configuration(String);

impl Configuration {
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn new(text: String) -> Self {
        Configuration(text)
    }

    /// Reads the whole of it: a struct with a field for each bucket.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Error> {
        Ok(serde_json::from_str(&self.0)?)
    }

    /// Reads one bucket.
    pub fn bucket<T: DeserializeOwned>(&self, name: &str) -> Result<T, Error> {
        let mut all: serde_json::Map<String, Json> = serde_json::from_str(&self.0)?;
        let bucket = all.remove(name).unwrap_or_else(|| Json::Object(serde_json::Map::new()));
        T::deserialize(bucket).map_err(|error| Error::from(format!("configuration {name}: {error}")))
    }

    /// The JSON text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A command from the cloud or from the operator.
pub struct Command {
    /// Unique; the same id is never given twice.
    pub id: String,
    /// A name under `commands` in the manifest.
    pub name: String,
    /// The arguments, checked against the manifest.
    pub arguments: Vec<Attribute>,
    raw: String,
}

impl Command {
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn new(id: &str, name: &str, arguments: Vec<Attribute>, raw: String) -> Self {
        Command { id: id.to_owned(), name: name.to_owned(), arguments, raw }
    }
    /// Reads the arguments as a struct.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, CommandError> {
        serde_json::from_str(&self.raw).map_err(|error| CommandError::InvalidArgument(error.to_string()))
    }
}

/// Makes the result of a command from a struct or a map.
pub fn result<T: Serialize>(value: &T) -> Result<Vec<Attribute>, CommandError> {
    match serde_json::to_value(value) {
        Ok(Json::Object(fields)) => {
            Ok(fields.into_iter().map(|(name, value)| Attribute { name, value: value_of(value) }).collect())
        }
        Ok(Json::Null) => Ok(Vec::new()),
        Ok(other) => Ok(vec![Attribute { name: "result".into(), value: value_of(other) }]),
        Err(error) => Err(CommandError::Failed(error.to_string())),
    }
}

pub(crate) fn value_of(json: Json) -> Value {
    match json {
        Json::Null => Value::Unknown,
        Json::Bool(value) => Value::Boolean(value),
        Json::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(integer), _) => Value::Integer(integer),
            (None, Some(float)) => Value::Float(float),
            (None, None) => Value::Unknown,
        },
        Json::String(text) => Value::Text(text),
        other => Value::Json(other.to_string()),
    }
}

/// Connects a driver to the contract; `export!` uses it.
pub struct Adapter<D>(PhantomData<D>);

/// The driver between calls, and what a swap handed over before its start.
struct Slot {
    driver: Option<Box<dyn std::any::Any>>,
    restored: Option<Vec<u8>>,
}

thread_local! {
    // A component has one thread; this is its only mutable state.
    static SLOT: RefCell<Slot> = const { RefCell::new(Slot { driver: None, restored: None }) };
}

/// Runs a call on the started driver.
pub(crate) fn with<D: 'static, R>(call: impl FnOnce(&mut D) -> R) -> Option<R> {
    SLOT.with_borrow_mut(|slot| slot.driver.as_mut().and_then(|driver| driver.downcast_mut()).map(call))
}

pub(crate) const NOT_STARTED: &str = "the driver was not started";

impl<D: Driver> device_driver::Guest for Adapter<D> {
    fn start(context: device_driver::Context) -> Result<(), String> {
        let context = Context {
            device_id: context.device_id,
            configuration: Configuration(context.configuration),
            reason: context.reason,
            restored: SLOT.with_borrow_mut(|slot| slot.restored.take()),
        };
        let driver = D::start(context).map_err(Error::into_text)?;
        SLOT.with_borrow_mut(|slot| slot.driver = Some(Box::new(driver)));
        Ok(())
    }

    fn on_timer(id: TimerId) -> Result<(), String> {
        with(|driver: &mut D| driver.on_timer(id)).unwrap_or(Err(NOT_STARTED.into())).map_err(Error::into_text)
    }

    fn handle_command(command: device_driver::Command) -> Result<Vec<Attribute>, CommandError> {
        let device_driver::Command { id, name, arguments, raw } = command;
        let command = Command { id, name, arguments, raw };
        with(|driver: &mut D| driver.handle_command(command)).unwrap_or(Err(CommandError::Failed(NOT_STARTED.into())))
    }

    fn configure(configuration: String) -> Result<(), String> {
        with(|driver: &mut D| driver.configure(Configuration(configuration)))
            .unwrap_or(Err(NOT_STARTED.into()))
            .map_err(Error::into_text)
    }

    fn stop() {
        with(D::stop);
    }
}

impl<D: Driver> migration::Guest for Adapter<D> {
    fn snapshot() -> Vec<u8> {
        with(|driver: &mut D| driver.snapshot()).unwrap_or_default()
    }

    fn restore(state: Vec<u8>) -> Result<(), String> {
        SLOT.with_borrow_mut(|slot| slot.restored = Some(state));
        Ok(())
    }
}
