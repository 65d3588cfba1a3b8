//! Who may talk to whom: `host:port` patterns and the check of an address.
//!
//! The only place that decides about network access; used by the `net` and
//! `http` imports and by WASI sockets. Default is deny.

use std::fmt;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;
use std::sync::Arc;

use serde::de::{self, Deserialize, Deserializer};
use tokio::sync::Semaphore;

/// Look-ups of names at a time: of all devices, of one.
const LOOKUPS: usize = 16;
const LOOKUPS_OF_ONE: usize = 2;

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
    fn may_cover(&self, host: &str, port: u16) -> bool {
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
    fn covers(&self, host: &str, address: IpAddr, port: u16) -> bool {
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
    fn grants(&self, host: &str, address: IpAddr, port: u16, is_own: bool) -> bool {
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

fn parse_address(host: &str) -> Option<IpAddr> {
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

/// Whether an address is one of this machine's: the system would speak to it
/// from that address. Nothing is sent.
fn is_own(address: IpAddr) -> bool {
    let address = address.to_canonical();
    let any: IpAddr = match address {
        IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    // When it cannot be found out, the answer is the careful one.
    let Ok(socket) = std::net::UdpSocket::bind((any, 0)) else { return true };
    socket.connect((address, 9)).is_ok() && socket.local_addr().is_ok_and(|own| own.ip() == address)
}

/// Why an address was not given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// Not requested or not granted; the text names the address and why.
    #[error("{0}")]
    NotGranted(String),
    /// The name server knows no such host.
    #[error("cannot resolve {0}")]
    Unresolved(String),
}

/// Look-ups of names, a few at a time: each holds a thread for as long as the
/// name server is silent, also when nobody waits for it any more.
#[derive(Debug, Clone)]
pub struct Lookups {
    all: Arc<Semaphore>,
    own: Arc<Semaphore>,
}

impl Lookups {
    /// Those of all devices together.
    pub fn new() -> Lookups {
        Lookups { all: Arc::new(Semaphore::new(LOOKUPS)), own: Arc::new(Semaphore::new(LOOKUPS)) }
    }

    /// Those of one device, which count as everybody's.
    pub fn of_one(&self) -> Lookups {
        Lookups { all: Arc::clone(&self.all), own: Arc::new(Semaphore::new(LOOKUPS_OF_ONE)) }
    }

    async fn find(&self, host: &str, port: u16) -> Option<Vec<SocketAddr>> {
        let own = Arc::clone(&self.own).acquire_owned().await.ok()?;
        let all = Arc::clone(&self.all).acquire_owned().await.ok()?;
        let host = host.to_owned();
        let find = move || {
            let _turns = (own, all);
            (host.as_str(), port).to_socket_addrs().map(Iterator::collect)
        };
        tokio::task::spawn_blocking(find).await.ok()?.ok()
    }
}

impl Default for Lookups {
    fn default() -> Self {
        Lookups::new()
    }
}

/// What one device may reach over one kind of connection.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// What the manifest asks for.
    pub requested: Vec<Target>,
    /// What the operator allows.
    pub granted: Vec<Target>,
}

impl Access {
    /// Whether this resolved address may be reached under this host name.
    pub fn allows(&self, host: &str, address: IpAddr, port: u16) -> bool {
        let is_own = is_own(address);
        self.granted.iter().any(|target| target.grants(host, address, port, is_own))
            && self.requested.iter().any(|target| target.covers(host, address, port))
    }

    /// Refuses a host before its name is resolved, when nothing can match.
    pub fn check_name(&self, host: &str, port: u16) -> Result<(), AccessError> {
        if !self.granted.iter().any(|target| target.may_cover(host, port)) {
            return Err(AccessError::NotGranted(format!("{host}:{port} is not granted to this device")));
        }
        if !self.requested.iter().any(|target| target.may_cover(host, port)) {
            return Err(AccessError::NotGranted(format!("{host}:{port} is not requested by the driver's manifest")));
        }
        Ok(())
    }

    /// Resolves a host and returns the addresses that may be reached.
    pub async fn resolve(&self, host: &str, port: u16, lookups: &Lookups) -> Result<Vec<SocketAddr>, AccessError> {
        self.check_name(host, port)?;
        let found: Vec<SocketAddr> = match parse_address(host) {
            Some(address) => vec![SocketAddr::new(address, port)],
            None => lookups.find(host, port).await.ok_or_else(|| AccessError::Unresolved(host.to_owned()))?,
        };
        let allowed: Vec<_> = found.iter().copied().filter(|found| self.allows(host, found.ip(), port)).collect();
        match (allowed.is_empty(), found.first()) {
            (false, _) => Ok(allowed),
            (true, None) => Err(AccessError::Unresolved(host.to_owned())),
            (true, Some(found)) => {
                let text = format!("{host}:{port} resolves to {}, which is not granted to this device", found.ip());
                Err(AccessError::NotGranted(text))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(list: &[&str]) -> Vec<Target> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

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

    #[test]
    fn an_address_is_allowed_only_by_a_grant_that_means_it() {
        // grant, host as the driver writes it, address it resolves to, allowed
        for (grant, host, address, expected) in [
            ("meter.local:502", "meter.local", "192.168.1.7", true),
            ("meter.local:502", "METER.local.", "192.168.1.7", true),
            ("meter.local:502", "evil.local", "192.168.1.7", false),
            // A name that resolves to the gateway itself or to a metadata service.
            ("meter.local:502", "meter.local", "127.0.0.1", false),
            ("meter.local:502", "meter.local", "169.254.169.254", false),
            ("meter.local:502", "meter.local", "::ffff:127.0.0.1", false),
            ("meter.local:502", "meter.local", "64:ff9b::7f00:1", false),
            ("*:502", "anything", "8.8.8.8", true),
            ("*:502", "127.0.0.1", "127.0.0.1", false),
            ("*:502", "0.0.0.0", "0.0.0.0", false),
            ("*:502", "::1", "::1", false),
            ("*:502", "fe80::1", "fe80::1", false),
            ("0.0.0.0/0:502", "127.0.0.1", "127.0.0.1", false),
            ("0.0.0.0/0:502", "8.8.8.8", "8.8.8.8", true),
            ("127.0.0.1:502", "127.0.0.1", "127.0.0.1", true),
            ("127.0.0.1:502", "127.0.0.2", "127.0.0.2", false),
            ("127.0.0.0/8:502", "127.0.0.2", "127.0.0.2", true),
            ("localhost:502", "localhost", "127.0.0.1", true),
            ("localhost:502", "localhost", "169.254.0.1", false),
            ("10.0.0.0/8:502", "10.1.2.3", "10.1.2.3", true),
            ("10.0.0.0/8:502", "11.1.2.3", "11.1.2.3", false),
            ("*.example.com:502", "a.example.com", "8.8.8.8", true),
            ("*.example.com:502", "example.com", "8.8.8.8", false),
            ("*.example.com:502", "aexample.com", "8.8.8.8", false),
            ("*.example.com:502", "a.example.com", "127.0.0.1", false),
            ("meter.local:503", "meter.local", "192.168.1.7", false),
            ("meter.local:*", "meter.local", "192.168.1.7", true),
        ] {
            let access = Access { requested: targets(&["*:*"]), granted: targets(&[grant]) };
            assert_eq!(access.allows(host, address.parse().unwrap(), 502), expected, "{grant} {host} {address}");
        }
    }

    #[test]
    fn what_the_manifest_does_not_request_is_refused_though_granted() {
        let access = Access { requested: targets(&["*:80"]), granted: targets(&["10.0.0.1:502"]) };
        let error = access.check_name("10.0.0.1", 502).unwrap_err();
        assert_eq!(error.to_string(), "10.0.0.1:502 is not requested by the driver's manifest");
        let error = Access::default().check_name("10.0.0.1", 502).unwrap_err();
        assert_eq!(error.to_string(), "10.0.0.1:502 is not granted to this device");
    }

    #[test]
    fn an_address_of_this_machine_is_reached_only_by_its_very_address() {
        // Find one that is not loopback, if this machine has one.
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        let own = socket.connect("192.0.2.1:9").and_then(|()| socket.local_addr()).map(|own| own.ip());
        assert!(is_own("127.0.0.1".parse().unwrap()) && !is_own("192.0.2.1".parse().unwrap()));
        let Ok(own) = own else { return };
        let exact = format!("{own}:502");
        for (grant, expected) in [("*:502", false), ("0.0.0.0/0:502", false), ("name.local:502", false), (&exact, true)]
        {
            let access = Access { requested: targets(&["*:*"]), granted: targets(&[grant]) };
            let host = if grant.starts_with("name") { "name.local".to_owned() } else { own.to_string() };
            assert_eq!(access.allows(&host, own, 502), expected, "{grant} {own}");
        }
    }

    #[tokio::test]
    async fn spellings_of_loopback_are_seen_after_resolution() {
        let access = Access { requested: targets(&["*:*"]), granted: targets(&["*:80"]) };
        for host in ["localhost", "127.1", "2130706433", "0x7f.0.0.1"] {
            let error = access.resolve(host, 80, &Lookups::new()).await.unwrap_err();
            assert!(matches!(error, AccessError::NotGranted(_) | AccessError::Unresolved(_)), "{host}: {error}");
        }
    }
}
