//! `host:port` patterns: what a driver asks to reach and what an operator
//! grants. Decides about patterns only; who resolves names decides the rest.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer};

/// A pattern for hosts and ports: `meter.local:502`, `192.168.1.7:80`,
/// `10.0.0.0/8:502`, `*.example.com:443`, `*:80`, `[fd00::1]:80`, `host:*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    host: Host,
    /// None means any port.
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    Any,
    /// The part after the star, with its dot.
    Suffix(String),
    Name(String),
    Network(IpAddr, u8),
}

impl Target {
    /// Whether it names one host and one port.
    pub fn is_single(&self) -> bool {
        let one_host = match &self.host {
            Host::Name(_) => true,
            Host::Network(address, prefix) => *prefix == full_prefix(*address),
            Host::Any | Host::Suffix(_) => false,
        };
        one_host && self.port.is_some()
    }

    /// The port, unless any will do.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// The host and port of a single target.
    pub fn host_and_port(&self) -> Option<(String, u16)> {
        match (&self.host, self.port) {
            (Host::Name(name), Some(port)) => Some((name.clone(), port)),
            (Host::Network(address, _), Some(port)) => Some((address.to_string(), port)),
            _ => None,
        }
    }

    /// Whether the pattern can match this host, before its name is resolved.
    pub fn may_cover(&self, host: &str, port: u16) -> bool {
        let literal = parse_address(host);
        self.covers_port(port)
            && match (&self.host, literal) {
                (Host::Network(..), Some(address)) => self.covers_address(address),
                // A name never matches an address pattern: asking the name
                // server would already tell something to the outside.
                (Host::Network(..), None) => false,
                (_, _) => self.covers_name(host),
            }
    }

    /// Whether the pattern matches a resolved host.
    pub fn covers(&self, host: &str, address: IpAddr, port: u16) -> bool {
        self.covers_port(port) && (self.covers_name(host) || self.covers_address(address))
    }

    /// Whether some host and port fit both patterns.
    pub fn overlaps(&self, other: &Target) -> bool {
        let ports = self.port.is_none() || other.port.is_none() || self.port == other.port;
        let hosts = match (&self.host, &other.host) {
            (Host::Any, _) | (_, Host::Any) => true,
            (Host::Network(one, narrow), Host::Network(two, wide)) if one.is_ipv4() == two.is_ipv4() => {
                let bits = |address: &IpAddr| match address {
                    IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
                    IpAddr::V6(address) => address.to_bits(),
                };
                same_prefix(bits(one), bits(two), *narrow.min(wide))
            }
            // Names and addresses never match each other.
            (Host::Network(..), _) | (_, Host::Network(..)) => false,
            (_, Host::Name(name)) => self.covers_name(name),
            (Host::Name(name), _) => other.covers_name(name),
            (Host::Suffix(one), Host::Suffix(two)) => {
                let (one, two) = (one.to_ascii_lowercase(), two.to_ascii_lowercase());
                one.ends_with(&two) || two.ends_with(&one)
            }
        };
        ports && hosts
    }

    fn covers_port(&self, port: u16) -> bool {
        self.port.is_none_or(|own| own == port)
    }

    fn covers_name(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.');
        match &self.host {
            Host::Any => true,
            Host::Suffix(suffix) => {
                let start = host.len().checked_sub(suffix.len());
                start.and_then(|start| host.get(start..)).is_some_and(|end| end.eq_ignore_ascii_case(suffix))
                    && host.len() > suffix.len()
            }
            Host::Name(name) => host.eq_ignore_ascii_case(name),
            Host::Network(..) => false,
        }
    }

    fn covers_address(&self, address: IpAddr) -> bool {
        let Host::Network(network, prefix) = self.host else { return false };
        match (network, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                same_prefix(u128::from(network.to_bits()) << 96, u128::from(address.to_bits()) << 96, prefix)
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => same_prefix(network.to_bits(), address.to_bits(), prefix),
            _ => false,
        }
    }

