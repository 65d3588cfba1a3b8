//! WASI sockets: outgoing TCP to granted addresses, nothing else, and no more
//! connections than by `net`.

use std::any::Any;
use std::net::SocketAddr;

use wasmtime::component::{HasData, Linker, Resource};
use wasmtime_wasi::p2::bindings::io::error::Error;
use wasmtime_wasi::p2::bindings::sockets::network::{self, IpAddressFamily};
use wasmtime_wasi::p2::bindings::sockets::tcp_create_socket::{self, Host};
use wasmtime_wasi::p2::pipe::{ClosedInputStream, ClosedOutputStream};
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, SocketError, SocketResult, TcpSocket};
use wasmtime_wasi::sockets::{SocketAddrUse, WasiSocketsView};

use super::state::{MAX_HANDLES, State};
use crate::network::Access;

/// Sockets of one device.
const MAX_SOCKETS: usize = 32;

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

/// Puts a bound before the making of sockets.
pub(super) fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let added = tcp_create_socket::add_to_linker::<State, Bounded>(linker, |state| Sockets(state));
    linker.allow_shadowing(false);
    added
}

struct Bounded;

impl HasData for Bounded {
    type Data<'a> = Sockets<'a>;
}

struct Sockets<'a>(&'a mut State);

impl network::HostNetwork for Sockets<'_> {
    fn drop(&mut self, network: Resource<network::Network>) -> wasmtime::Result<()> {
        network::HostNetwork::drop(&mut WasiSocketsView::sockets(self.0), network)
    }
}

impl network::Host for Sockets<'_> {
    fn convert_error_code(&mut self, error: SocketError) -> wasmtime::Result<network::ErrorCode> {
        WasiSocketsView::sockets(self.0).convert_error_code(error)
    }

    fn network_error_code(&mut self, error: Resource<Error>) -> wasmtime::Result<Option<network::ErrorCode>> {
        WasiSocketsView::sockets(self.0).network_error_code(error)
    }
}

impl Host for Sockets<'_> {
    fn create_tcp_socket(&mut self, family: IpAddressFamily) -> SocketResult<Resource<TcpSocket>> {
        use network::ErrorCode::NewSocketLimit;
        let open = self.0.tcp_sockets().len();
        self.0.wasi_sockets.truncate(open);
        if open >= MAX_SOCKETS {
            let text = format!("has {MAX_SOCKETS} WASI sockets open and gets no more");
            self.0.complain("WASI sockets", &text);
            return Err(SocketError::from(NewSocketLimit));
        }
        match self.0.sockets.take() {
            Ok(socket) => self.0.wasi_sockets.push(socket),
            Err(text) => {
                self.0.complain("WASI sockets", &text);
                return Err(SocketError::from(NewSocketLimit));
            }
        }
        WasiSocketsView::sockets(self.0).create_tcp_socket(family)
    }
}

impl State {
    /// The handles of all entries of a kind.
    fn handles(&mut self, mut is_wanted: impl FnMut(&dyn Any) -> bool) -> Vec<u32> {
        let handles = 0..u32::try_from(2 * MAX_HANDLES).unwrap_or(u32::MAX);
        handles.filter(|handle| self.table.get_any_mut(*handle).is_ok_and(|entry| is_wanted(entry))).collect()
    }

    fn tcp_sockets(&mut self) -> Vec<u32> {
        self.handles(|entry| entry.is::<TcpSocket>())
    }

    /// Closes all WASI sockets: in the place of each stands a fresh one, and
    /// its streams end.
    pub(super) fn close_wasi_sockets(&mut self) {
        for handle in self.tcp_sockets() {
            let socket = Resource::<TcpSocket>::new_borrow(handle);
            // The table names no handles of children, but lends them: the place in memory tells.
            let place = |entry: &dyn Any| std::ptr::from_ref(entry).cast::<()>();
            let streams: Vec<*const ()> = match self.table.iter_children(&socket) {
                Ok(children) => children.map(|child| place(child)).collect(),
                Err(_) => Vec::new(),
            };
            for stream in self.handles(|entry| streams.contains(&place(entry))) {
                let Ok(entry) = self.table.get_any_mut(stream) else { continue };
                if let Some(input) = entry.downcast_mut::<DynInputStream>() {
                    *input = Box::new(ClosedInputStream);
                } else if let Some(output) = entry.downcast_mut::<DynOutputStream>() {
                    *output = Box::new(ClosedOutputStream);
                }
            }
            let fresh = WasiSocketsView::sockets(self).create_tcp_socket(IpAddressFamily::Ipv4);
            let fresh = fresh.ok().and_then(|fresh| self.table.delete(fresh).ok());
            if let (Some(fresh), Ok(socket)) = (fresh, self.table.get_mut(&socket)) {
                *socket = fresh;
            }
        }
        self.wasi_sockets.clear();
    }
}
