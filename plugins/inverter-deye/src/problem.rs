//! Modbus failures as errors of commands.

use sandgate_driver::modbus::ModbusError;
use sandgate_driver::{CommandError, Describe};

/// Turns a failed transaction into the error of a command; `what` says what
/// was tried, such as "reading the work mode".
///
/// The exceptions are those of the vendor's protocol and of Modbus. Number 3,
/// illegal value, means something only where a value was written.
pub fn command_error(what: &str, error: &ModbusError) -> CommandError {
    let text = format!("{what}: {}", error.describe());
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
