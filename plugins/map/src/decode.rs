//! What registers mean, and how values become registers.

use sandgate_driver::Value;
use sandgate_map::{Entry, Kind, Plain, Table, Words, Write};

/// The settings that decoding needs.
pub trait Settings {
    /// The number of a setting; none when the parameter has no value.
    fn number(&self, setting: &sandgate_map::Setting) -> Option<f64>;
    /// Whether a boolean parameter is true.
    fn is_true(&self, parameter: &str) -> bool;
}

/// What an entry's registers mean.
pub fn value(entry: &Entry, words: &[u16], order: Words, settings: &impl Settings) -> Value {
    if matches!(entry.place(), Some((Table::Coils | Table::Discrete, _))) {
        return Value::Boolean(words.first().is_some_and(|bit| *bit != 0));
    }
    if entry.kind == Kind::Text {
        return text(words).map_or(Value::Unknown, Value::Text);
    }
    let order = entry.words.unwrap_or(order);
    let raw = joined(words, order);
    if entry.absent.contains(&raw) {
        return Value::Unknown;
    }
    if !entry.flags.is_empty() {
        let set = entry.flags.iter().filter(|(bit, _)| raw >> **bit & 1 == 1);
        return Value::TextList(set.map(|(_, name)| name.clone()).collect());
    }
    if let Some(bit) = entry.bit {
        return Value::Boolean(raw >> bit & 1 == 1);
    }
    let number = match entry.bits {
        Some((first, count)) => Number::Whole(i128::from(raw >> first & mask(count))),
        None => of_kind(entry.kind, raw),
    };
    named(entry, number, settings)
}

/// A number as it is told.
fn named(entry: &Entry, number: Number, settings: &impl Settings) -> Value {
    if !entry.names.is_empty() {
        let name = match number {
            Number::Whole(number) => i64::try_from(number).ok().and_then(|number| entry.names.get(&number)),
            Number::Real(_) => None,
        };
        return name.map_or(Value::Unknown, |name| Value::Text(name.clone()));
    }
    let is_scaled = entry.scale_if.as_ref().is_none_or(|parameter| settings.is_true(parameter));
    let scale = match &entry.scale {
        Some(scale) if is_scaled => match settings.number(scale) {
            Some(scale) => Some(scale),
            None => return Value::Unknown,
        },
        _ => None,
    };
    let number = match (number, scale, entry.offset) {
        (number, None, None) => number,
        (number, scale, offset) => Number::Real(rounded(number.real() * scale.unwrap_or(1.0) + offset.unwrap_or(0.0))),
    };
    match number {
        Number::Whole(number) if entry.as_text => Value::Text(number.to_string()),
        Number::Whole(number) => match i64::try_from(number) {
            Ok(number) => Value::Integer(number),
            Err(_) => Value::Float(Number::Whole(number).real()),
        },
        Number::Real(number) if !number.is_finite() => Value::Unknown,
        Number::Real(number) if entry.as_text => Value::Text(number.to_string()),
        Number::Real(number) => Value::Float(number),
    }
}

#[derive(Debug, Clone, Copy)]
enum Number {
    Whole(i128),
    Real(f64),
}

impl Number {
    #[allow(clippy::cast_precision_loss)] // of counters beyond 2^53
    fn real(self) -> f64 {
        match self {
            Number::Whole(number) => number as f64,
            Number::Real(number) => number,
        }
    }
}

fn mask(count: u8) -> u64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}

fn joined(words: &[u16], order: Words) -> u64 {
    let join = |raw: u64, word: &u16| raw << 16 | u64::from(*word);
    match order {
        Words::HighFirst => words.iter().fold(0, join),
        Words::LowFirst => words.iter().rev().fold(0, join),
    }
}

