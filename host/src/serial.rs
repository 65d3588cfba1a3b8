//! Serial ports that the host owns, for devices that speak something else than
//! Modbus: whose turn it is, and what goes over them.
//!
//! Whoever uses a port has it to itself for a while, so that a question and its
//! answer stay together. Others wait in the order in which they asked.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_serial::{DataBits, SerialPortBuilderExt, StopBits};

use crate::bus::{Retry, Simulation};
use crate::config::Serial;
use crate::message::DeviceId;
use crate::network::Stream;

/// How long a device may have a port for which others wait.
const LONGEST_TURN: Duration = Duration::from_secs(4);
/// How long one waits for its turn.
const LONGEST_WAIT: Duration = Duration::from_secs(8);
/// Room for what arrives at once.
const PART: usize = 4096;

/// Why something did not work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SerialError {
    /// Not enough arrived in time.
    #[error("timed out")]
    TimedOut,
    /// The port cannot be used.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// Others have it for too long.
    #[error("busy")]
    Busy,
}

/// A port, for all devices that may use it. Clones are the same.
#[derive(Clone)]
pub struct SerialPort {
    /// How it is set.
    pub settings: Serial,
    port: Arc<Mutex<Port>>,
}

/// What is read until it is enough.
#[derive(Debug, Clone, Copy)]
pub enum Until<'a> {
    /// There is something.
    Any,
    /// There are so many bytes.
    Count,
    /// This has come.
    Delimiter(&'a [u8]),
    /// Nothing comes any more.
    Silence(Duration),
}

/// A port in the hands of one device.
pub struct Turn {
    port: OwnedMutexGuard<Port>,
    ends: Instant,
}

struct Port {
    name: String,
    settings: Serial,
    simulation: Option<Arc<dyn Simulation>>,
    stream: Option<Box<dyn Stream>>,
    retry: Retry,
    /// Who had the last turn.
    last: Option<DeviceId>,
    /// What has arrived and was not read.
    kept: BytesMut,
}

impl SerialPort {
    /// A port of the gateway, or one with a simulated device.
    pub fn new(name: &str, settings: &Serial, simulation: Option<Arc<dyn Simulation>>) -> SerialPort {
        let port = Port {
            name: name.to_owned(),
            settings: settings.clone(),
            simulation,
            stream: None,
            retry: Retry::default(),
            last: None,
            kept: BytesMut::new(),
        };
        SerialPort { settings: settings.clone(), port: Arc::new(Mutex::new(port)) }
    }

    /// Waits for the turn of a device.
    pub async fn take(&self, device: &DeviceId) -> Result<Turn, SerialError> {
        let port = timeout(LONGEST_WAIT, Arc::clone(&self.port).lock_owned()).await;
        let mut turn = Turn { port: port.map_err(|_| SerialError::Busy)?, ends: Instant::now() + LONGEST_TURN };
        if turn.port.last.as_ref() != Some(device) {
            turn.port.discard().await;
            turn.port.last = Some(device.clone());
        }
        Ok(turn)
    }
}

impl Turn {
    /// Whether it is the turn of whoever waits.
    pub fn is_over(&self) -> bool {
        self.ends <= Instant::now()
    }

    /// Writes all bytes.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), SerialError> {
        let written = timeout_at(self.ends, self.port.open().await?.write_all(bytes)).await;
        tracing::debug!(bus = self.port.name, "writes {} bytes: {written:?}", bytes.len());
        written.map_err(|_| SerialError::TimedOut)?.map_err(|error| self.port.lost(&error))
    }

    /// Reads until it is enough, at most so many bytes.
    pub async fn read(&mut self, until: Until<'_>, limit: usize, patience: Duration) -> Result<Vec<u8>, SerialError> {
        let first = self.ends.min(Instant::now() + patience);
        loop {
            if let Some(length) = until.enough(&self.port.kept, limit) {
                return Ok(self.port.kept.split_to(length).into());
            }
            let ends = match until {
                Until::Silence(silence) if !self.port.kept.is_empty() => self.ends.min(Instant::now() + silence),
                _ => first,
            };
            match timeout_at(ends, self.port.receive()).await {
                Ok(received) => received?,
                Err(_) if matches!(until, Until::Silence(_)) && !self.port.kept.is_empty() => {
                    return Ok(std::mem::take(&mut self.port.kept).into());
                }
                Err(_) => return Err(SerialError::TimedOut),
            }
        }
    }

    /// Throws away what has arrived.
    pub async fn discard(&mut self) -> Result<(), SerialError> {
        self.port.open().await?;
        self.port.discard().await;
        Ok(())
    }
}

