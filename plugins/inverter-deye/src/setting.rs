//! One setting in the inverter's memory, and how to change it safely.
//!
//! Nobody says how often the memory can be written, and a wrong setting can
//! empty a battery. So a setting is read first, written only if it differs,
//! and read back; the caller hears what really stands there.

use sandgate_driver::modbus::{ModbusError, Unit};
use sandgate_driver::{CommandError, Describe, Registers, command_log};

use crate::problem::command_error;

/// Some firmware shows a new value a moment late.
const READ_BACK_TIMES: usize = 2;

/// What changing a setting needs: the inverter, or a simulated one in tests.
pub trait Memory {
    /// Reads registers.
    fn read(&self, address: u16, count: u16) -> Result<Registers, ModbusError>;
    /// Writes one register.
    fn write(&self, address: u16, value: u16) -> Result<(), ModbusError>;
    /// Tells whoever runs the command how far it got.
    fn tell(&self, text: &str);
}

impl Memory for Unit {
    fn read(&self, address: u16, count: u16) -> Result<Registers, ModbusError> {
        self.holding(address, count)
    }

    /// The protocol opens function 16 only, also for a single register.
    fn write(&self, address: u16, value: u16) -> Result<(), ModbusError> {
        self.write_registers(address, &[value])
    }

    fn tell(&self, text: &str) {
        command_log::write(text);
    }
}

/// A register that a command may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// What it is, for people.
    pub name: &'static str,
    /// Its address.
    pub address: u16,
    /// The bits that belong to it; the others keep their value.
    pub mask: u16,
}

/// What became of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// The value before.
    pub before: u16,
    /// The value now.
    pub now: u16,
}

impl Setting {
    /// The setting's part of its register.
    pub fn of(self, registers: &Registers) -> Result<u16, CommandError> {
        Ok(registers.u16(self.address)? & self.mask)
    }

    /// Makes the setting this value.
    pub fn change(self, memory: &impl Memory, value: u16) -> Result<Change, CommandError> {
        let word = self.read(memory)?;
        let before = word & self.mask;
        if before == value {
            memory.tell(&format!("{} is {value} already, nothing to write", self.name));
            return Ok(Change { before, now: value });
        }
        memory.tell(&format!("{} is {before}, writing {value}", self.name));
        let unclear = self.write(memory, word & !self.mask | value)?;
        let now = self.read_back(memory, value, unclear)?;
        memory.tell(&format!("{} is {now} now", self.name));
        Ok(Change { before, now })
    }

    fn read(self, memory: &impl Memory) -> Result<u16, CommandError> {
        let what = format!("reading {} (register {})", self.name, self.address);
        let registers = memory.read(self.address, 1).map_err(|error| command_error(&what, &error))?;
        Ok(registers.u16(self.address)?)
    }

    /// Writes the register. An answer that was lost or damaged does not tell
    /// whether the inverter took the value: then it is returned.
    fn write(self, memory: &impl Memory, word: u16) -> Result<Option<ModbusError>, CommandError> {
        let what = format!("writing {} (register {})", self.name, self.address);
        match memory.write(self.address, word) {
            Ok(()) => Ok(None),
            Err(error @ (ModbusError::TimedOut | ModbusError::InvalidResponse(_))) => {
                memory.tell(&format!("no clear answer to the write ({}), reading back", error.describe()));
                Ok(Some(error))
            }
            Err(error @ ModbusError::DeviceException(3)) => {
                Err(CommandError::InvalidArgument(format!("{what}: {}", error.describe())))
            }
            Err(error) => Err(command_error(&what, &error)),
        }
    }

    fn read_back(self, memory: &impl Memory, value: u16, unclear: Option<ModbusError>) -> Result<u16, CommandError> {
        let mut found = None;
        for _ in 0..READ_BACK_TIMES {
            match memory.read(self.address, 1) {
                Ok(registers) => found = Some(registers.u16(self.address)? & self.mask),
                Err(error) => memory.tell(&format!("reading back {}: {}", self.name, error.describe())),
            }
            if found == Some(value) {
                return Ok(value);
            }
        }
        match (found, unclear) {
            (Some(found), None) => {
                Err(CommandError::Failed(format!("the inverter keeps {} at {found}, asked for {value}", self.name)))
            }
            (Some(found), Some(_)) => Err(CommandError::DeviceUnreachable(format!(
                "the inverter did not take the write, {} is still {found}",
                self.name
            ))),
            (None, _) => Err(CommandError::TimedOut(format!(
                "{} was written but cannot be read back; whether it is {value} now is unknown",
                self.name
            ))),
        }
    }
}

