//! Who may talk to whom: the check of a name and of an address.
//!
//! The only place that decides about network access; used by the `net` and
//! `http` imports and by WASI sockets. Default is deny.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

pub use sandgate_manifest::target::Target;
use sandgate_manifest::target::parse_address;
use tokio::sync::Semaphore;

/// Look-ups of names at a time: of all devices, of one.
const LOOKUPS: usize = 16;
const LOOKUPS_OF_ONE: usize = 2;

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

/// Both ways of a connection.
pub trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for T {}

/// Simulated devices, to which connections of a driver lead instead of the network.
pub trait Field: Send + Sync {
    /// Opens a TCP connection.
    fn connect(&self, host: &str, port: u16) -> BoxFuture<'static, io::Result<Box<dyn Stream>>>;

    /// Carries out an HTTP request. An error is why there is no answer.
    fn fetch(&self, request: FieldRequest) -> BoxFuture<'static, Result<FieldResponse, String>>;
}

/// An HTTP request to a simulated device.
#[derive(Debug, Clone)]
pub struct FieldRequest {
    /// Such as `GET`.
    pub method: String,
    /// The host and the port of the URL.
    pub host: (String, u16),
    /// The path and the query of the URL, encoded.
    pub path: String,
    /// The body.
    pub body: Vec<u8>,
}

/// The answer of a simulated device.
#[derive(Debug, Clone, Default)]
pub struct FieldResponse {
    /// Such as 200.
    pub status: u16,
    /// Names and values.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
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

    /// Whether a simulated device may be reached; names are not resolved there.
    pub fn check_simulated(&self, host: &str, port: u16) -> Result<(), AccessError> {
        self.check_name(host, port)?;
        match parse_address(host) {
            Some(address) if !self.allows(host, address, port) => {
                Err(AccessError::NotGranted(format!("{host}:{port} is not granted to this device")))
            }
            _ => Ok(()),
        }
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
