//! One error for `?`: a text for the log. And the way from the errors of
//! imports to the result of a command.

use std::fmt;

use crate::CommandError;
use crate::can::CanError;
use crate::http::HttpError;
use crate::io::IoError;
use crate::modbus::ModbusError;
use crate::net::NetError;
use crate::serial::SerialError;

/// Why a driver cannot go on: a text for the log.
///
/// Made from any error with `?`, or from a text with `.into()`.
pub struct Error(String);

impl Error {
    pub(crate) fn into_text(self) -> String {
        self.0
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.0
    }
}

impl<E: fmt::Display> From<E> for Error {
    fn from(error: E) -> Self {
        Error(error.to_string())
    }
}

/// Says which unit failed in a command's error: a device that does not answer
/// is unreachable.
impl From<ModbusError> for CommandError {
    fn from(error: ModbusError) -> Self {
        match error {
            ModbusError::TimedOut | ModbusError::Unavailable(_) => {
                CommandError::DeviceUnreachable(describe_modbus(&error))
            }
            ModbusError::Busy => CommandError::Busy(describe_modbus(&error)),
            ModbusError::InvalidArgument(text) => CommandError::InvalidArgument(text),
            // Illegal function or address: this model cannot do it. Acknowledge, busy: not now.
            ModbusError::DeviceException(1 | 2) => CommandError::Unsupported(describe_modbus(&error)),
            ModbusError::DeviceException(3) => CommandError::InvalidArgument(describe_modbus(&error)),
            ModbusError::DeviceException(5 | 6) => CommandError::Busy(describe_modbus(&error)),
            other => CommandError::Failed(describe_modbus(&other)),
        }
    }
}

impl From<HttpError> for CommandError {
    fn from(error: HttpError) -> Self {
        match error {
            HttpError::TimedOut => CommandError::DeviceUnreachable("timed out".into()),
            HttpError::Failed(text) => CommandError::DeviceUnreachable(text),
            other => CommandError::Failed(describe_http(&other)),
        }
    }
}

/// A device that cannot be reached, or closes the connection, is unreachable.
impl From<NetError> for CommandError {
    fn from(error: NetError) -> Self {
        match error {
            NetError::Unresolved(_) | NetError::Refused | NetError::TimedOut | NetError::Closed => {
                CommandError::DeviceUnreachable(error.describe())
            }
            NetError::InvalidArgument(text) => CommandError::InvalidArgument(text),
            other => CommandError::Failed(other.describe()),
        }
    }
}

/// A bus that takes no frames is unreachable.
impl From<CanError> for CommandError {
    fn from(error: CanError) -> Self {
        match error {
            CanError::Unavailable(text) => CommandError::DeviceUnreachable(text),
            CanError::Busy => CommandError::Busy("the bus is busy".into()),
            CanError::InvalidArgument(text) => CommandError::InvalidArgument(text),
            CanError::NotGranted(text) => CommandError::Failed(text),
        }
    }
}

/// A pin that is gone is unreachable.
impl From<IoError> for CommandError {
    fn from(error: IoError) -> Self {
        match error {
            IoError::Unavailable(text) => CommandError::DeviceUnreachable(text),
            IoError::InvalidArgument(text) => CommandError::InvalidArgument(text),
            IoError::NotGranted(text) => CommandError::Failed(text),
        }
    }
}

/// A device that does not answer, or whose port is gone, is unreachable.
impl From<SerialError> for CommandError {
    fn from(error: SerialError) -> Self {
        match error {
            SerialError::TimedOut | SerialError::Unavailable(_) => CommandError::DeviceUnreachable(error.describe()),
            SerialError::Busy => CommandError::Busy(error.describe()),
            SerialError::InvalidArgument(text) => CommandError::InvalidArgument(text),
            SerialError::NotGranted(text) => CommandError::Failed(text),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Error> for CommandError {
    fn from(error: Error) -> Self {
        CommandError::Failed(error.0)
    }
}

/// A readable text for an error of the contract, whose own is made for debugging:
/// `meter.holding(0, 2).map_err(|error| error.describe())?`.
pub trait Describe {
    /// The text, in lower case, without a full stop.
    fn describe(&self) -> String;
}

impl Describe for ModbusError {
    fn describe(&self) -> String {
        describe_modbus(self)
    }
}

impl Describe for HttpError {
    fn describe(&self) -> String {
        describe_http(self)
    }
}

impl Describe for NetError {
    fn describe(&self) -> String {
        match self {
            NetError::NotGranted(text) => text.clone(),
            NetError::Unresolved(host) => format!("no such host: {host}"),
            NetError::Refused => "the host refuses the connection".into(),
            NetError::TimedOut => "the host does not answer".into(),
            NetError::Closed => "the host has closed the connection".into(),
            NetError::InvalidArgument(text) => format!("invalid argument: {text}"),
            NetError::Failed(text) => text.clone(),
        }
    }
}

impl Describe for CanError {
    fn describe(&self) -> String {
        match self {
            CanError::NotGranted(text) | CanError::Unavailable(text) => text.clone(),
            CanError::Busy => "the bus is busy".into(),
            CanError::InvalidArgument(text) => format!("invalid argument: {text}"),
        }
    }
}

impl Describe for IoError {
    fn describe(&self) -> String {
        match self {
            IoError::NotGranted(text) | IoError::Unavailable(text) => text.clone(),
            IoError::InvalidArgument(text) => format!("invalid argument: {text}"),
        }
    }
}

impl Describe for SerialError {
    fn describe(&self) -> String {
        match self {
            SerialError::NotGranted(text) => text.clone(),
            SerialError::TimedOut => "the device does not answer".into(),
            SerialError::Unavailable(text) => format!("the port is unavailable: {text}"),
            SerialError::Busy => "the port is busy".into(),
            SerialError::InvalidArgument(text) => format!("invalid argument: {text}"),
        }
    }
}

fn describe_modbus(error: &ModbusError) -> String {
    match error {
        ModbusError::NotGranted(text) => text.clone(),
        ModbusError::TimedOut => "the unit does not answer".into(),
        ModbusError::DeviceException(code) => format!("the unit answers with Modbus exception {code}"),
        ModbusError::InvalidResponse(text) => format!("invalid response: {text}"),
        ModbusError::Unavailable(text) => format!("the line is unavailable: {text}"),
        ModbusError::Busy => "the line is busy".into(),
        ModbusError::InvalidArgument(text) => format!("invalid argument: {text}"),
    }
}

fn describe_http(error: &HttpError) -> String {
    match error {
        HttpError::NotGranted(text) => text.clone(),
        HttpError::InvalidRequest(text) => format!("invalid request: {text}"),
        HttpError::TimedOut => "the host does not answer".into(),
        HttpError::TooLarge(most) => format!("the response is larger than {most} bytes"),
        HttpError::Failed(text) => text.clone(),
    }
}
