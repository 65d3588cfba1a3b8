//! Which meter it is: read from the meter, published as properties, handed
//! over in a swap so that the next version need not ask again.

use sandgate_driver::modbus::{ModbusError, Unit};
use sandgate_driver::{Attribute, Registers, WordOrder, attribute};
use serde::{Deserialize, Serialize};

/// The registers make no statement about the vendor.
const VENDOR: &str = "Schneider Electric";
/// Model: text of 40 characters.
const MODEL: u16 = 49;
const MODEL_COUNT: u16 = 20;
/// Serial number: unsigned, 32 bits.
const SERIAL_NUMBER: u16 = 129;
const SERIAL_NUMBER_COUNT: u16 = 2;

/// What a meter says about itself; none where it says nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    model: Option<String>,
    serial_number: Option<String>,
}

/// What a version of the driver leaves to the next.
#[derive(Debug, Deserialize, Serialize)]
pub struct Memory {
    unit: u8,
    identity: Identity,
}

impl Identity {
    /// Asks the meter.
    pub fn read(unit: &Unit) -> Result<Identity, ModbusError> {
        let model = unit.holding(MODEL, MODEL_COUNT)?;
        // Not every model has this register, so its failure says nothing.
        let serial_number = unit.holding(SERIAL_NUMBER, SERIAL_NUMBER_COUNT).ok();
        Ok(Identity::decode(&model, serial_number.as_ref()))
    }

    fn decode(model: &Registers, serial_number: Option<&Registers>) -> Identity {
        let model = model.string(MODEL, MODEL_COUNT).ok().filter(|model| !model.is_empty());
        let number = serial_number.and_then(|registers| registers.u32(SERIAL_NUMBER, WordOrder::HighFirst).ok());
        let serial_number = number.filter(|number| ![0, u32::MAX].contains(number)).map(|number| number.to_string());
        Identity { model, serial_number }
    }
}

/// The properties to publish: what is known.
pub fn properties(identity: Option<&Identity>) -> Vec<Attribute> {
    let mut properties = vec![attribute("vendor", VENDOR)];
    if let Some(model) = identity.and_then(|identity| identity.model.as_deref()) {
        properties.push(attribute("model", model));
    }
    if let Some(serial_number) = identity.and_then(|identity| identity.serial_number.as_deref()) {
        properties.push(attribute("serial_number", serial_number));
    }
    properties
}

impl Memory {
    /// Packs what is known; nothing when the meter never said who it is.
    pub fn pack(unit: u8, identity: Option<&Identity>) -> Vec<u8> {
        let memory = identity.map(|identity| Memory { unit, identity: identity.clone() });
        memory.and_then(|memory| serde_json::to_vec(&memory).ok()).unwrap_or_default()
    }

    /// Unpacks the identity of a unit. Other versions may pack otherwise and
    /// the unit may be another one by now: then the meter is asked again.
    pub fn unpack(state: &[u8], unit: u8) -> Option<Identity> {
        let memory: Memory = serde_json::from_slice(state).ok()?;
        (memory.unit == unit).then_some(memory.identity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Registers {
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize(2 * usize::from(MODEL_COUNT), 0);
        let words = bytes.chunks(2).map(|pair| pair.iter().fold(0, |word, byte| word << 8 | u16::from(*byte)));
        Registers::new(MODEL, words.collect())
    }

    #[test]
    fn a_model_of_odd_length_carries_no_padding() {
        let identity = Identity::decode(&text("METSEPM2230"), None);
        assert_eq!(identity.model.as_deref(), Some("METSEPM2230"));
        assert_eq!(Identity::decode(&text("PM2120  "), None).model.as_deref(), Some("PM2120"));
        assert_eq!(Identity::decode(&text(""), None), Identity::default());
    }

    #[test]
    fn a_serial_number_of_all_zeros_or_ones_is_none() {
        for (words, expected) in [([0x0001, 0x86A0], Some("100000")), ([0, 0], None), ([0xFFFF, 0xFFFF], None)] {
            let registers = Registers::new(SERIAL_NUMBER, words.to_vec());
            assert_eq!(Identity::decode(&text("PM"), Some(&registers)).serial_number.as_deref(), expected);
        }
    }

    #[test]
    fn properties_hold_only_what_is_known() {
        let names = |identity: Option<&Identity>| -> Vec<String> {
            properties(identity).into_iter().map(|property| property.name).collect()
        };
        assert_eq!(names(None), ["vendor"]);
        assert_eq!(names(Some(&Identity::decode(&text("PM2230"), None))), ["vendor", "model"]);
    }

    #[test]
    fn a_swap_keeps_the_identity_of_the_same_unit_only() {
        let identity = Identity::decode(&text("PM2230"), None);
        let state = Memory::pack(7, Some(&identity));
        assert_eq!(Memory::unpack(&state, 7), Some(identity));
        assert_eq!(Memory::unpack(&state, 8), None);
        assert_eq!(Memory::unpack(b"something else", 7), None);
        assert!(Memory::pack(7, None).is_empty());
    }
}