impl Until<'_> {
    /// How many of the bytes are what is waited for.
    fn enough(self, kept: &[u8], limit: usize) -> Option<usize> {
        let found = match self {
            Until::Any => (!kept.is_empty()).then_some(kept.len()),
            Until::Count | Until::Silence(_) => None,
            Until::Delimiter(delimiter) => {
                let place = kept.windows(delimiter.len().max(1)).position(|bytes| bytes == delimiter);
                place.map(|place| place + delimiter.len())
            }
        };
        found.or((kept.len() >= limit).then_some(limit)).map(|length| length.min(limit))
    }
}

impl Port {
    /// What is open, or is opened now.
    async fn open(&mut self) -> Result<&mut Box<dyn Stream>, SerialError> {
        if self.stream.is_none() {
            if self.retry.rests() {
                let text = format!("{} cannot be opened; trying again soon", self.settings.port.display());
                return Err(SerialError::Unavailable(text));
            }
            let opened = match &self.simulation {
                Some(simulation) => simulation.serial(&self.name).await,
                None => self.settings.open(),
            };
            match opened {
                Ok(stream) => {
                    if self.retry.succeeded() {
                        tracing::info!(bus = self.name, "{} is open", self.settings.port.display());
                    }
                    self.stream = Some(stream);
                }
                Err(error) => {
                    let text = format!("cannot open {}: {error}", self.settings.port.display());
                    if self.retry.failed() {
                        tracing::warn!(bus = self.name, "{text}");
                    }
                    return Err(SerialError::Unavailable(text));
                }
            }
        }
        self.stream.as_mut().ok_or_else(|| SerialError::Unavailable("the port is closed".into()))
    }

