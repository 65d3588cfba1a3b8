//! What the units on a line have answered, out of a capture.

use std::collections::HashMap;

use super::{Block, Table, Unit};
use crate::capture::Exchange;
use crate::sandbox::contract::sandgate::driver::modbus::ModbusError;

/// A capture says `exception` by this bit of the function code.
const EXCEPTION: u8 = 0x80;

/// All that was read from units, as if from a line of this name.
pub(super) fn units(line: &str, exchanges: &[Exchange]) -> HashMap<(String, u8), Unit> {
    let mut units: HashMap<(String, u8), Unit> = HashMap::new();
    for exchange in exchanges {
        let Some(block) = block(&exchange.request) else { continue };
        let Some(values) = values(block, exchange.answer.as_deref()) else { continue };
        let unit = units.entry((line.to_owned(), exchange.unit)).or_default();
        unit.0.entry(block).or_default().push(exchange.at, exchange.took, values);
    }
    units
}

/// What a request reads; none for what reads nothing.
fn block(request: &[u8]) -> Option<Block> {
    let [function, address_high, address_low, count_high, count_low] = request.try_into().ok()?;
    let table = match function {
        1 => Table::Coils,
        2 => Table::Discrete,
        3 => Table::Holding,
        4 => Table::Input,
        _ => return None,
    };
    Some((table, u16::from_be_bytes([address_high, address_low]), u16::from_be_bytes([count_high, count_low])))
}

/// What came; none for what is no answer to that.
fn values((table, _, count): Block, answer: Option<&[u8]>) -> Option<Result<Vec<u16>, ModbusError>> {
    let Some(answer) = answer else { return Some(Err(ModbusError::TimedOut)) };
    let values: Vec<u16> = match (table, answer) {
        (_, [function, code]) if function & EXCEPTION != 0 => return Some(Err(ModbusError::DeviceException(*code))),
        (Table::Holding | Table::Input, [_, _, bytes @ ..]) => {
            bytes.chunks_exact(2).map(|word| word.iter().fold(0, |word, byte| word << 8 | u16::from(*byte))).collect()
        }
        (_, [_, _, bytes @ ..]) => {
            let bits = bytes.iter().flat_map(|byte| (0..8).map(move |bit| u16::from(byte >> bit & 1)));
            bits.take(usize::from(count)).collect()
        }
        _ => return None,
    };
    (values.len() == usize::from(count)).then_some(Ok(values))
}
