//! Decoding Modbus registers, by the addresses of the manual.

use crate::Error;
use crate::modbus::{ModbusError, Unit};

/// Which of two registers holds the higher half of a 32-bit value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WordOrder {
    /// The first one, as the Modbus specification has it ("ABCD").
    HighFirst,
    /// The second one ("CDAB").
    LowFirst,
}

/// A block of registers as read from a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registers {
    first: u16,
    words: Vec<u16>,
}

impl Registers {
    /// A block that starts at an address.
    pub fn new(first: u16, words: Vec<u16>) -> Self {
        Registers { first, words }
    }

    /// The register at an address, unsigned.
    pub fn u16(&self, address: u16) -> Result<u16, Error> {
        let index = address.checked_sub(self.first).map(usize::from);
        let word = index.and_then(|index| self.words.get(index)).copied();
        word.ok_or_else(|| {
            let end = usize::from(self.first) + self.words.len();
            Error::from(format!("register {address} is outside the block {}..{end}", self.first))
        })
    }

    /// The register at an address, two's complement.
    pub fn i16(&self, address: u16) -> Result<i16, Error> {
        Ok(self.u16(address)?.cast_signed())
    }

    /// Two registers, unsigned.
    pub fn u32(&self, address: u16, order: WordOrder) -> Result<u32, Error> {
        let (one, two) = (u32::from(self.u16(address)?), u32::from(self.u16(address.saturating_add(1))?));
        Ok(match order {
            WordOrder::HighFirst => one << 16 | two,
            WordOrder::LowFirst => two << 16 | one,
        })
    }

    /// Two registers, two's complement.
    pub fn i32(&self, address: u16, order: WordOrder) -> Result<i32, Error> {
        Ok(self.u32(address, order)?.cast_signed())
    }

    /// Two registers, IEEE 754. None stands for NaN and infinities, which
    /// devices use for "not available".
    pub fn f32(&self, address: u16, order: WordOrder) -> Result<Option<f64>, Error> {
        let value = f32::from_bits(self.u32(address, order)?);
        // The shortest decimal of the 32 bits: 230.1 and not 230.10000610351562.
        Ok(value.to_string().parse().ok().filter(|_| value.is_finite()))
    }

    /// A text of two bytes a register, high byte first, without padding.
    pub fn string(&self, address: u16, registers: u16) -> Result<String, Error> {
        let mut bytes = Vec::with_capacity(usize::from(registers) * 2);
        for offset in 0..registers {
            bytes.extend_from_slice(&self.u16(address.saturating_add(offset))?.to_be_bytes());
        }
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        bytes.truncate(end);
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// An unsigned register times a scale, rounded to the scale's digits.
    pub fn scaled(&self, address: u16, scale: f64) -> Result<f64, Error> {
        Ok(times(f64::from(self.u16(address)?), scale))
    }

    /// A signed register times a scale, rounded to the scale's digits.
    pub fn scaled_i16(&self, address: u16, scale: f64) -> Result<f64, Error> {
        Ok(times(f64::from(self.i16(address)?), scale))
    }
}

/// 231 × 0.1 is 23.1 and not 23.1 plus a rounding error.
fn times(raw: f64, scale: f64) -> f64 {
    let inverse = (1.0 / scale).round();
    if inverse >= 1.0 && (scale * inverse - 1.0).abs() < 1e-9 { raw / inverse } else { raw * scale }
}

impl Unit {
    /// Reads a block of holding registers (function 3).
    pub fn holding(&self, first: u16, count: u16) -> Result<Registers, ModbusError> {
        self.read_holding_registers(first, count).map(|words| Registers::new(first, words))
    }

    /// Reads a block of input registers (function 4).
    pub fn input(&self, first: u16, count: u16) -> Result<Registers, ModbusError> {
        self.read_input_registers(first, count).map(|words| Registers::new(first, words))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_decode_by_address_and_word_order() {
        let block = Registers::new(100, vec![0xFFFE, 0x4129, 0x0000, 0x7FC0, 0x0000, 0x5350, 0x3220, 0x0041]);
        assert_eq!(block.u16(100).unwrap(), 65534);
        assert_eq!(block.i16(100).unwrap(), -2);
        assert_eq!(block.u32(101, WordOrder::HighFirst).unwrap(), 0x4129_0000);
        assert_eq!(block.u32(101, WordOrder::LowFirst).unwrap(), 0x0000_4129);
        assert_eq!(block.i32(100, WordOrder::HighFirst).unwrap(), -114_391);
        assert_eq!(block.f32(101, WordOrder::HighFirst).unwrap(), Some(10.5625));
        assert_eq!(block.f32(103, WordOrder::HighFirst).unwrap(), None);
        let block = Registers::new(0, vec![0x4366, 0x199A]);
        assert_eq!(block.f32(0, WordOrder::HighFirst).unwrap(), Some(230.1));
        let block = Registers::new(100, vec![0xFFFE, 0x4129, 0x0000, 0x7FC0, 0x0000, 0x5350, 0x3220, 0x0041]);
        assert_eq!(block.string(105, 3).unwrap(), "SP2");
        assert_eq!(block.scaled(101, 0.1).unwrap(), 1668.1);
        assert_eq!(block.scaled_i16(100, 0.01).unwrap(), -0.02);
        assert_eq!(block.scaled_i16(100, 10.0).unwrap(), -20.0);
    }

    #[test]
    fn an_address_outside_the_block_says_so() {
        let block = Registers::new(100, vec![1, 2]);
        for address in [99, 102, 0, u16::MAX] {
            let error = block.u16(address).unwrap_err();
            assert_eq!(error.text(), format!("register {address} is outside the block 100..102"));
        }
        assert!(block.u32(101, WordOrder::HighFirst).is_err());
    }
}
