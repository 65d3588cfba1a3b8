//! Which inverter it is: registers 0 to 39, published as properties, handed
//! over in a swap so that the next version need not ask again.

use sandgate_driver::{Attribute, Error, Registers, WordOrder, attribute};
use serde::{Deserialize, Serialize};

use crate::config::Inverter;

/// Address of the first register.
pub const FIRST: u16 = 0;
/// How many registers are read.
pub const COUNT: u16 = 40;

/// What an inverter says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nameplate {
    device_type: u16,
    protocol_version: String,
    serial_number: String,
    firmware_version: String,
    capacity_va: u32,
    mppts: u8,
    phases: u8,
}

/// The voltage of the battery side: two families share the register map and
/// differ in scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Batteries of 48 V, such as the SG04LP3.
    LowVoltage,
    /// Batteries of some hundred volts, such as the SG01HP3.
    HighVoltage,
}

/// What a version of the driver leaves to the next.
#[derive(Deserialize, Serialize)]
pub struct Memory {
    unit: u8,
    nameplate: Nameplate,
}

impl Nameplate {
    /// Decodes the registers.
    pub fn decode(registers: &Registers) -> Result<Nameplate, Error> {
        let [protocol_high, protocol_low] = registers.u16(2)?.to_be_bytes();
        let [mppts, phases] = registers.u16(22)?.to_be_bytes();
        let [main, second, third] = [registers.u16(14)?, registers.u16(15)?, registers.u16(11)?];
        Ok(Nameplate {
            device_type: registers.u16(0)?,
            protocol_version: format!("{protocol_high}.{protocol_low}"),
            serial_number: registers.string(3, 5)?,
            firmware_version: format!("{main:04X}-{second:04X}-{third:04X}"),
            capacity_va: registers.u32(20, WordOrder::LowFirst)? / 10,
            mppts,
            phases,
        })
    }

    /// The family; none when the register map of this driver is not meant for
    /// such a device.
    ///
    /// Some firmware sends the code with its bytes swapped.
    pub fn family(&self) -> Option<Family> {
        match self.device_type {
            0x0005 | 0x0500 => Some(Family::LowVoltage),
            0x0006 | 0x0106 | 0x0600..=0x0602 => Some(Family::HighVoltage),
            _ => None,
        }
    }

    /// The code of the device's kind.
    pub fn device_type(&self) -> u16 {
        self.device_type
    }

    /// The properties to publish. The registers do not hold the name on the
    /// label, so a description stands in for it unless the operator gives it.
    pub fn properties(&self, inverter: &Inverter) -> Vec<Attribute> {
        let capacity = f64::from(self.capacity_va) / 1000.0;
        let kind = match self.family() {
            Some(Family::LowVoltage) => "low-voltage hybrid",
            Some(Family::HighVoltage) => "high-voltage hybrid",
            None => "inverter of another kind",
        };
        let description = format!("{capacity} kVA {}-phase {kind}, {} MPPT", self.phases, self.mppts);
        // Null rather than an empty text where the register holds none.
        let serial_number = Some(self.serial_number.as_str()).filter(|number| !number.is_empty());
        vec![
            attribute("model", inverter.model.clone().unwrap_or(description)),
            attribute("serial_number", serial_number),
            attribute("firmware_version", self.firmware_version.as_str()),
            attribute("communication_protocol_version", self.protocol_version.as_str()),
            attribute("inverter_nameplate_capacity", self.capacity_va),
        ]
    }
}

impl Memory {
    /// Packs what is known; nothing when the inverter never said who it is.
    pub fn pack(unit: u8, nameplate: Option<&Nameplate>) -> Vec<u8> {
        let memory = nameplate.map(|nameplate| Memory { unit, nameplate: nameplate.clone() });
        memory.and_then(|memory| serde_json::to_vec(&memory).ok()).unwrap_or_default()
    }

    /// Unpacks the nameplate of a unit. Other versions may pack otherwise and
    /// the unit may be another one by now: then the inverter is asked again.
    pub fn unpack(state: &[u8], unit: u8) -> Option<Nameplate> {
        let memory: Memory = serde_json::from_slice(state).ok()?;
        (memory.unit == unit).then_some(memory.nameplate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A 12 kVA low-voltage inverter with two trackers.
    fn registers(device_type: u16) -> Registers {
        let mut words = vec![device_type, 1, 0x0104];
        words.extend([0x3232, 0x3037, 0x3139, 0x3438, 0x3132]);
        words.extend([0, 0, 0, 0x1234, 0, 0, 0x2001, 0x00AB, 0, 0, 0, 0, 0xD4C0, 0x0001, 0x0203]);
        words.resize(usize::from(COUNT), 0);
        Registers::new(FIRST, words)
    }

    #[test]
    fn a_nameplate_decodes_to_properties() -> Result<(), Error> {
        let nameplate = Nameplate::decode(&registers(0x0005))?;
        let inverter = Inverter { vendor: "Deye".into(), model: None, pv_string_voltage: 30.0, battery_voltage: None };
        let expected = [
            attribute("model", "12 kVA 3-phase low-voltage hybrid, 2 MPPT"),
            attribute("serial_number", "2207194812"),
            attribute("firmware_version", "2001-00AB-1234"),
            attribute("communication_protocol_version", "1.4"),
            attribute("inverter_nameplate_capacity", 12_000),
        ];
        assert_eq!(nameplate.properties(&inverter), expected);
        let labelled = Inverter { model: Some("SUN-12K-SG04LP3-EU".into()), ..inverter };
        assert_eq!(nameplate.properties(&labelled).first(), Some(&attribute("model", "SUN-12K-SG04LP3-EU")));
        Ok(())
    }

    #[test]
    fn the_family_follows_the_device_type_in_either_byte_order() -> Result<(), Error> {
        for (code, family) in [
            (0x0005, Some(Family::LowVoltage)),
            (0x0500, Some(Family::LowVoltage)),
            (0x0106, Some(Family::HighVoltage)),
            (0x0601, Some(Family::HighVoltage)),
            (0x0003, None),
        ] {
            assert_eq!(Nameplate::decode(&registers(code))?.family(), family, "{code:#06x}");
        }
        Ok(())
    }

    #[test]
    fn a_swap_keeps_the_nameplate_of_the_same_unit_only() -> Result<(), Error> {
        let nameplate = Nameplate::decode(&registers(0x0005))?;
        let state = Memory::pack(1, Some(&nameplate));
        assert_eq!(Memory::unpack(&state, 1), Some(nameplate));
        assert_eq!(Memory::unpack(&state, 2), None);
        assert_eq!(Memory::unpack(b"{}", 1), None);
        Ok(())
    }
}
