//! The check of WASI sockets: outgoing TCP to granted addresses, nothing else.

use std::net::SocketAddr;

use wasmtime_wasi::sockets::SocketAddrUse;

use crate::network::Access;

/// Whether a socket may be used so. WASI sockets know addresses only, so
/// grants by host name do not apply to them.
pub(super) fn allows(access: &Access, address: SocketAddr, usage: SocketAddrUse) -> bool {
    match usage {
        SocketAddrUse::TcpConnect => {
            let host = address.ip().to_string();
            access.allows(&host, address.ip(), address.port())
        }
        // Every connect binds to "any address, any port" first.
        SocketAddrUse::TcpBind => address.ip().is_unspecified() && address.port() == 0,
        _ => false,
    }
}
