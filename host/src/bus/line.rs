//! How a Modbus line is reached: where it is, and how it is opened.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio_modbus::client::{Context, rtu, tcp};
use tokio_serial::{DataBits, SerialPortBuilderExt, SerialStream, StopBits};

use super::simulated::{self, Units};
use crate::config::Parity;

/// See the module documentation.
pub(super) enum Line {
    /// A server by its name.
    Tcp(String, u16),
    /// A server by the addresses that its name stands for.
    Addresses(Vec<SocketAddr>),
    /// A serial port.
    Rtu { port: PathBuf, baud_rate: u32, parity: Parity, stop_bits: u8 },
    /// Units that are not there.
    Simulated(Arc<dyn Units>),
}

impl Line {
    /// Opens it.
    pub(super) async fn connect(&self) -> std::io::Result<Context> {
        match self {
            Line::Tcp(host, port) => attach(TcpStream::connect((host.as_str(), *port)).await?),
            Line::Addresses(addresses) => attach(TcpStream::connect(addresses.as_slice()).await?),
            Line::Simulated(units) => simulated::connect(units),
            Line::Rtu { port, baud_rate, parity, stop_bits } => {
                let stop_bits = if *stop_bits == 2 { StopBits::Two } else { StopBits::One };
                let stream: SerialStream = tokio_serial::new(port.to_string_lossy(), *baud_rate)
                    .data_bits(DataBits::Eight)
                    .parity((*parity).into())
                    .stop_bits(stop_bits)
                    .open_native_async()?;
                Ok(rtu::attach(stream))
            }
        }
    }
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Line::Tcp(host, port) => write!(f, "{host}:{port}"),
            Line::Addresses(addresses) => {
                let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                f.write_str(&addresses.join(" or "))
            }
            Line::Rtu { port, .. } => write!(f, "{}", port.display()),
            Line::Simulated(_) => f.write_str("the simulated line"),
        }
    }
}

impl From<Parity> for tokio_serial::Parity {
    fn from(parity: Parity) -> Self {
        match parity {
            Parity::None => tokio_serial::Parity::None,
            Parity::Even => tokio_serial::Parity::Even,
            Parity::Odd => tokio_serial::Parity::Odd,
        }
    }
}

/// The silence between two frames: 3.5 characters of 11 bits, and 1.75 ms
/// above 19200 bits a second (Modbus over serial line, 2.5.1.1).
pub(super) fn silent_interval(baud_rate: u32) -> Duration {
    if baud_rate > 19_200 {
        return Duration::from_micros(1750);
    }
    Duration::from_secs_f64(3.5 * 11.0 / f64::from(baud_rate.max(1)))
}

fn attach(stream: TcpStream) -> std::io::Result<Context> {
    stream.set_nodelay(true)?;
    Ok(tcp::attach(stream))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_silent_interval_follows_the_baud_rate() {
        assert_eq!(silent_interval(9600).as_micros(), 4010);
        assert_eq!(silent_interval(115_200).as_micros(), 1750);
    }
}