    /// Waits for what comes next.
    async fn receive(&mut self) -> Result<(), SerialError> {
        self.open().await?;
        self.kept.reserve(PART);
        let Port { stream: Some(stream), kept, .. } = self else { return Ok(()) };
        match stream.read_buf(kept).await {
            Ok(0) => Err(self.lost(&io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => Ok(()),
            Err(error) => Err(self.lost(&error)),
        }
    }

    /// Throws away what has arrived, here and in the system.
    async fn discard(&mut self) {
        self.kept.clear();
        // As much as the system keeps; who sends without end does not hold this up.
        for _ in 0..16 {
            if self.stream.is_none() || timeout(Duration::ZERO, self.receive()).await.is_err() {
                break;
            }
            self.kept.clear();
        }
    }

    /// It does not work any more.
    fn lost(&mut self, error: &io::Error) -> SerialError {
        let text = format!("{} does not work any more: {error}", self.settings.port.display());
        if self.stream.take().is_some() {
            tracing::warn!(bus = self.name, "{text}");
            self.retry.failed();
        }
        self.kept.clear();
        SerialError::Unavailable(text)
    }
}

impl Serial {
    /// Opens the port, so that nobody else can.
    fn open(&self) -> io::Result<Box<dyn Stream>> {
        let data_bits = match self.data_bits {
            5 => DataBits::Five,
            6 => DataBits::Six,
            7 => DataBits::Seven,
            _ => DataBits::Eight,
        };
        let stop_bits = if self.stop_bits == 2 { StopBits::Two } else { StopBits::One };
        let stream = tokio_serial::new(self.port.to_string_lossy(), self.baud_rate)
            .data_bits(data_bits)
            .parity(self.parity.into())
            .stop_bits(stop_bits)
            .open_native_async()?;
        Ok(Box::new(stream))
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use futures::future::BoxFuture;
    use tokio::io::DuplexStream;

    use super::*;
    use crate::bus::Units;
    use crate::network::{Field, FieldRequest, FieldResponse};

    /// The other end of each connection, newest last.
    #[derive(Clone, Default)]
    struct Device(Arc<std::sync::Mutex<Vec<DuplexStream>>>);

    impl Device {
        fn end(&self) -> DuplexStream {
            self.0.lock().unwrap().pop().unwrap()
        }
    }

    impl Field for Device {
        fn connect(&self, _: &str, _: u16) -> BoxFuture<'static, io::Result<Box<dyn Stream>>> {
            unreachable!()
        }

        fn fetch(&self, _: FieldRequest) -> BoxFuture<'static, Result<FieldResponse, String>> {
            unreachable!()
        }
    }

    impl Simulation for Device {
        fn line(&self, _: &str) -> Arc<dyn Units> {
            unreachable!()
        }

        fn serial(&self, _: &str) -> BoxFuture<'static, io::Result<Box<dyn Stream>>> {
            let (near, far) = tokio::io::duplex(1 << 16);
            self.0.lock().unwrap().push(far);
            async move { Ok(Box::new(near) as Box<dyn Stream>) }.boxed()
        }

        fn can(&self, _: &str) -> io::Result<crate::bus::Wire> {
            unreachable!()
        }

        fn pin(&self, _: &str) -> Box<dyn crate::bus::Pin> {
            unreachable!()
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    fn port() -> (SerialPort, Device) {
        let device = Device::default();
        (SerialPort::new("port", &Serial::default(), Some(Arc::new(device.clone()))), device)
    }

    #[tokio::test(start_paused = true)]
    async fn reads_end_by_count_by_delimiter_by_silence_or_by_time() {
        let (port, device) = port();
        let mut turn = port.take(&DeviceId::new("a")).await.unwrap();
        turn.write(b"?").await.unwrap();
        let mut end = device.end();
        end.write_all(b"abc\r\nde").await.unwrap();
        assert_eq!(turn.read(Until::Count, 2, SECOND).await.unwrap(), b"ab");
        assert_eq!(turn.read(Until::Delimiter(b"\r\n"), 100, SECOND).await.unwrap(), b"c\r\n");
        assert_eq!(turn.read(Until::Delimiter(b"\n"), 100, SECOND).await, Err(SerialError::TimedOut));
        // What has come stays.
        assert_eq!(turn.read(Until::Any, 1, SECOND).await.unwrap(), b"d");
        assert_eq!(turn.read(Until::Delimiter(b"\n"), 1, SECOND).await.unwrap(), b"e");
        let speak = async {
            for part in [b"12", b"34"] {
                end.write_all(part).await.unwrap();
                tokio::time::sleep(SECOND / 100).await;
            }
            tokio::time::sleep(SECOND / 10).await;
            end.write_all(b"56").await.unwrap();
        };
        let (frame, ()) = tokio::join!(turn.read(Until::Silence(SECOND / 20), 100, SECOND), speak);
        assert_eq!(frame.unwrap(), b"1234");
        turn.discard().await.unwrap();
        assert_eq!(turn.read(Until::Any, 100, SECOND).await, Err(SerialError::TimedOut));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_gets_its_turn_and_nothing_that_came_for_another() {
        let (port, device) = port();
        let mut first = port.take(&DeviceId::new("a")).await.unwrap();
        first.write(b"?").await.unwrap();
        let mut end = device.end();
        end.write_all(b"for a").await.unwrap();
        // Nobody has a port for ever: reads end with the turn.
        assert_eq!(first.read(Until::Count, 100, 60 * SECOND).await, Err(SerialError::TimedOut));
        assert!(first.is_over());
        let other = DeviceId::new("b");
        let waits = async {
            tokio::time::sleep(SECOND).await;
            drop(first);
        };
        let (second, ()) = tokio::join!(port.take(&other), waits);
        let mut second = second.unwrap();
        assert_eq!(second.read(Until::Any, 100, SECOND).await, Err(SerialError::TimedOut));
        let third = DeviceId::new("c");
        assert_eq!(port.take(&third).await.err(), Some(SerialError::Busy));
        end.write_all(b"for b").await.unwrap();
        assert_eq!(second.read(Until::Any, 100, SECOND).await.unwrap(), b"for b");
    }

    #[tokio::test(start_paused = true)]
    async fn a_port_that_is_lost_is_opened_again_after_a_rest() {
        let (port, device) = port();
        let device_id = DeviceId::new("a");
        let mut turn = port.take(&device_id).await.unwrap();
        turn.write(b"?").await.unwrap();
        drop(device.end());
        let lost = turn.read(Until::Any, 1, SECOND).await.unwrap_err();
        assert!(matches!(&lost, SerialError::Unavailable(text) if text.contains("does not work any more")), "{lost}");
        let rests = turn.write(b"?").await.unwrap_err();
        assert!(matches!(&rests, SerialError::Unavailable(text) if text.contains("trying again soon")), "{rests}");
        tokio::time::sleep(SECOND).await;
        turn.write(b"?").await.unwrap();
        device.end().write_all(b"!").await.unwrap();
        assert_eq!(turn.read(Until::Any, 1, SECOND).await.unwrap(), b"!");
    }
}
