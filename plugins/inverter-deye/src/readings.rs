//! What the inverter measures: two blocks of registers. Pure.
//!
//! 32-bit values have their low word first. Powers stay within 16 bits: older
//! firmware has no high words, and inverters of this size need none.

use sandgate_driver::{Attribute, Error, Registers, WordOrder, attribute};

use crate::nameplate::Family;

/// States, energies, battery: address and count.
pub const FIRST_BLOCK: (u16, u16) = (500, 110);
/// Grid, output, load, PV: address and count.
pub const SECOND_BLOCK: (u16, u16) = (616, 80);

/// PV inputs that the map has; unused ones read 0.
const PV_POWERS: [u16; 4] = [672, 673, 674, 675];
const PV_VOLTAGES: [u16; 4] = [676, 678, 680, 682];
const PV_CURRENTS: [u16; 4] = [677, 679, 681, 683];

/// What decoding depends on beside the registers.
#[derive(Debug, Clone, Copy)]
pub struct Scales {
    /// Sets the scale of battery voltage, battery power and PV power.
    pub family: Family,
    /// From this voltage on a PV string counts as connected.
    pub pv_string_voltage: f64,
}

impl Scales {
    fn battery_voltage(self) -> f64 {
        match self.family {
            Family::LowVoltage => 0.01,
            Family::HighVoltage => 0.1,
        }
    }

    fn dc_power(self) -> f64 {
        match self.family {
            Family::LowVoltage => 1.0,
            Family::HighVoltage => 10.0,
        }
    }
}

/// Reads both blocks as telemetry attributes.
pub fn decode(first: &Registers, second: &Registers, scales: Scales) -> Result<Vec<Attribute>, Error> {
    let mut attributes = state(first)?;
    attributes.extend(energies(first)?);
    attributes.extend(battery(first, scales)?);
    attributes.extend(ac(second)?);
    attributes.extend(pv(second, scales)?);
    Ok(attributes)
}

fn state(first: &Registers) -> Result<Vec<Attribute>, Error> {
    let is_switched_on = first.u16(551)? & 1 == 1;
    let status = match first.u16(500)? {
        0 if !is_switched_on => Some("idle"),
        0 => Some("standby"),
        // Self-check, and activating.
        1 | 5 => Some("starting"),
        2 => Some("operating"),
        3 => Some("alarm"),
        4 => Some("fault"),
        _ => None,
    };
    // Bit 2 is the relay between inverter and grid.
    let grid = if first.u16(552)? & 1 << 2 != 0 { "connected" } else { "disconnected" };
    Ok(vec![
        attribute("status", status),
        attribute("grid_status", grid),
        attribute("ac_frequency", first.scaled(609, 0.01)?),
        attribute("inverter_internal_temperature", celsius(first, 540)?),
        attribute("inverter_heatsink_temperature", celsius(first, 541)?),
    ])
}

fn energies(first: &Registers) -> Result<Vec<Attribute>, Error> {
    let daily = |name, address| Ok(attribute(name, f64::from(first.u16(address)?) * 100.0));
    let lifetime = |name, address| Ok(attribute(name, f64::from(first.u32(address, WordOrder::LowFirst)?) * 100.0));
    let signed = f64::from(first.i16(501)?) * 100.0;
    [
        Ok(attribute("ac_energy_daily", signed)),
        lifetime("ac_energy_lifetime", 504),
        daily("battery_energy_in_daily", 514),
        daily("battery_energy_out_daily", 515),
        lifetime("battery_energy_in_lifetime", 516),
        lifetime("battery_energy_out_lifetime", 518),
        daily("grid_energy_import_daily", 520),
        daily("grid_energy_export_daily", 521),
        lifetime("grid_energy_import_lifetime", 522),
        lifetime("grid_energy_export_lifetime", 524),
        daily("load_energy_daily", 526),
        lifetime("load_energy_lifetime", 527),
        daily("pv_energy_daily", 529),
        lifetime("pv_energy_lifetime", 534),
    ]
    .into_iter()
    .collect()
}