#[cfg(test)]
pub mod tests {
    use std::cell::RefCell;
    use std::collections::{BTreeMap, VecDeque};

    use super::*;

    /// An inverter's memory that can misbehave.
    #[derive(Default)]
    pub struct Simulated {
        pub registers: RefCell<BTreeMap<u16, u16>>,
        pub writes: RefCell<Vec<(u16, u16)>>,
        /// The answers to the next writes; then all goes well.
        pub answers: RefCell<VecDeque<ModbusError>>,
        /// Whether writes are acknowledged and forgotten.
        pub is_read_only: bool,
        /// Whether it stays silent after a write.
        pub dies: bool,
    }

    impl Simulated {
        pub fn new(registers: &[(u16, u16)]) -> Self {
            Simulated { registers: RefCell::new(registers.iter().copied().collect()), ..Simulated::default() }
        }

        pub fn writes(&self) -> Vec<(u16, u16)> {
            self.writes.borrow().clone()
        }
    }

    impl Memory for Simulated {
        fn read(&self, address: u16, count: u16) -> Result<Registers, ModbusError> {
            if self.dies && !self.writes.borrow().is_empty() {
                return Err(ModbusError::TimedOut);
            }
            let registers = self.registers.borrow();
            let words = (address..address + count).map(|address| registers.get(&address).copied().unwrap_or_default());
            Ok(Registers::new(address, words.collect()))
        }

        fn write(&self, address: u16, value: u16) -> Result<(), ModbusError> {
            self.writes.borrow_mut().push((address, value));
            let answer = self.answers.borrow_mut().pop_front();
            if !self.is_read_only && !matches!(answer, Some(ModbusError::DeviceException(_))) {
                self.registers.borrow_mut().insert(address, value);
            }
            answer.map_or(Ok(()), Err)
        }

        fn tell(&self, _: &str) {}
    }

    const CURRENT: Setting = Setting { name: "a current", address: 108, mask: u16::MAX };
    const SWITCH: Setting = Setting { name: "a switch", address: 130, mask: 1 };

    #[test]
    fn what_stands_there_already_is_not_written() {
        let memory = Simulated::new(&[(108, 60)]);
        assert_eq!(CURRENT.change(&memory, 60), Ok(Change { before: 60, now: 60 }));
        assert_eq!(memory.writes(), []);
        assert_eq!(CURRENT.change(&memory, 80), Ok(Change { before: 60, now: 80 }));
        assert_eq!(memory.writes(), [(108, 80)]);
    }

    #[test]
    fn bits_of_others_in_the_register_are_kept() {
        let memory = Simulated::new(&[(130, 0b110)]);
        assert_eq!(SWITCH.change(&memory, 1), Ok(Change { before: 0, now: 1 }));
        assert_eq!(memory.writes(), [(130, 0b111)]);
    }

    #[test]
    fn a_lost_answer_is_cleared_up_by_reading_back() {
        let memory = Simulated { answers: RefCell::new([ModbusError::TimedOut].into()), ..Simulated::new(&[]) };
        assert_eq!(CURRENT.change(&memory, 5), Ok(Change { before: 0, now: 5 }));
        let ignoring = Simulated {
            answers: RefCell::new([ModbusError::TimedOut].into()),
            is_read_only: true,
            ..Simulated::new(&[])
        };
        assert!(matches!(CURRENT.change(&ignoring, 5), Err(CommandError::DeviceUnreachable(_))));
    }

    #[test]
    fn an_inverter_that_does_not_obey_is_found_out() {
        let memory = Simulated { is_read_only: true, ..Simulated::new(&[(108, 60)]) };
        let error = CommandError::Failed("the inverter keeps a current at 60, asked for 80".into());
        assert_eq!(CURRENT.change(&memory, 80), Err(error));
        let silent = Simulated { dies: true, ..Simulated::new(&[]) };
        assert!(matches!(CURRENT.change(&silent, 80), Err(CommandError::TimedOut(_))));
    }

    #[test]
    fn a_refusal_says_what_was_refused() {
        let memory =
            Simulated { answers: RefCell::new([ModbusError::DeviceException(3)].into()), ..Simulated::new(&[]) };
        let text = "writing a current (register 108): the unit answers with Modbus exception 3";
        assert_eq!(CURRENT.change(&memory, 999), Err(CommandError::InvalidArgument(text.into())));
    }
}