    /// Whether a grant allows a resolved host. A special address must be meant:
    /// written as an address, or as `localhost`; one of this machine's own, as
    /// that very address.
    pub fn grants(&self, host: &str, address: IpAddr, port: u16, is_own: bool) -> bool {
        if !self.covers(host, address, port) {
            return false;
        }
        match &self.host {
            _ if !is_special(address) && !is_own => true,
            Host::Network(network, prefix) if *prefix == full_prefix(*network) => self.covers_address(address),
            Host::Network(network, prefix) => is_special(*network) && *prefix >= 8 && self.covers_address(address),
            Host::Name(name) => name.eq_ignore_ascii_case("localhost") && address.to_canonical().is_loopback(),
            Host::Any | Host::Suffix(_) => false,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Any => f.write_str("*")?,
            Host::Suffix(suffix) => write!(f, "*{suffix}")?,
            Host::Name(name) => f.write_str(name)?,
            Host::Network(address, prefix) => {
                let (open, close) = if address.is_ipv6() { ("[", "]") } else { ("", "") };
                write!(f, "{open}{address}")?;
                if *prefix != full_prefix(*address) {
                    write!(f, "/{prefix}")?;
                }
                f.write_str(close)?;
            }
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => f.write_str(":*"),
        }
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Target, String> {
        let wrong = || {
            format!(
                "expected host:port such as \"meter.local:502\", \"10.0.0.0/8:502\", \"*.example.com:443\" or \"*:80\", found {text:?}"
            )
        };
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = match port {
            "*" => None,
            number => Some(number.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?),
        };
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(inside) => parse_network(inside).filter(|(address, _)| address.is_ipv6()),
            None if host.contains(':') => return Err(wrong()),
            None => parse_network(host),
        }
        .map(|(address, prefix)| Host::Network(address, prefix))
        .or_else(|| parse_name(host))
        .ok_or_else(wrong)?;
        Ok(Target { host, port })
    }
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

fn parse_name(host: &str) -> Option<Host> {
    let is_name = |name: &str| {
        !name.is_empty()
            && name.len() <= 253
            && name.split('.').all(|label| {
                !label.is_empty() && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
            })
    };
    match host.strip_prefix('*') {
        Some("") => Some(Host::Any),
        Some(suffix) if suffix.strip_prefix('.').is_some_and(is_name) => Some(Host::Suffix(suffix.to_owned())),
        // A name of digits and dots is a mistyped address.
        None if is_name(host) && !host.chars().all(|c| c.is_ascii_digit() || c == '.') => {
            Some(Host::Name(host.to_owned()))
        }
        _ => None,
    }
}

fn parse_network(text: &str) -> Option<(IpAddr, u8)> {
    match text.split_once('/') {
        None => text.parse().ok().map(|address: IpAddr| (address, full_prefix(address))),
        Some((address, prefix)) => {
            let address: IpAddr = address.parse().ok()?;
            let prefix: u8 = prefix.parse().ok()?;
            (prefix <= full_prefix(address)).then_some((address, prefix))
        }
    }
}

/// An address as it stands in a URL or beside a port, IPv6 with or without brackets.
pub fn parse_address(host: &str) -> Option<IpAddr> {
    let inside = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    inside.unwrap_or(host).parse().ok()
}

fn full_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn same_prefix(one: u128, other: u128, prefix: u8) -> bool {
    let differing = u32::from(prefix);
    (one ^ other).leading_zeros() >= differing
}

/// Loopback, link-local (also the metadata service of clouds), unspecified,
/// multicast and broadcast addresses, in any spelling.
fn is_special(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            v4.is_loopback() || v4.is_link_local() || v4.is_broadcast() || v4.is_multicast() || v4.octets()[0] == 0
        }
        IpAddr::V6(v6) => {
            let segments = v6.segments();
            // 64:ff9b::/96 carries an IPv4 address through NAT64, ::/96 is its obsolete form.
            let embeds_v4 = matches!(segments, [0x64, 0xff9b, 0, 0, 0, 0, _, _] | [0, 0, 0, 0, 0, 0, _, _]);
            let [.., high, low] = segments;
            v6.is_loopback()
                || v6.is_unicast_link_local()
                || v6.is_multicast()
                || v6.is_unspecified()
                || (embeds_v4
                    && is_special(std::net::Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)).into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_survive_a_round_trip_and_others_say_what_was_expected() {
        for text in
            ["meter.local:502", "10.0.0.0/8:502", "*.example.com:443", "*:80", "[fd00::1]:80", "a:*", "[fd00::/8]:1"]
        {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        for text in [
            "meter",
            "meter:",
            "meter:0",
            "meter:70000",
            ":80",
            "a b:80",
            "*example.com:80",
            "1.2.3:80",
            "1.2.3.4/33:80",
            "fd00::1:80",
            "http://a:80",
            "a/b:80",
        ] {
            assert!(text.parse::<Target>().unwrap_err().starts_with("expected host:port"), "{text}");
        }
    }

    #[test]
    fn patterns_overlap_where_one_host_and_port_fit_both() {
        for (one, other, expected) in [
            ("*:80", "meter.local:80", true),
            ("*:*", "10.0.0.7:502", true),
            ("*:80", "meter.local:81", false),
            ("Meter.local:*", "meter.local:81", true),
            ("*.example.com:443", "a.example.com:443", true),
            ("*.example.com:443", "*.com:443", true),
            ("*.example.com:443", "*.example.org:443", false),
            ("10.0.0.0/8:502", "10.1.0.0/16:502", true),
            ("10.0.0.0/8:502", "11.1.0.0/16:502", false),
            ("[fd00::/8]:1", "[fd00::1]:1", true),
            ("10.0.0.0/8:502", "[fd00::1]:502", false),
            ("meter.local:502", "10.0.0.7:502", false),
        ] {
            let (one, other) = (one.parse::<Target>().unwrap(), other.parse::<Target>().unwrap());
            assert_eq!((one.overlaps(&other), other.overlaps(&one)), (expected, expected), "{one} {other}");
        }
    }
}
