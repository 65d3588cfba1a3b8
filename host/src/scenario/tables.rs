//! A simulated Modbus unit: its tables, what it answers, and how requests are told.

use std::collections::BTreeMap;

use tokio_modbus::{ExceptionCode, Request, Response};

use super::format::{Gaps, Unit};

/// The tables of a Modbus unit, address by address.
#[derive(Default)]
pub(super) struct Tables {
    holding: BTreeMap<u16, u16>,
    input: BTreeMap<u16, u16>,
    coils: BTreeMap<u16, bool>,
    discrete: BTreeMap<u16, bool>,
    refuses_gaps: bool,
    read_only: Vec<u16>,
    clears: Vec<u16>,
}

/// An answer with one value less, of which a whole byte of bits is missing.
pub(super) fn shortened(answer: Response) -> Response {
    match answer {
        Response::ReadHoldingRegisters(mut words) => {
            words.pop();
            Response::ReadHoldingRegisters(words)
        }
        Response::ReadInputRegisters(mut words) => {
            words.pop();
            Response::ReadInputRegisters(words)
        }
        Response::ReadCoils(bits) => Response::ReadCoils(bits.into_iter().skip(8).collect()),
        Response::ReadDiscreteInputs(bits) => Response::ReadDiscreteInputs(bits.into_iter().skip(8).collect()),
        other => other,
    }
}

/// A request for the timeline, and whether it writes.
pub(super) fn describe(line: &str, unit: u8, request: &Request<'_>) -> (String, bool) {
    let read =
        |table: &str, address: &u16, count: &u16| (format!("{line}/{unit} read {table} {address} x {count}"), false);
    let write =
        |table: &str, address: &u16, values: String| (format!("{line}/{unit} {table} {address} = {values}"), true);
    match request {
        Request::ReadHoldingRegisters(address, count) => read("holding", address, count),
        Request::ReadInputRegisters(address, count) => read("input", address, count),
        Request::ReadCoils(address, count) => read("coils", address, count),
        Request::ReadDiscreteInputs(address, count) => read("discrete", address, count),
        Request::WriteSingleRegister(address, value) => write("holding", address, value.to_string()),
        Request::WriteMultipleRegisters(address, values) => write("holding", address, list(values)),
        Request::WriteSingleCoil(address, value) => write("coils", address, value.to_string()),
        Request::WriteMultipleCoils(address, values) => write("coils", address, list(values)),
        other => (format!("{line}/{unit} function {}", other.function_code()), true),
    }
}

/// What was read is zero where the device clears it.
fn clear(table: &mut BTreeMap<u16, u16>, clears: &[u16], first: u16, count: u16) {
    let was_read =
        |address: &&u16| (u32::from(first)..u32::from(first) + u32::from(count)).contains(&u32::from(**address));
    for address in clears.iter().filter(was_read) {
        table.entry(*address).and_modify(|value| *value = 0);
    }
}

