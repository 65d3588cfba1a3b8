//! Values in an author's terms, as a Modbus device holds them.

use serde::Deserialize;
use serde_json::Value as Json;

/// Registers in a row: numbers of 16 bits, texts such as `f32 230.1`,
/// `u32_swap 70000` or `text METER-1`, or a list of those.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Json")]
pub(super) struct Words(pub Vec<u16>);

/// Bits in a row: true, false or a list of those.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Json")]
pub(super) struct Bits(pub Vec<bool>);

const EXPECTED: &str = "a number of 16 bits, a text such as \"f32 230.1\" (u16, i16, u32, i32, u64, i64, f32, f64; \
                        with _swap the low word comes first; text, hex), or a list of those";

impl TryFrom<Json> for Words {
    type Error = String;

    fn try_from(value: Json) -> Result<Words, String> {
        let mut words = Vec::new();
        read(&value, &mut words).map_err(|()| format!("expected {EXPECTED}, found {value}"))?;
        Ok(Words(words))
    }
}

impl TryFrom<Json> for Bits {
    type Error = String;

    fn try_from(value: Json) -> Result<Bits, String> {
        let bits = match &value {
            Json::Bool(bit) => Some(vec![*bit]),
            Json::Array(bits) => bits.iter().map(Json::as_bool).collect(),
            _ => None,
        };
        bits.map(Bits).ok_or_else(|| format!("expected true, false or a list of those, found {value}"))
    }
}

fn read(value: &Json, words: &mut Vec<u16>) -> Result<(), ()> {
    match value {
        Json::Number(number) => {
            let number = number.as_i64().ok_or(())?;
            words.push(u16::try_from(number).or_else(|_| i16::try_from(number).map(i16::cast_unsigned)).map_err(drop)?);
            Ok(())
        }
        Json::Array(values) => values.iter().try_for_each(|value| read(value, words)),
        Json::String(text) => {
            let (kind, value) = text.split_once(' ').ok_or(())?;
            words.extend(typed(kind, value)?);
            Ok(())
        }
        _ => Err(()),
    }
}

fn typed(kind: &str, value: &str) -> Result<Vec<u16>, ()> {
    fn number<T: std::str::FromStr>(text: &str) -> Result<T, ()> {
        text.trim().parse().map_err(drop)
    }
    let (kind, is_swapped) = kind.strip_suffix("_swap").map_or((kind, false), |kind| (kind, true));
    let bytes: Vec<u8> = match kind {
        "u16" => number::<u16>(value)?.to_be_bytes().into(),
        "i16" => number::<i16>(value)?.to_be_bytes().into(),
        "u32" => number::<u32>(value)?.to_be_bytes().into(),
        "i32" => number::<i32>(value)?.to_be_bytes().into(),
        "u64" => number::<u64>(value)?.to_be_bytes().into(),
        "i64" => number::<i64>(value)?.to_be_bytes().into(),
        "f32" => number::<f32>(value)?.to_be_bytes().into(),
        "f64" => number::<f64>(value)?.to_be_bytes().into(),
        "text" => value.as_bytes().into(),
        "hex" => hex(value)?,
        _ => return Err(()),
    };
    let pairs = bytes.chunks(2).map(|pair| match pair {
        [high, low] => u16::from_be_bytes([*high, *low]),
        [high] => u16::from_be_bytes([*high, 0]),
        _ => 0,
    });
    let mut words: Vec<u16> = pairs.collect();
    if is_swapped {
        words.reverse();
    }
    Ok(words)
}

/// Bytes from pairs of hexadecimal digits, with spaces between them or not.
pub(super) fn hex(text: &str) -> Result<Vec<u8>, ()> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    let byte = |pair: &[char]| match pair {
        [high, low] => u8::try_from(high.to_digit(16)? * 16 + low.to_digit(16)?).ok(),
        _ => None,
    };
    digits.chunks(2).map(byte).collect::<Option<Vec<u8>>>().ok_or(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_what_a_device_holds() {
        for (value, expected) in [
            (json!(7), Some(vec![7])),
            (json!(-1), Some(vec![0xFFFF])),
            (json!([1, "u16 65535", [2]]), Some(vec![1, 0xFFFF, 2])),
            (json!("f32 230.5"), Some(vec![0x4366, 0x8000])),
            (json!("f32 NaN"), Some(vec![0x7FC0, 0])),
            (json!("u32 70000"), Some(vec![1, 4464])),
            (json!("u32_swap 70000"), Some(vec![4464, 1])),
            (json!("i32 -2"), Some(vec![0xFFFF, 0xFFFE])),
            (json!("text ABC"), Some(vec![0x4142, 0x4300])),
            (json!("hex 0102 a0"), Some(vec![0x0102, 0xA000])),
            (json!(70000), None),
            (json!(1.5), None),
            (json!("u16 70000"), None),
            (json!("float 1"), None),
            (json!("hex 0g"), None),
            (json!(null), None),
        ] {
            let words = Words::try_from(value.clone()).ok().map(|words| words.0);
            assert_eq!(words, expected, "{value}");
        }
        assert_eq!(Bits::try_from(json!([true, false])).unwrap().0, [true, false]);
        assert!(Bits::try_from(json!(1)).unwrap_err().starts_with("expected true, false"));
    }
}
