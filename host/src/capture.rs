//! What Modbus TCP devices were asked and have answered, out of a capture by
//! tcpdump or Wireshark (`.pcap`, `.pcapng`). Pure.
//!
//! Packets become the bytes of connections (`flow`), those become frames, and a
//! request and its answer of one transaction number an exchange.

mod flow;
mod packets;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use flow::Flow;
use packets::Segment;

/// Where Modbus TCP usually is.
const PORT: u16 = 502;
/// A device that takes longer has not answered.
const PATIENCE: Duration = Duration::from_secs(60);

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Capture {
    /// By the address of the device, as `host:port`, in the order of the requests.
    pub devices: BTreeMap<String, Vec<Exchange>>,
}

/// A request and what was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// When it was asked, since the first packet of the capture.
    pub at: Duration,
    /// How long the answer took.
    pub took: Duration,
    /// The unit.
    pub unit: u8,
    /// The request: function code and data.
    pub request: Vec<u8>,
    /// The answer in the same form; none when there was none.
    pub answer: Option<Vec<u8>>,
}

impl Capture {
    /// Reads the bytes of a file. What is no Modbus TCP is passed over; an error
    /// says why nothing can be read.
    pub fn read(bytes: &[u8]) -> Result<Capture, String> {
        let mut reader = Reader::default();
        packets::each(bytes, |segment| reader.segment(&segment))?;
        let mut capture = Capture::default();
        for conversation in reader.conversations.into_values() {
            let device = format!("{}:{}", conversation.device.0, conversation.device.1);
            let open = conversation.open.into_values();
            capture.devices.entry(device).or_default().extend(conversation.done.into_iter().chain(open));
        }
        capture.devices.retain(|_, exchanges| exchanges.iter().any(|exchange| exchange.answer.is_some()));
        capture.devices.values_mut().for_each(|exchanges| exchanges.sort_by_key(|exchange| exchange.at));
        if capture.devices.is_empty() {
            return Err("there is no Modbus TCP with answers in it".into());
        }
        Ok(capture)
    }
}

/// A host and its port.
type End = (std::net::IpAddr, u16);

#[derive(Default)]
struct Reader {
    begin: Option<Duration>,
    /// By both ends, the lower first.
    conversations: HashMap<(End, End), Conversation>,
}

/// One connection, or several after each other between the same ends.
struct Conversation {
    device: End,
    asked: Flow,
    answered: Flow,
    /// Requests that wait for their answers, by transaction.
    open: BTreeMap<u16, Exchange>,
    done: Vec<Exchange>,
}

impl Reader {
    fn segment(&mut self, segment: &Segment<'_>) {
        let at = segment.time.saturating_sub(*self.begin.get_or_insert(segment.time));
        let (from, to) = (segment.from, segment.to);
        let conversation = self.conversations.entry((from.min(to), from.max(to))).or_insert_with(|| {
            // Who begins is no device; where that was not seen, the lower port is one.
            let device = match (from.1 == PORT, to.1 == PORT) {
                (true, false) => from,
                (false, true) => to,
                _ if segment.is_begin => to,
                _ if segment.is_accept => from,
                _ if from.1 < to.1 => from,
                _ => to,
            };
            let (asked, answered) = (Flow::default(), Flow::default());
            Conversation { device, asked, answered, open: BTreeMap::new(), done: Vec::new() }
        });
        conversation.segment(segment, at);
    }
}

impl Conversation {
    fn segment(&mut self, segment: &Segment<'_>, at: Duration) {
        let is_answer = segment.from == self.device;
        let flow = if is_answer { &mut self.answered } else { &mut self.asked };
        if segment.is_begin || segment.is_accept {
            flow.begin(segment.number);
        }
        for frame in flow.take(segment.number, segment.payload) {
            if !is_answer {
                let exchange =
                    Exchange { at, took: Duration::ZERO, unit: frame.unit, request: frame.data, answer: None };
                // The number is used again when the answer never came.
                self.done.extend(self.open.insert(frame.transaction, exchange));
                continue;
            }
            let Some(mut exchange) = self.open.remove(&frame.transaction) else { continue };
            let took = at.saturating_sub(exchange.at);
            let function = |data: &[u8]| data.first().map(|code| code & 0x7f);
            if function(&exchange.request) == function(&frame.data) && took <= PATIENCE {
                (exchange.took, exchange.answer) = (took, Some(frame.data));
            }
            self.done.push(exchange);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const METER: [&str; 2] = ["meter.pcap", "meter.pcapng"];

    fn kept(name: &str) -> Vec<u8> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/captures");
        std::fs::read(std::path::Path::new(folder).join(name)).unwrap()
    }

    #[test]
    fn captures_of_a_meter_hold_what_it_was_asked_and_answered() {
        for name in METER {
            let capture = Capture::read(&kept(name)).unwrap();
            assert_eq!(capture.devices.len(), 1, "{name}");
            let exchanges = capture.devices.values().next().unwrap();
            let answered = exchanges.iter().filter(|exchange| exchange.answer.is_some()).count();
            assert!(answered > 20 && answered + 2 > exchanges.len(), "{name}: {answered} of {}", exchanges.len());
            for exchange in exchanges {
                assert!(exchange.unit == 1 && exchange.request[0] == 3, "{exchange:?}");
                let count = usize::from(u16::from_be_bytes([exchange.request[3], exchange.request[4]]));
                let Some(answer) = &exchange.answer else { continue };
                assert!(answer[0] == 3 && answer.len() == 2 + 2 * count || answer[0] == 0x83, "{exchange:?}");
            }
            assert!(exchanges.windows(2).all(|pair| pair[0].at <= pair[1].at));
            assert!(exchanges.last().unwrap().at > Duration::from_secs(3));
        }
    }

    #[test]
    fn what_is_damaged_or_no_capture_is_told_and_hurts_nobody() {
        assert_eq!(Capture::read(b"").unwrap_err(), "expected a capture (.pcap or .pcapng)");
        assert_eq!(
            Capture::read(b"hello world, this is no capture").unwrap_err(),
            "expected a capture (.pcap or .pcapng)"
        );
        for name in METER {
            let whole = kept(name);
            let mut random = fastrand::Rng::with_seed(5);
            for _ in 0..300 {
                let mut bytes = whole.clone();
                for _ in 0..random.usize(1..20) {
                    let place = random.usize(..bytes.len());
                    bytes[place] = random.u8(..);
                }
                bytes.truncate(random.usize(..=bytes.len()));
                // Whatever comes of it.
                let _ = Capture::read(&bytes);
            }
        }
    }
}
