//! Lines whose units are simulated.

use std::io;
use std::sync::Arc;

use futures::future::BoxFuture;
use tokio_modbus::client::{Client, Context};
use tokio_modbus::slave::{Slave, SlaveContext};
use tokio_modbus::{Request, Response};

use super::{Pin, Wire};
use crate::network::{Field, Stream};

/// Simulated devices in the place of a gateway's whole field.
pub trait Simulation: Field {
    /// The units on a line.
    fn line(&self, name: &str) -> Arc<dyn Units>;

    /// The device on a serial port.
    fn serial(&self, name: &str) -> BoxFuture<'static, io::Result<Box<dyn Stream>>>;

    /// A CAN bus.
    fn can(&self, name: &str) -> io::Result<Wire>;

    /// What is behind an input or an output.
    fn pin(&self, name: &str) -> Box<dyn Pin>;
}

/// The units on a line.
#[wasmtime_wasi::async_trait]
pub trait Units: Send + Sync {
    /// Whether the line can be connected now.
    fn connect(&self) -> io::Result<()> {
        Ok(())
    }

    /// Carries out a request to a unit. That nobody answers is a future that never ends.
    async fn answer(&self, unit: u8, request: Request<'_>) -> tokio_modbus::Result<Response>;
}

/// A connection to the units.
pub(super) fn connect(units: &Arc<dyn Units>) -> io::Result<Context> {
    units.connect()?;
    let line = Line { units: Arc::clone(units), unit: 0 };
    Ok(Context::from(Box::new(line) as Box<dyn Client>))
}

struct Line {
    units: Arc<dyn Units>,
    unit: u8,
}

impl SlaveContext for Line {
    fn set_slave(&mut self, slave: Slave) {
        self.unit = slave.0;
    }
}

#[wasmtime_wasi::async_trait]
impl Client for Line {
    async fn call(&mut self, request: Request<'_>) -> tokio_modbus::Result<Response> {
        self.units.answer(self.unit, request).await
    }

    async fn disconnect(&mut self) -> io::Result<()> {
        Ok(())
    }
}
