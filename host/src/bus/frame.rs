//! Frames on a CAN bus, and a bus that is simulated.

use std::fmt;
use std::str::FromStr;

use tokio::sync::mpsc;

/// The highest ids of frames in the base and in the extended format.
pub const BASE_ID: u32 = (1 << 11) - 1;
/// See `BASE_ID`.
pub const EXTENDED_ID: u32 = (1 << 29) - 1;
/// The most bytes of a frame.
pub const MOST_DATA: usize = 8;

/// A frame on a CAN bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its id, of 11 or of 29 bits.
    pub id: u32,
    /// Whether that has 29 bits.
    pub is_extended: bool,
    /// At most 8 bytes.
    pub data: Vec<u8>,
}

/// As candump writes it: `123#0102`, with eight digits of an id of 29 bits.
impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.is_extended {
            true => write!(f, "{:08X}#", self.id)?,
            false => write!(f, "{:03X}#", self.id)?,
        }
        self.data.iter().try_for_each(|byte| write!(f, "{byte:02X}"))
    }
}

impl FromStr for Frame {
    type Err = String;

    fn from_str(text: &str) -> Result<Frame, String> {
        let wrong = || format!("expected a frame such as 123#0102 or 18FF50E5#00, found {text:?}");
        let (id, data) = text.split_once('#').ok_or_else(wrong)?;
        let is_extended = match id.len() {
            3 => false,
            8 => true,
            _ => return Err(wrong()),
        };
        let id = u32::from_str_radix(id, 16).ok().filter(|id| *id <= if is_extended { EXTENDED_ID } else { BASE_ID });
        let digits = data.as_bytes();
        if digits.len() % 2 != 0 || digits.len() > 2 * MOST_DATA || !data.is_ascii() {
            return Err(wrong());
        }
        let bytes = digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
        let data = bytes.collect::<Option<Vec<u8>>>().ok_or_else(wrong)?;
        Ok(Frame { id: id.ok_or_else(wrong)?, is_extended, data })
    }
}

/// The gateway's end of a simulated bus. The device ends when it is dropped.
pub struct Wire {
    /// What others on the bus have sent.
    pub incoming: mpsc::Receiver<Frame>,
    /// What the gateway sends.
    pub outgoing: mpsc::Sender<Frame>,
}

/// The device's end of it.
pub struct FarWire {
    /// What the device sends.
    pub outgoing: mpsc::Sender<Frame>,
    /// What the gateway has sent.
    pub incoming: mpsc::Receiver<Frame>,
}

/// Frames on the way on a simulated bus.
const ROOM: usize = 1024;

/// Both ends of a simulated bus.
pub fn wire() -> (Wire, FarWire) {
    let (there, arrived) = mpsc::channel(ROOM);
    let (back, received) = mpsc::channel(ROOM);
    (Wire { incoming: received, outgoing: there }, FarWire { outgoing: back, incoming: arrived })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_written_as_candump_does() {
        for text in ["123#", "7FF#0102030405060708", "18FF50E5#00"] {
            assert_eq!(text.parse::<Frame>().unwrap().to_string(), text);
        }
        for text in ["", "123", "1#00", "800#00", "2000000000#00", "123#0", "123#zz", "123#010203040506070809", "123#é"]
        {
            assert!(text.parse::<Frame>().is_err(), "{text}");
        }
    }
}