#[allow(clippy::cast_possible_truncation)] // it has as many bits
fn of_kind(kind: Kind, raw: u64) -> Number {
    match kind {
        Kind::U16 | Kind::U32 | Kind::U64 | Kind::Text => Number::Whole(raw.into()),
        Kind::I16 => Number::Whole((raw as u16).cast_signed().into()),
        Kind::I32 => Number::Whole((raw as u32).cast_signed().into()),
        Kind::I64 => Number::Whole(raw.cast_signed().into()),
        // The shortest decimal of the 32 bits: 230.1 and not 230.10000610351562.
        Kind::F32 => Number::Real(f32::from_bits(raw as u32).to_string().parse().unwrap_or(f64::NAN)),
        Kind::F64 => Number::Real(f64::from_bits(raw)),
    }
}

/// Two characters a register, without padding.
fn text(words: &[u16]) -> Option<String> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).take_while(|byte| *byte != 0).collect();
    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
    Some(text).filter(|text| !text.is_empty())
}

/// Without the noise of binary fractions: twelve digits are more than a device has.
fn rounded(number: f64) -> f64 {
    if number == 0.0 || !number.is_finite() {
        return number;
    }
    #[allow(clippy::cast_possible_truncation)] // from -308 to 308
    let places = 11 - number.abs().log10().floor() as i32;
    if !(0..=22).contains(&places) {
        return number;
    }
    let power = 10_f64.powi(places);
    (number * power).round() / power
}

