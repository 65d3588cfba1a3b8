//! Modbus failures in words, for logs and for whoever runs a command.

use sandgate_driver::CommandError;
use sandgate_driver::modbus::ModbusError;

/// Says what went wrong in a transaction, lower case and without full stop.
pub fn describe(error: &ModbusError) -> String {
    match error {
        ModbusError::NotGranted(text) => text.clone(),
        ModbusError::TimedOut => "the inverter does not answer".into(),
        ModbusError::DeviceException(code) => format!("the inverter answers with Modbus exception {code}"),
        ModbusError::InvalidResponse(text) => format!("invalid response: {text}"),
        ModbusError::Unavailable(text) => format!("the line is unavailable: {text}"),
        ModbusError::Busy => "too many transactions wait for the line".into(),
        ModbusError::InvalidArgument(text) => format!("invalid argument: {text}"),
    }
}

/// Turns a failed transaction into the error of a command; `what` says what
/// was tried, such as "reading the work mode".
///
/// The exceptions are those of the vendor's protocol and of Modbus. Number 3,
/// illegal value, means something only where a value was written.
pub fn command_error(what: &str, error: &ModbusError) -> CommandError {
    let text = format!("{what}: {}", describe(error));
    match error {
        ModbusError::TimedOut | ModbusError::Unavailable(_) => CommandError::DeviceUnreachable(text),
        ModbusError::Busy | ModbusError::DeviceException(5 | 6) => CommandError::Busy(text),
        // Illegal function or address: this model has no such setting.
        ModbusError::DeviceException(1 | 2) => CommandError::Unsupported(text),
        _ => CommandError::Failed(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_of_the_inverter_become_errors_a_caller_can_act_on() {
        let error = |code| command_error("writing x", &ModbusError::DeviceException(code));
        assert!(matches!(error(2), CommandError::Unsupported(text) if text.starts_with("writing x: ")));
        assert!(matches!(error(4), CommandError::Failed(_)));
        assert!(matches!(error(6), CommandError::Busy(_)));
        assert!(matches!(command_error("x", &ModbusError::TimedOut), CommandError::DeviceUnreachable(_)));
    }
}
