//! How the battery and the parallel operation are set up: facts that an
//! installer chooses once, published as properties.

use sandgate_driver::{Attribute, Error, Registers, attribute};

/// Battery registers: address and count.
pub const BATTERY: (u16, u16) = (98, 6);
/// Parallel operation: address and count.
pub const PARALLEL: (u16, u16) = (336, 1);

/// The battery's properties. The inverter knows ampere hours; watt hours need
/// the nominal voltage, which only the operator knows.
pub fn battery_properties(registers: &Registers, nominal_voltage: Option<f64>) -> Result<Vec<Attribute>, Error> {
    let kind = match registers.u16(98)? {
        0 => Some("lead_based"),
        1 => Some("lithium_based"),
        _ => None,
    };
    let capacity = registers.u16(102)?;
    let mut properties = vec![attribute("battery_type", kind), attribute("battery_capacity", f64::from(capacity))];
    if let Some(voltage) = nominal_voltage {
        properties.push(attribute("battery_nominal_voltage", voltage));
        // At most 65535 Ah times 1000 V, checked by the manifest.
        #[allow(clippy::cast_possible_truncation)]
        let energy = (f64::from(capacity) * voltage).round() as i64;
        properties.push(attribute("battery_nameplate_capacity", energy));
    }
    Ok(properties)
}

/// The properties of parallel operation. Which bit value means master is not
/// told: the sources contradict each other.
pub fn parallel_properties(registers: &Registers) -> Result<Vec<Attribute>, Error> {
    let word = registers.u16(336)?;
    let phase = match word >> 8 & 0b11 {
        0 => Some("A"),
        1 => Some("B"),
        2 => Some("C"),
        _ => None,
    };
    let is_enabled = word & 1 == 1;
    let phase = phase.filter(|_| is_enabled);
    Ok(vec![attribute("parallel_enabled", is_enabled), attribute("parallel_phase", phase)])
}

#[cfg(test)]
mod tests {
    use sandgate_driver::Value;

    use super::*;

    #[test]
    fn watt_hours_are_told_only_with_a_nominal_voltage() -> Result<(), Error> {
        let registers = Registers::new(98, vec![1, 0, 0, 0, 280, 0]);
        let known = [attribute("battery_type", "lithium_based"), attribute("battery_capacity", 280.0)];
        assert_eq!(battery_properties(&registers, None)?, known);
        let properties = battery_properties(&registers, Some(51.2))?;
        assert_eq!(properties.last(), Some(&attribute("battery_nameplate_capacity", 14_336)));
        Ok(())
    }

    #[test]
    fn a_single_inverter_has_no_phase() -> Result<(), Error> {
        let properties = |word| parallel_properties(&Registers::new(336, vec![word]));
        let enabled = [attribute("parallel_enabled", true), attribute("parallel_phase", "C")];
        assert_eq!(properties(0x0203)?, enabled);
        let alone = [attribute("parallel_enabled", false), attribute("parallel_phase", Value::Unknown)];
        assert_eq!(properties(0x0000)?, alone);
        Ok(())
    }
}