/// The registers that a write puts there. An error says what of the value does not fit.
pub fn registers(write: &Write, given: &Plain, order: Words) -> Result<Vec<u16>, String> {
    let number = match given {
        Plain::Text(name) => {
            let known = write.names.iter().find(|(_, known)| *known == name).map(|(number, _)| *number);
            #[allow(clippy::cast_precision_loss)] // of enums beyond 2^53
            let number = known.map(|number| number as f64);
            number.ok_or_else(|| format!("expected a number, found {name:?}"))?
        }
        Plain::Boolean(value) => f64::from(u8::from(*value)),
        Plain::Number(number) => *number,
    };
    let number = rounded((number - write.offset.unwrap_or(0.0)) / write.scale.unwrap_or(1.0));
    let whole = |least: f64, end: f64| {
        let number = number.round();
        if (least..end).contains(&number) {
            Ok(number)
        } else {
            Err(format!("{number} does not fit into the register"))
        }
    };
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // it fits
    let raw = match write.kind {
        Kind::U16 => whole(0.0, 65_536.0)? as u64,
        Kind::I16 => u64::from((whole(-32_768.0, 32_768.0)? as i16).cast_unsigned()),
        Kind::U32 => whole(0.0, 4_294_967_296.0)? as u64,
        Kind::I32 => u64::from((whole(-2_147_483_648.0, 2_147_483_648.0)? as i32).cast_unsigned()),
        Kind::U64 => whole(0.0, 18_446_744_073_709_551_616.0)? as u64,
        Kind::I64 => (whole(-9_223_372_036_854_775_808.0, 9_223_372_036_854_775_808.0)? as i64).cast_unsigned(),
        Kind::F32 => (number as f32).to_bits().into(),
        Kind::F64 => number.to_bits(),
        Kind::Text => return Err("a text cannot be written".into()),
    };
    let count = u32::from(write.kind.registers());
    #[allow(clippy::cast_possible_truncation)] // one register each
    let mut words: Vec<u16> = (0..count).rev().map(|place| (raw >> (16 * place)) as u16).collect();
    if write.words.unwrap_or(order) == Words::LowFirst {
        words.reverse();
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandgate_map::Setting;

    struct Plainly;

    impl Settings for Plainly {
        fn number(&self, setting: &Setting) -> Option<f64> {
            match setting {
                Setting::Number(number) => Some(*number),
                Setting::Text(_) => None,
            }
        }

        fn is_true(&self, parameter: &str) -> bool {
            parameter == "yes"
        }
    }

    #[test]
    fn registers_are_what_an_entry_says() {
        let of = |entry: serde_json::Value, words: &[u16]| {
            let mut entry = entry;
            entry["holding"] = 0.into();
            let entry: Entry = serde_json::from_value(entry).unwrap();
            value(&entry, words, Words::HighFirst, &Plainly)
        };
        use serde_json::json;
        let all = [
            (json!({}), vec![65535], Value::Integer(65535)),
            (json!({"type": "i16"}), vec![65535], Value::Integer(-1)),
            (json!({"type": "i16", "scale": 0.1}), vec![231], Value::Float(23.1)),
            (json!({"scale": 0.1, "offset": -40}), vec![653], Value::Float(25.3)),
            (json!({"type": "u32", "words": "low_first"}), vec![2, 1], Value::Integer(65538)),
            (json!({"type": "i32"}), vec![65535, 65534], Value::Integer(-2)),
            (json!({"type": "u64"}), vec![65535; 4], Value::Float(18_446_744_073_709_551_615.0)),
            (json!({"type": "i64"}), vec![65535; 4], Value::Integer(-1)),
            (json!({"type": "f32"}), vec![0x4366, 0x199a], Value::Float(230.1)),
            (json!({"type": "f32", "scale": 1000, "scale_if": "yes"}), vec![0x3f7a, 0x5e35], Value::Float(978.0)),
            (json!({"type": "f32", "scale": 1000, "scale_if": "no"}), vec![0x3f7a, 0x5e35], Value::Float(0.978)),
            (json!({"type": "f32"}), vec![0x7fc0, 0], Value::Unknown),
            (json!({"type": "f64"}), vec![0x3ff8, 0, 0, 0], Value::Float(1.5)),
            (json!({"absent": [32768]}), vec![32768], Value::Unknown),
            (json!({"bit": 3}), vec![8], Value::Boolean(true)),
            (json!({"bits": [4, 2]}), vec![0xff], Value::Integer(3)),
            (json!({"enum": {"0": "off", "1": "on"}}), vec![1], Value::Text("on".into())),
            (json!({"enum": {"0": "off", "1": "on"}}), vec![7], Value::Unknown),
            (json!({"flags": {"0": "hot", "2": "wet"}}), vec![4], Value::TextList(vec!["wet".into()])),
            (json!({"type": "text", "registers": 3}), vec![0x4142, 0x4320, 0x0041], Value::Text("ABC".into())),
            (json!({"type": "u32", "as_text": true}), vec![1, 2], Value::Text("65538".into())),
            (json!({"scale": "nowhere.at_all"}), vec![1], Value::Unknown),
        ];
        for (entry, words, expected) in all {
            assert_eq!(of(entry.clone(), &words), expected, "{entry}");
        }
    }

    #[test]
    fn what_is_written_is_read_back_and_what_does_not_fit_is_refused() {
        let write = |text: serde_json::Value| serde_json::from_value::<Write>(text).unwrap();
        use serde_json::json;
        let all = [
            (json!({}), Plain::Number(7.0), Ok(vec![7])),
            (json!({"scale": 0.1}), Plain::Number(23.5), Ok(vec![235])),
            (json!({"scale": 0.1, "offset": -40, "type": "i16"}), Plain::Number(-41.0), Ok(vec![65526])),
            (json!({"type": "u32", "words": "low_first"}), Plain::Number(65538.0), Ok(vec![2, 1])),
            (json!({"type": "f32"}), Plain::Number(1.5), Ok(vec![0x3fc0, 0])),
            (json!({"enum": {"3": "eco"}}), Plain::Text("eco".into()), Ok(vec![3])),
            (json!({}), Plain::Boolean(true), Ok(vec![1])),
            (json!({}), Plain::Number(65_536.0), Err("65536 does not fit into the register".to_owned())),
            (json!({}), Plain::Number(-1.0), Err("-1 does not fit into the register".to_owned())),
            (json!({}), Plain::Text("x".into()), Err("expected a number, found \"x\"".to_owned())),
        ];
        for (text, given, expected) in all {
            assert_eq!(registers(&write(text.clone()), &given, Words::HighFirst), expected, "{text}");
        }
    }
}
