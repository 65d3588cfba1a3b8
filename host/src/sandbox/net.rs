//! The import `net`: TCP to granted addresses, with a timeout on each call.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use wasmtime::component::{Resource, ResourceTable};

use super::contract::sandgate::driver::net::NetError;
use super::state::State;
use crate::network::{AccessError, Stream};
use crate::sockets::Socket;

/// A connection of a driver; none when the host has closed it.
pub struct Connection(Option<(Box<dyn Stream>, Socket)>);

impl Connection {
    fn stream(&mut self) -> Result<&mut Box<dyn Stream>, NetError> {
        self.0.as_mut().map(|(stream, _)| stream).ok_or(NetError::Closed)
    }
}

/// Closes all connections of a driver.
pub(super) fn close_all(table: &mut ResourceTable) {
    table.iter_mut().filter_map(|entry| entry.downcast_mut::<Connection>()).for_each(|connection| connection.0 = None);
}

/// How many connections of a driver are open.
fn open_connections(table: &mut ResourceTable) -> usize {
    table.iter_mut().filter_map(|entry| entry.downcast_ref::<Connection>()).filter(|open| open.0.is_some()).count()
}

/// One answer of a device; larger ones come in parts.
const MAX_RECEIVE: u32 = 1 << 20;
/// A message to a device; the host holds it until it is sent.
const MAX_SEND: usize = 1 << 20;
/// Handles leak when a driver forgets them; a device needs one connection.
const MAX_CONNECTIONS: usize = 32;
const MAX_TIMEOUT: f64 = 3_600_000.0;

/// Reads a timeout argument.
pub(super) fn timeout(milliseconds: f64) -> Result<Duration, String> {
    if (1.0..=MAX_TIMEOUT).contains(&milliseconds) {
        Ok(Duration::from_secs_f64(milliseconds / 1000.0))
    } else {
        Err(format!("timeout: expected 1 ms to 1 h, found {milliseconds} ms"))
    }
}

impl From<AccessError> for NetError {
    fn from(error: AccessError) -> Self {
        match error {
            AccessError::NotGranted(text) => NetError::NotGranted(text),
            AccessError::Unresolved(host) => NetError::Unresolved(host),
        }
    }
}

impl From<std::io::Error> for NetError {
    fn from(error: std::io::Error) -> Self {
        use std::io::ErrorKind;
        match error.kind() {
            ErrorKind::ConnectionRefused => NetError::Refused,
            ErrorKind::TimedOut => NetError::TimedOut,
            ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::UnexpectedEof => NetError::Closed,
            _ => NetError::Failed(error.to_string()),
        }
    }
}

impl State {
    pub(super) async fn tcp_connect(
        &mut self,
        host: String,
        port: u16,
        milliseconds: f64,
    ) -> wasmtime::Result<Result<Resource<Connection>, NetError>> {
        let limit = match timeout(milliseconds) {
            Ok(limit) => limit,
            Err(text) => return Ok(Err(NetError::InvalidArgument(text))),
        };
        if open_connections(&mut self.table) >= MAX_CONNECTIONS {
            let text = format!("more than {MAX_CONNECTIONS} open connections; drop those that are not used");
            return Ok(Err(NetError::InvalidArgument(text)));
        }
        let socket = match self.sockets.take() {
            Ok(socket) => socket,
            Err(text) => return Ok(Err(NetError::Failed(text))),
        };
        let (access, lookups) = (std::sync::Arc::clone(&self.tcp), self.lookups.clone());
        let field = self.field.clone();
        let connect = async {
            if let Some(field) = field {
                access.check_simulated(&host, port)?;
                return Ok(field.connect(&host, port).await?);
            }
            let addresses = access.resolve(&host, port, &lookups).await?;
            let stream = TcpStream::connect(addresses.as_slice()).await?;
            // A request and its answer are one small packet each.
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        };
        let result = tokio::time::timeout(limit, connect).await.unwrap_or(Err(NetError::TimedOut));
        // A refusal costs a driver nothing; it is told once, below.
        if !matches!(result, Err(NetError::NotGranted(_))) {
            let (device, outcome) = (self.outlet.device.as_str(), result.as_ref().map(|_| ()));
            tracing::debug!(device, "TCP: connects to {host}:{port}: {outcome:?}");
        }
        Ok(match result {
            Ok(stream) => Ok(self.table.push(Connection(Some((stream, socket))))?),
            Err(NetError::NotGranted(text)) => {
                self.complain(&text, &text);
                Err(NetError::NotGranted(text))
            }
            Err(error) => Err(error),
        })
    }

    pub(super) async fn tcp_send(
        &mut self,
        connection: Resource<Connection>,
        bytes: Vec<u8>,
        milliseconds: f64,
    ) -> wasmtime::Result<Result<(), NetError>> {
        let limit = match timeout(milliseconds) {
            Ok(limit) => limit,
            Err(text) => return Ok(Err(NetError::InvalidArgument(text))),
        };
        if bytes.len() > MAX_SEND {
            let text = format!("bytes: expected at most {MAX_SEND}, found {}", bytes.len());
            return Ok(Err(NetError::InvalidArgument(text)));
        }
        let stream = match self.table.get_mut(&connection)?.stream() {
            Ok(stream) => stream,
            Err(closed) => return Ok(Err(closed)),
        };
        let result = tokio::time::timeout(limit, stream.write_all(&bytes)).await;
        tracing::debug!(device = self.outlet.device.as_str(), "TCP: sends {} bytes: {result:?}", bytes.len());
        Ok(match result {
            Ok(sent) => sent.map_err(NetError::from),
            Err(_) => Err(NetError::TimedOut),
        })
    }

    pub(super) async fn tcp_receive(
        &mut self,
        connection: Resource<Connection>,
        most: u32,
        milliseconds: f64,
    ) -> wasmtime::Result<Result<Vec<u8>, NetError>> {
        let limit = match timeout(milliseconds) {
            Ok(_) if !(1..=MAX_RECEIVE).contains(&most) => {
                let text = format!("limit: expected 1 to {MAX_RECEIVE} bytes, found {most}");
                return Ok(Err(NetError::InvalidArgument(text)));
            }
            Ok(limit) => limit,
            Err(text) => return Ok(Err(NetError::InvalidArgument(text))),
        };
        let stream = match self.table.get_mut(&connection)?.stream() {
            Ok(stream) => stream,
            Err(closed) => return Ok(Err(closed)),
        };
        let mut buffer = Vec::with_capacity(usize::try_from(most.min(4096)).unwrap_or_default());
        let mut part = stream.take(u64::from(most));
        let result = tokio::time::timeout(limit, part.read_buf(&mut buffer)).await;
        tracing::debug!(device = self.outlet.device.as_str(), "TCP: receives: {result:?} bytes");
        Ok(match result {
            Ok(Ok(0)) => Err(NetError::Closed),
            Ok(Ok(_)) => Ok(buffer),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(NetError::TimedOut),
        })
    }
}