fn battery(first: &Registers, scales: Scales) -> Result<Vec<Attribute>, Error> {
    // Positive when the battery gives: the same sign as the power.
    let current = first.scaled_i16(591, 0.01)?;
    let charge_status = match current {
        current if current > 0.0 => "discharging",
        current if current < 0.0 => "charging",
        _ => "idle",
    };
    Ok(vec![
        attribute("battery_charge_status", charge_status),
        attribute("battery_voltage", first.scaled(587, scales.battery_voltage())?),
        attribute("battery_current", current),
        attribute("battery_power", first.scaled_i16(590, scales.dc_power())?),
        attribute("battery_soc", f64::from(first.u16(588)?)),
        attribute("battery_temperature", celsius(first, 586)?),
    ])
}

fn ac(second: &Registers) -> Result<Vec<Attribute>, Error> {
    let watts = |name, address| Ok(attribute(name, f64::from(second.i16(address)?)));
    let volts = |name, address| Ok(attribute(name, second.scaled(address, 0.1)?));
    let amperes = |name, address| Ok(attribute(name, second.scaled_i16(address, 0.01)?));
    [
        watts("grid_l1_power", 622),
        watts("grid_l2_power", 623),
        watts("grid_l3_power", 624),
        watts("grid_total_power", 625),
        volts("ac_l1_voltage", 627),
        volts("ac_l2_voltage", 628),
        volts("ac_l3_voltage", 629),
        amperes("ac_l1_current", 630),
        amperes("ac_l2_current", 631),
        amperes("ac_l3_current", 632),
        watts("ac_l1_power", 633),
        watts("ac_l2_power", 634),
        watts("ac_l3_power", 635),
        watts("ac_total_power", 636),
        watts("load_l1_power", 650),
        watts("load_l2_power", 651),
        watts("load_l3_power", 652),
        watts("load_total_power", 653),
    ]
    .into_iter()
    .collect()
}

fn pv(second: &Registers, scales: Scales) -> Result<Vec<Attribute>, Error> {
    let power: u32 = words(second, PV_POWERS)?.map(u32::from).sum();
    let current: u32 = words(second, PV_CURRENTS)?.map(u32::from).sum();
    // Unused inputs and dark strings would pull the mean down.
    let voltages = words(second, PV_VOLTAGES)?.map(|word| f64::from(word) / 10.0);
    let live: Vec<f64> = voltages.filter(|voltage| *voltage >= scales.pv_string_voltage).collect();
    #[allow(clippy::cast_precision_loss)] // at most four
    let mean = (!live.is_empty()).then(|| round(live.iter().sum::<f64>() / live.len() as f64));
    Ok(vec![
        attribute("pv_total_power", f64::from(power) * scales.dc_power()),
        attribute("pv_total_current", f64::from(current) / 10.0),
        attribute("pv_voltage", mean),
    ])
}

fn words(registers: &Registers, addresses: [u16; 4]) -> Result<impl Iterator<Item = u16>, Error> {
    let words: Result<Vec<u16>, Error> = addresses.into_iter().map(|address| registers.u16(address)).collect();
    words.map(Vec::into_iter)
}

/// Temperatures count in 0.1 °C from −100 °C.
fn celsius(registers: &Registers, address: u16) -> Result<f64, Error> {
    Ok((f64::from(registers.u16(address)?) - 1000.0) / 10.0)
}

