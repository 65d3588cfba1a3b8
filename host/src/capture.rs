//! What Modbus TCP devices were asked and have answered, out of a capture by
//! tcpdump or Wireshark (`.pcap`, `.pcapng`). Pure.
//!
//! Packets become the bytes of connections (`flow`), those become frames, and a
//! request and its answer of one transaction number an exchange.

mod flow;
mod packets;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use flow::{Flow, Frame};
use packets::Segment;

/// Where Modbus TCP usually is.
const PORT: u16 = 502;
/// A device that takes longer has not answered.
const PATIENCE: Duration = Duration::from_secs(60);
/// Larger captures are for Wireshark to cut.
const MOST: usize = 2_000_000;

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
        let conversations = reader.conversations.into_values().map(Conversation::end);
        let mut capture = Capture::default();
        for (device, exchanges) in conversations {
            capture.devices.entry(format!("{}:{}", device.0, device.1)).or_default().extend(exchanges);
        }
        capture.devices.retain(|_, exchanges| exchanges.iter().any(|exchange| exchange.answer.is_some()));
        capture.devices.values_mut().for_each(|exchanges| exchanges.sort_by_key(|exchange| exchange.at));
        if capture.devices.values().map(Vec::len).sum::<usize>() > MOST {
            return Err(format!("expected at most {MOST} exchanges; cut the capture into pieces"));
        }
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
        let (flow, other) = match is_answer {
            true => (&mut self.answered, &mut self.asked),
            false => (&mut self.asked, &mut self.answered),
        };
        if segment.is_begin || segment.is_accept {
            flow.begin(segment.number);
        }
        // What the other side has got and is not here was not captured.
        let skipped = segment.acknowledged.map(|number| other.acknowledged(number)).unwrap_or_default();
        let frames = flow.take(segment.number, at, segment.payload);
        self.frames(!is_answer, skipped);
        self.frames(is_answer, frames);
    }

    fn frames(&mut self, are_answers: bool, frames: Vec<(Duration, Frame)>) {
        for (at, frame) in frames {
            match are_answers {
                true => self.answer(at, frame),
                false => self.request(at, frame),
            }
        }
    }

    fn request(&mut self, at: Duration, frame: Frame) {
        let exchange = Exchange { at, took: Duration::ZERO, unit: frame.unit, request: frame.data, answer: None };
        // The number is used again when the answer never came.
        self.done.extend(self.open.insert(frame.transaction, exchange));
        if self.open.len() > OPEN {
            self.done.extend(self.open.pop_first().map(|(_, exchange)| exchange));
        }
    }

    fn answer(&mut self, at: Duration, frame: Frame) {
        let is_its = |exchange: &&mut Exchange| exchange.unit == frame.unit && fits(&exchange.request, &frame.data);
        // One that came too late may be that of a request before.
        let Some(exchange) = self.open.get_mut(&frame.transaction).filter(is_its) else { return };
        let took = at.saturating_sub(exchange.at);
        if took <= PATIENCE {
            (exchange.took, exchange.answer) = (took, Some(frame.data));
        }
        self.done.extend(self.open.remove(&frame.transaction));
    }

    /// The device, and all exchanges. What is under way at the end has no answer because
    /// the capture ends, and not because the device is silent.
    fn end(mut self) -> (End, Vec<Exchange>) {
        let (asked, answered) = (self.asked.end(), self.answered.end());
        self.frames(false, asked);
        self.frames(true, answered);
        let last = self.done.iter().filter(|exchange| exchange.answer.is_some()).map(|exchange| exchange.at).max();
        let is_over = |exchange: &Exchange| last.is_some_and(|last| exchange.at < last);
        self.done.extend(self.open.into_values().filter(is_over));
        (self.device, self.done)
    }
}

/// Requests of a connection that may wait for their answers.
const OPEN: usize = 256;

/// Whether an answer is one to a request: of its function and, for what is read, its size.
fn fits(request: &[u8], answer: &[u8]) -> bool {
    let size = match request {
        [1 | 2, _, _, high, low] => Some(usize::from(u16::from_be_bytes([*high, *low])).div_ceil(8)),
        [3 | 4, _, _, high, low] => Some(2 * usize::from(u16::from_be_bytes([*high, *low]))),
        _ => None,
    };
    match (request, answer) {
        ([function, ..], [code, _]) if *code == function | EXCEPTION => true,
        ([function, ..], [code, rest @ ..]) if code == function => size.is_none_or(|size| rest.len() == size + 1),
        _ => false,
    }
}

/// An answer says that it is an exception by this bit of its function code.
const EXCEPTION: u8 = 0x80;

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

    /// Sends frames through connections: from the client or not, time, transaction, unit, data.
    fn read(frames: &[(bool, u64, u8, u8, &[u8])]) -> Vec<Exchange> {
        let (client, device): (End, End) = (([10, 0, 0, 1].into(), 40_000), ([10, 0, 0, 2].into(), PORT));
        let mut reader = Reader::default();
        let mut numbers = [0, 0];
        for (is_asked, ms, transaction, unit, data) in frames {
            let (from, to) = if *is_asked { (client, device) } else { (device, client) };
            let length = u8::try_from(data.len() + 1).unwrap();
            let payload = [&[0, *transaction, 0, 0, 0, length, *unit][..], data].concat();
            let number = &mut numbers[usize::from(*is_asked)];
            let time = Duration::from_millis(*ms);
            let (is_begin, is_accept, acknowledged) = (false, false, None);
            let segment =
                Segment { time, from, to, number: *number, acknowledged, is_begin, is_accept, payload: &payload };
            reader.segment(&segment);
            *number += u32::try_from(payload.len()).unwrap();
        }
        let mut ended = reader.conversations.into_values().map(Conversation::end);
        let (found, mut exchanges) = ended.next().unwrap();
        assert_eq!(found, device);
        exchanges.sort_by_key(|exchange| exchange.at);
        exchanges
    }

    #[test]
    fn an_answer_belongs_to_the_request_of_its_number_unit_function_and_size() {
        let (ask, other) = ([3, 0, 10, 0, 1], [3, 0, 20, 0, 2]);
        let exchanges = read(&[
            (true, 0, 0, 1, &ask),
            // Not answered in time; the number is used again, and the late answer is not for that.
            (true, 1000, 0, 2, &ask),
            (false, 1010, 0, 1, &[3, 2, 0, 7]),
            (false, 1020, 0, 2, &[3, 2, 0, 8]),
            (true, 2000, 0, 2, &other),
            (false, 2010, 0, 2, &[3, 2, 0, 9]),
            (false, 2020, 0, 2, &[0x83, 2]),
            // The capture ends before the answer.
            (true, 3000, 1, 2, &ask),
        ]);
        let answers: Vec<_> = exchanges.iter().map(|exchange| exchange.answer.as_deref()).collect();
        assert_eq!(answers, [None, Some(&[3, 2, 0, 8][..]), Some(&[0x83, 2])]);
        assert_eq!(exchanges[2].took, Duration::from_millis(20));
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