fn list<T: ToString>(values: &[T]) -> String {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

impl Tables {
    /// Changes what is there.
    pub(super) fn change(&mut self, change: &Unit) {
        fn put<T: Copy>(table: &mut BTreeMap<u16, T>, first: u16, values: &[T]) {
            table.extend((first..=u16::MAX).zip(values.iter().copied()));
        }
        change.holding.iter().for_each(|(first, words)| put(&mut self.holding, *first, &words.0));
        change.input.iter().for_each(|(first, words)| put(&mut self.input, *first, &words.0));
        change.coils.iter().for_each(|(first, bits)| put(&mut self.coils, *first, &bits.0));
        change.discrete.iter().for_each(|(first, bits)| put(&mut self.discrete, *first, &bits.0));
        if let Some(gaps) = change.gaps {
            self.refuses_gaps = gaps == Gaps::Refused;
        }
        self.read_only.extend(&change.read_only);
        self.clears.extend(&change.clears);
    }

    fn read<T: Copy + Default>(
        &self,
        table: &BTreeMap<u16, T>,
        first: u16,
        count: u16,
    ) -> Result<Vec<T>, ExceptionCode> {
        let last = u32::from(first) + u32::from(count.max(1)) - 1;
        let (lowest, highest) = (table.keys().next(), table.keys().next_back());
        let is_inside =
            lowest.is_some_and(|lowest| *lowest <= first) && highest.is_some_and(|highest| last <= u32::from(*highest));
        let refused = Err(ExceptionCode::IllegalDataAddress);
        let (true, Ok(last)) = (is_inside, u16::try_from(last)) else { return refused };
        let mut values = vec![T::default(); usize::from(count)];
        let mut found = 0;
        for (address, value) in table.range(first..=last) {
            if let Some(place) = values.get_mut(usize::from(address - first)) {
                *place = *value;
                found += 1;
            }
        }
        if self.refuses_gaps && found < values.len() { refused } else { Ok(values) }
    }

    /// Writes where the device has something.
    fn write<T: Copy>(
        table: &mut BTreeMap<u16, T>,
        first: u16,
        values: &[T],
        keeps: &[u16],
        refuses_gaps: bool,
    ) -> Result<u16, ExceptionCode> {
        let addresses = || (first..=u16::MAX).zip(values);
        let range = table.keys().next().copied().zip(table.keys().next_back().copied());
        let is_there = |address: u16| match refuses_gaps {
            true => table.contains_key(&address),
            false => range.is_some_and(|(lowest, highest)| (lowest..=highest).contains(&address)),
        };
        if addresses().count() < values.len() || addresses().any(|(address, _)| !is_there(address)) {
            return Err(ExceptionCode::IllegalDataAddress);
        }
        table.extend(
            addresses().filter(|(address, _)| !keeps.contains(address)).map(|(address, value)| (address, *value)),
        );
        Ok(u16::try_from(values.len()).unwrap_or(u16::MAX))
    }

    /// Carries out a request.
    pub(super) fn answer(&mut self, request: &Request<'_>) -> Result<Response, ExceptionCode> {
        Ok(match request {
            Request::ReadHoldingRegisters(first, count) => {
                let words = self.read(&self.holding, *first, *count)?;
                clear(&mut self.holding, &self.clears, *first, *count);
                Response::ReadHoldingRegisters(words)
            }
            Request::ReadInputRegisters(first, count) => {
                let words = self.read(&self.input, *first, *count)?;
                clear(&mut self.input, &self.clears, *first, *count);
                Response::ReadInputRegisters(words)
            }
            Request::ReadCoils(first, count) => Response::ReadCoils(self.read(&self.coils, *first, *count)?),
            Request::ReadDiscreteInputs(first, count) => {
                Response::ReadDiscreteInputs(self.read(&self.discrete, *first, *count)?)
            }
            Request::WriteSingleRegister(address, value) => {
                Tables::write(&mut self.holding, *address, &[*value], &self.read_only, self.refuses_gaps)?;
                Response::WriteSingleRegister(*address, *value)
            }
            Request::WriteMultipleRegisters(first, values) => {
                let count = Tables::write(&mut self.holding, *first, values, &self.read_only, self.refuses_gaps)?;
                Response::WriteMultipleRegisters(*first, count)
            }
            Request::WriteSingleCoil(address, value) => {
                Tables::write(&mut self.coils, *address, &[*value], &[], self.refuses_gaps)?;
                Response::WriteSingleCoil(*address, *value)
            }
            Request::WriteMultipleCoils(first, values) => Response::WriteMultipleCoils(
                *first,
                Tables::write(&mut self.coils, *first, values, &[], self.refuses_gaps)?,
            ),
            _ => return Err(ExceptionCode::IllegalFunction),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cleared_by_reading_is_read_once() {
        let unit = serde_json::from_value(serde_json::json!({"holding": {"10": [1, 2, 3]}, "clears": [11]})).unwrap();
        let mut tables = Tables::default();
        tables.change(&unit);
        let mut read = |first, count| match tables.answer(&Request::ReadHoldingRegisters(first, count)) {
            Ok(Response::ReadHoldingRegisters(words)) => words,
            other => panic!("{other:?}"),
        };
        assert_eq!(read(12, 1), [3]);
        assert_eq!(read(10, 3), [1, 2, 3]);
        assert_eq!(read(10, 3), [1, 0, 3]);
    }
}