/// To 0.1: what the inverter resolves.
fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use sandgate_driver::Value;

    use super::*;

    const LOW: Scales = Scales { family: Family::LowVoltage, pv_string_voltage: 30.0 };
    const HIGH: Scales = Scales { family: Family::HighVoltage, pv_string_voltage: 30.0 };

    /// Both blocks, zero but for the given registers.
    fn blocks(values: &[(u16, u16)]) -> (Registers, Registers) {
        let block = |(first, count): (u16, u16)| {
            let value = |address| values.iter().find(|(at, _)| *at == address).map_or(0, |(_, value)| *value);
            Registers::new(first, (first..first + count).map(value).collect())
        };
        (block(FIRST_BLOCK), block(SECOND_BLOCK))
    }

    fn value(name: &str, values: &[(u16, u16)], scales: Scales) -> Option<Value> {
        let (first, second) = blocks(values);
        let attributes = decode(&first, &second, scales).ok()?;
        attributes.into_iter().find(|attribute| attribute.name == name).map(|attribute| attribute.value)
    }

    #[test]
    fn numbers_have_the_scales_of_the_public_maps() {
        let minus = |number: i16| number.cast_unsigned();
        for (name, registers, expected) in [
            ("ac_l1_voltage", vec![(627, 2301)], 230.1),
            ("ac_l3_current", vec![(632, minus(-1234))], -12.34),
            ("ac_l2_power", vec![(634, minus(-800))], -800.0),
            ("ac_total_power", vec![(636, 2400)], 2400.0),
            ("ac_frequency", vec![(609, 5003)], 50.03),
            ("grid_total_power", vec![(625, minus(-1500))], -1500.0),
            ("load_l1_power", vec![(650, 300), (656, 9)], 300.0),
            ("load_total_power", vec![(653, 900), (659, 9)], 900.0),
            ("battery_voltage", vec![(587, 5321)], 53.21),
            ("battery_current", vec![(591, minus(-2050))], -20.5),
            ("battery_power", vec![(590, minus(-1090))], -1090.0),
            ("battery_soc", vec![(588, 87)], 87.0),
            ("battery_temperature", vec![(586, 1253)], 25.3),
            ("inverter_heatsink_temperature", vec![(541, 950)], -5.0),
            ("pv_energy_daily", vec![(529, 123)], 12_300.0),
            ("pv_energy_lifetime", vec![(534, 1), (535, 1)], 6_553_700.0),
            ("battery_energy_in_lifetime", vec![(516, 10)], 1000.0),
            ("ac_energy_daily", vec![(501, minus(-3))], -300.0),
            ("pv_total_power", vec![(672, 1000), (673, 1500)], 2500.0),
            ("pv_total_current", vec![(677, 31), (679, 42)], 7.3),
        ] {
            assert_eq!(value(name, &registers, LOW), Some(Value::Float(expected)), "{name}");
        }
    }

    #[test]
    fn the_high_voltage_family_has_other_scales_on_the_direct_current_side() {
        for (name, register, expected) in
            [("battery_voltage", 587, 500.0), ("battery_power", 590, 50_000.0), ("pv_total_power", 672, 50_000.0)]
        {
            assert_eq!(value(name, &[(register, 5000)], HIGH), Some(Value::Float(expected)), "{name}");
        }
    }

    #[test]
    fn states_become_words() {
        for (state, on, expected) in [
            (0, 0, Value::Text("idle".into())),
            (0, 1, Value::Text("standby".into())),
            (1, 1, Value::Text("starting".into())),
            (2, 1, Value::Text("operating".into())),
            (3, 1, Value::Text("alarm".into())),
            (4, 1, Value::Text("fault".into())),
            (5, 1, Value::Text("starting".into())),
            (9, 1, Value::Unknown),
        ] {
            assert_eq!(value("status", &[(500, state), (551, on)], LOW), Some(expected));
        }
        let grid = |word| value("grid_status", &[(552, word)], LOW);
        assert_eq!((grid(4), grid(3)), (Some("connected".into()), Some("disconnected".into())));
        let charge = |word| value("battery_charge_status", &[(591, word)], LOW);
        assert_eq!(charge(100), Some("discharging".into()));
        assert_eq!(charge(u16::MAX), Some("charging".into()));
        assert_eq!(charge(0), Some("idle".into()));
    }

    #[test]
    fn the_voltage_of_pv_is_the_mean_of_live_strings_only() {
        let lit = [(676, 4000), (678, 4101), (680, 12), (682, 0)];
        assert_eq!(value("pv_voltage", &lit, LOW), Some(Value::Float(405.1)));
        assert_eq!(value("pv_voltage", &[(676, 120)], LOW), Some(Value::Unknown));
    }

    #[test]
    fn every_value_is_declared_in_the_manifest_and_a_short_block_is_an_error() -> Result<(), Error> {
        let (first, second) = blocks(&[]);
        let manifest = include_str!("../manifest.yml");
        for attribute in decode(&first, &second, LOW)? {
            assert!(manifest.contains(&format!("\n  {}:\n", attribute.name)), "{}", attribute.name);
        }
        assert!(decode(&first, &Registers::new(616, vec![0; 10]), LOW).is_err());
        Ok(())
    }
}
