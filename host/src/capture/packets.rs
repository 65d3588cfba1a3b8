//! TCP segments out of the file of a capture.

use std::net::IpAddr;
use std::time::Duration;

use etherparse::{EtherType, NetSlice, SlicedPacket, TransportSlice};
use pcap_parser::traits::PcapNGPacketBlock;
use pcap_parser::{Block, Linktype, PcapBlockOwned, PcapError, create_reader};

/// No packet is larger.
const LARGEST: usize = 1 << 20;

/// One of a connection.
pub(super) struct Segment<'a> {
    /// Since 1970.
    pub time: Duration,
    pub from: (IpAddr, u16),
    pub to: (IpAddr, u16),
    /// Of its first byte.
    pub number: u32,
    /// Up to where its sender has got what the other side has sent.
    pub acknowledged: Option<u32>,
    /// Whether it asks for a connection.
    pub is_begin: bool,
    /// Whether it grants one.
    pub is_accept: bool,
    pub payload: &'a [u8],
}

/// An interface of a `.pcapng` file: what its packets are, and the units of its times.
struct Interface {
    link: Linktype,
    per_second: u64,
    offset: i64,
}

/// What a file has said about its packets.
#[derive(Default)]
struct File {
    interfaces: Vec<Interface>,
    /// Of a `.pcap` file: what its packets are, and the unit of its times in ns.
    legacy: Option<(Linktype, u64)>,
}

/// Gives all segments to a reader. A file that ends in the middle is read up to there.
pub(super) fn each(bytes: &[u8], mut take: impl FnMut(Segment<'_>)) -> Result<(), String> {
    let wrong = |_| "expected a capture (.pcap or .pcapng)".to_owned();
    let mut size = LARGEST.min(bytes.len().max(1 << 12));
    let mut reader = create_reader(size, bytes).map_err(wrong)?;
    let mut file = File::default();
    loop {
        let read = match reader.next() {
            Ok((read, block)) => {
                file.block(&block, &mut take)?;
                Some(read)
            }
            Err(PcapError::Incomplete(_)) => None,
            // A block may be as large as the file.
            Err(PcapError::BufferTooSmall) if size < bytes.len() => {
                size = bytes.len();
                if !reader.grow(size) {
                    return Ok(());
                }
                None
            }
            // The end, or damage.
            Err(_) => return Ok(()),
        };
        match read {
            Some(read) => reader.consume(read),
            None if reader.reader_exhausted() || reader.refill().is_err() => return Ok(()),
            None => {}
        }
    }
}

impl File {
    fn block(&mut self, block: &PcapBlockOwned<'_>, take: &mut impl FnMut(Segment<'_>)) -> Result<(), String> {
        match block {
            PcapBlockOwned::LegacyHeader(header) => {
                self.legacy = Some((header.network, if header.is_nanosecond_precision() { 1 } else { 1000 }));
            }
            PcapBlockOwned::Legacy(packet) => {
                let Some((link, unit)) = self.legacy else { return Ok(()) };
                is_whole(packet.caplen, packet.origlen)?;
                let nanoseconds = u64::from(packet.ts_usec).saturating_mul(unit);
                let time = Duration::from_secs(packet.ts_sec.into()) + Duration::from_nanos(nanoseconds);
                segment(link, time, packet.data).into_iter().for_each(take);
            }
            // Interfaces are counted anew.
            PcapBlockOwned::NG(Block::SectionHeader(_)) => self.interfaces.clear(),
            PcapBlockOwned::NG(Block::InterfaceDescription(interface)) => self.interfaces.push(Interface {
                link: interface.linktype,
                per_second: resolution(interface.if_tsresol),
                offset: interface.if_tsoffset,
            }),
            PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
                let interface = usize::try_from(packet.if_id).ok().and_then(|place| self.interfaces.get(place));
                let Some(Interface { link, per_second, offset }) = interface else { return Ok(()) };
                is_whole(packet.caplen, packet.origlen)?;
                let ticks = u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low);
                let time = time_of(ticks, *per_second, *offset);
                // Without what fills up the block.
                segment(*link, time, packet.packet_data()).into_iter().for_each(take);
            }
            PcapBlockOwned::NG(_) => {}
        }
        Ok(())
    }
}

fn is_whole(here: u32, sent: u32) -> Result<(), String> {
    match here < sent {
        true => Err("its packets are cut off; capture them whole, with `-s 0`".into()),
        false => Ok(()),
    }
}

/// Units of time in a second: a power of ten, or of two with the highest bit.
fn resolution(code: u8) -> u64 {
    let power = u32::from(code & 0x7f);
    let units = if code & 0x80 == 0 { 10_u64.checked_pow(power) } else { 1_u64.checked_shl(power) };
    units.filter(|units| *units > 0).unwrap_or(1_000_000)
}

fn time_of(ticks: u64, per_second: u64, offset: i64) -> Duration {
    let per_second = per_second.max(1);
    let rest = u128::from(ticks % per_second) * 1_000_000_000 / u128::from(per_second);
    let seconds = (ticks / per_second).saturating_add_signed(offset);
    Duration::from_secs(seconds) + Duration::from_nanos(u64::try_from(rest).unwrap_or_default())
}

/// The TCP segment in a packet, if it is one.
fn segment(link: Linktype, time: Duration, data: &[u8]) -> Option<Segment<'_>> {
    let packet = match link {
        Linktype::ETHERNET => SlicedPacket::from_ethernet(data),
        // Of tcpdump -i any: the protocol, and what is of no use here.
        Linktype::LINUX_SLL => {
            let protocol = u16::from_be_bytes(data.get(14..16)?.try_into().ok()?);
            SlicedPacket::from_ether_type(EtherType(protocol), data.get(16..)?)
        }
        Linktype::LINUX_SLL2 => {
            let protocol = u16::from_be_bytes(data.get(..2)?.try_into().ok()?);
            SlicedPacket::from_ether_type(EtherType(protocol), data.get(20..)?)
        }
        // A family in the byte order of that machine.
        Linktype::NULL | Linktype::LOOP => SlicedPacket::from_ip(data.get(4..)?),
        Linktype::RAW | Linktype::IPV4 | Linktype::IPV6 => SlicedPacket::from_ip(data),
        _ => return None,
    };
    let packet = packet.ok()?;
    let (from, to): (IpAddr, IpAddr) = match packet.net? {
        NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Arp(_) => return None,
    };
    let Some(TransportSlice::Tcp(tcp)) = packet.transport else { return None };
    let is_opening = tcp.syn();
    Some(Segment {
        time,
        from: (from, tcp.source_port()),
        to: (to, tcp.destination_port()),
        // What opens a connection counts as a byte.
        number: tcp.sequence_number().wrapping_add(u32::from(is_opening)),
        acknowledged: tcp.ack().then(|| tcp.acknowledgment_number()),
        is_begin: is_opening && !tcp.ack(),
        is_accept: is_opening && tcp.ack(),
        payload: tcp.payload(),
    })
}
