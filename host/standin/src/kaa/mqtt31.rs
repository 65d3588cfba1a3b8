//! MQTT 3.1, as its clients say CONNECT.

use std::borrow::Cow;

/// MQTT 3.1 differs from 3.1.1 in what a CONNECT calls itself, as far as a
/// client of this platform can tell: it is called as the protocol's library knows it.
pub(super) fn modern(bytes: &[u8]) -> Cow<'_, [u8]> {
    const OLD: &[u8] = b"\0\x06MQIsdp\x03";
    const NEW: &[u8] = b"\0\x04MQTT\x04";
    let Some((0x10, rest)) = bytes.split_first().map(|(first, rest)| (*first, rest)) else { return bytes.into() };
    // The remaining length: seven bits a byte, the lowest first.
    let size = rest.iter().position(|byte| byte & 0x80 == 0).map_or(0, |last| last + 1);
    let (Some(digits), Some(body)) = (rest.get(..size), rest.get(size..)) else { return bytes.into() };
    let Some(body) = body.strip_prefix(OLD).filter(|_| (1..=4).contains(&size)) else { return bytes.into() };
    let length = digits.iter().rev().fold(0, |length: usize, digit| (length << 7) | usize::from(digit & 0x7f));
    let mut length = length.saturating_sub(OLD.len() - NEW.len());
    let mut packet = vec![0x10];
    loop {
        let digit = u8::try_from(length & 0x7f).unwrap_or_default();
        length >>= 7;
        packet.push(if length > 0 { digit | 0x80 } else { digit });
        if length == 0 {
            break;
        }
    }
    packet.extend([NEW, body].concat());
    packet.into()
}

/// Whether these are the first bytes of a CONNECT and too few to tell its version.
pub(super) fn is_beginning(bytes: &[u8]) -> bool {
    // No whole CONNECT is shorter.
    bytes.first() == Some(&0x10) && bytes.len() < 14
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connect_of_mqtt_3_1_becomes_one_of_3_1_1_and_all_else_stays() {
        let connect = |length: &[u8], name: &[u8], rest: &[u8]| [&[0x10], length, name, rest].concat();
        let (old, new) = (b"\0\x06MQIsdp\x03".as_slice(), b"\0\x04MQTT\x04".as_slice());
        let rest = [b"\x02\0\x3c\0\x01c".as_slice(), &[b'x'; 200]].concat();
        let short = b"\x02\0\x3c\0\x01c";
        assert_eq!(*modern(&connect(&[15], old, short)), *connect(&[13], new, short));
        // 129 bytes become 127: one digit less.
        let middle = rest.get(..120).unwrap();
        assert_eq!(*modern(&connect(&[0x81, 1], old, middle)), *connect(&[127], new, middle));
        for other in [connect(&[13], new, short), b"GET / HTTP/1.1".to_vec(), vec![0x10, 0xff], vec![]] {
            assert_eq!(*modern(&other), *other);
        }
    }
}
