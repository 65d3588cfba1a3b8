//! What the meter measures: where it stands and how it reads. Pure.
//!
//! Addresses are those on the wire, one less than in Schneider's register
//! list. Every value is an IEEE 754 float in two registers, high word first.

use sandgate_driver::{Attribute, Error, Registers, WordOrder, attribute};

/// Neighbouring values that one request reads.
pub struct Block {
    /// Address of the first register.
    pub first: u16,
    /// Whether the meter counts them in thousands: kW and kWh.
    is_kilo: bool,
    /// The telemetry attributes, two registers each.
    names: &'static [&'static str],
}

/// All that a poll reads.
pub const BLOCKS: [Block; 5] = [
    Block { first: 2999, is_kilo: false, names: &["ac_l1_current", "ac_l2_current", "ac_l3_current"] },
    Block { first: 3027, is_kilo: false, names: &["ac_l1_voltage", "ac_l2_voltage", "ac_l3_voltage"] },
    Block { first: 3053, is_kilo: true, names: &["ac_l1_power", "ac_l2_power", "ac_l3_power", "total_power"] },
    Block { first: 3109, is_kilo: false, names: &["ac_frequency"] },
    Block {
        first: 2699,
        is_kilo: true,
        names: &["energy_total", "active_energy_received", "active_energy_delivered_and_received"],
    },
];

impl Block {
    /// How many registers it has.
    pub const fn count(&self) -> u16 {
        // The longest has four names.
        #[allow(clippy::cast_possible_truncation)]
        let values = self.names.len() as u16;
        2 * values
    }

    /// Reads the values, in W, Wh, V, A and Hz. What the meter marks as not
    /// available, with NaN, is unknown.
    pub fn decode(&self, registers: &Registers, scale_kilo: bool) -> Result<Vec<Attribute>, Error> {
        let exponent = if self.is_kilo && scale_kilo { 3 } else { 0 };
        let addresses = (self.first..).step_by(2);
        let decode = |(name, address): (&&str, u16)| {
            let value = registers.f32(address, WordOrder::HighFirst)?;
            Ok(attribute(name, value.and_then(|value| decimal(value, exponent))))
        };
        self.names.iter().zip(addresses).map(decode).collect()
    }
}

/// A float of the meter times a power of ten, as the decimal number it stands
/// for: 230.1 and not the 230.10000610351562 that its 32 bits hold.
fn decimal(value: f64, exponent: i8) -> Option<f64> {
    // It came from 32 bits, so nothing is lost; Rust prints as few digits as
    // tell it from its neighbours.
    #[allow(clippy::cast_possible_truncation)]
    let short = value as f32;
    format!("{short}e{exponent}").parse().ok()
}

#[cfg(test)]
mod tests {
    use sandgate_driver::Value;

    use super::*;

    fn registers(first: u16, values: &[f32]) -> Registers {
        let words = values.iter().flat_map(|value| {
            let bits = value.to_bits();
            [(bits >> 16) as u16, (bits & 0xFFFF) as u16]
        });
        Registers::new(first, words.collect())
    }

    fn decoded(first: u16, values: &[f32], scale_kilo: bool) -> Vec<(String, Value)> {
        let block = BLOCKS.iter().find(|block| block.first == first);
        let attributes = block.map(|block| block.decode(&registers(first, values), scale_kilo));
        attributes.and_then(Result::ok).unwrap_or_default().into_iter().map(|one| (one.name, one.value)).collect()
    }

    fn named(names: &[&str], values: &[f64]) -> Vec<(String, Value)> {
        names.iter().zip(values).map(|(name, value)| ((*name).to_owned(), Value::Float(*value))).collect()
    }

    #[test]
    fn kilowatts_become_watts_and_volts_stay_volts() {
        let names = ["ac_l1_power", "ac_l2_power", "ac_l3_power", "total_power"];
        assert_eq!(decoded(3053, &[2.25, -2.5, 0.0, -0.25], true), named(&names, &[2250.0, -2500.0, 0.0, -250.0]));
        assert_eq!(decoded(3053, &[2250.0, 0.0, 0.0, 2250.0], false), named(&names, &[2250.0, 0.0, 0.0, 2250.0]));
        let names = ["ac_l1_voltage", "ac_l2_voltage", "ac_l3_voltage"];
        assert_eq!(decoded(3027, &[230.1, 231.5, 232.25], true), named(&names, &[230.1, 231.5, 232.25]));
        assert_eq!(decoded(3109, &[50.03], true), named(&["ac_frequency"], &[50.03]));
    }

    #[test]
    fn kilowatt_hours_become_watt_hours_without_rounding_noise() {
        let names = ["energy_total", "active_energy_received", "active_energy_delivered_and_received"];
        assert_eq!(decoded(2699, &[12345.75, 0.1, 8.007], true), named(&names, &[12_345_750.0, 100.0, 8007.0]));
    }

    #[test]
    fn nan_and_infinity_are_unknown() {
        let values = decoded(2999, &[f32::NAN, f32::INFINITY, 1.5], true);
        let values: Vec<Value> = values.into_iter().map(|(_, value)| value).collect();
        assert_eq!(values, [Value::Unknown, Value::Unknown, Value::Float(1.5)]);
        // As PM2100 meters send it: negative and quiet.
        let block = Registers::new(3109, vec![0xFFC0, 0x0000]);
        let frequency = BLOCKS.iter().find(|block| block.first == 3109).map(|found| found.decode(&block, true));
        assert_eq!(frequency.and_then(Result::ok), Some(vec![attribute("ac_frequency", Value::Unknown)]));
    }

    #[test]
    fn a_short_answer_is_an_error() {
        assert!(BLOCKS.iter().all(|block| block.decode(&Registers::new(block.first, vec![0; 1]), true).is_err()));
    }

    #[test]
    fn every_value_is_declared_in_the_manifest() {
        let manifest = include_str!("../manifest.yml");
        for name in BLOCKS.iter().flat_map(|block| block.names) {
            assert!(manifest.contains(&format!("\n  {name}:\n")), "{name}");
        }
    }
}
