//! Modbus failures in words, for logs.

use sandgate_driver::modbus::ModbusError;

/// Says what went wrong in a transaction, lower case and without full stop.
pub fn describe(error: &ModbusError) -> String {
    match error {
        ModbusError::NotGranted(text) => text.clone(),
        ModbusError::TimedOut => "the unit does not answer".into(),
        ModbusError::DeviceException(code) => format!("the unit answers with Modbus exception {code}"),
        ModbusError::InvalidResponse(text) => format!("invalid response: {text}"),
        ModbusError::Unavailable(text) => format!("the line is unavailable: {text}"),
        ModbusError::Busy => "too many transactions wait for the line".into(),
        ModbusError::InvalidArgument(text) => format!("invalid argument: {text}"),
    }
}
