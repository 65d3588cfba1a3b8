//! Building samples and properties.

use std::time::SystemTime;

use crate::host::{properties, telemetry};
use crate::{Attribute, FlushError, SendError, Value};

/// Attributes that were measured together.
#[derive(Debug, Default, Clone)]
pub struct Sample {
    time: Option<f64>,
    attributes: Vec<Attribute>,
}

impl Sample {
    /// An empty sample, measured now.
    pub fn new() -> Self {
        Sample::default()
    }

    /// Sets when it was measured.
    pub fn at(mut self, time: SystemTime) -> Self {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.time = Some(since.as_secs_f64() * 1000.0);
        self
    }

    /// Adds an attribute. `None` becomes null: the value is unknown.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.attributes.push(attribute(name, value));
        self
    }

    /// Adds attributes.
    pub fn with_all(mut self, attributes: impl IntoIterator<Item = Attribute>) -> Self {
        self.attributes.extend(attributes);
        self
    }

    /// Hands it to the gateway.
    pub fn send(self) -> Result<(), SendError> {
        telemetry::send(&telemetry::Sample { time: self.time, attributes: self.attributes })
    }
}

/// Waits until all that was sent so far survives a power cut of the gateway:
/// before something is erased in the device that cannot be read again.
pub fn flush() -> Result<(), FlushError> {
    telemetry::flush()
}

/// Makes an attribute.
pub fn attribute(name: &str, value: impl Into<Value>) -> Attribute {
    Attribute { name: name.to_owned(), value: value.into() }
}

/// Publishes properties of the device.
pub fn publish_properties(attributes: &[Attribute]) -> Result<(), SendError> {
    properties::publish(attributes)
}

macro_rules! value_from {
    ($($from:ty => $variant:ident),* $(,)?) => {$(
        impl From<$from> for Value {
            fn from(value: $from) -> Self {
                Value::$variant(value.into())
            }
        }
    )*};
}

value_from! {
    bool => Boolean,
    i64 => Integer, i32 => Integer, i16 => Integer, u32 => Integer, u16 => Integer, u8 => Integer,
    f64 => Float, f32 => Float,
    &str => Text, String => Text,
    Vec<String> => TextList,
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Value::Unknown, Into::into)
    }
}
