//! Updating the software of the device behind a driver.

use crate::driver::{NOT_STARTED, with};
use crate::firmware_bindings::exports::sandgate::driver::firmware;
use crate::{Adapter, Driver, Error};

/// A driver that updates the software of its device: what a cloud offers as
/// software goes there, and not in the place of the driver. An error ends the
/// update and is told to the cloud. `export!(Type, firmware)` exports it.
pub trait Firmware: Driver {
    /// The version that the device runs, as the cloud calls it.
    fn version(&mut self) -> Result<String, Error>;

    /// Begins an update to a version, or refuses it. `specification` is the
    /// JSON text that came with the offer, `size` the number of bytes to come.
    fn begin(&mut self, version: &str, specification: &str, size: u32) -> Result<(), Error>;

    /// Takes the next part, of 1 to 16384 bytes.
    fn write(&mut self, part: &[u8]) -> Result<(), Error>;

    /// Lets the device switch over; `version` tells when it has.
    fn finish(&mut self) -> Result<(), Error>;
}

fn call<D: Firmware, R>(call: impl FnOnce(&mut D) -> Result<R, Error>) -> Result<R, String> {
    with(call).unwrap_or(Err(NOT_STARTED.into())).map_err(Error::into_text)
}

impl<D: Firmware> firmware::Guest for Adapter<D> {
    fn version() -> Result<String, String> {
        call(D::version)
    }

    fn begin(version: String, specification: String, size: u32) -> Result<(), String> {
        call(|driver: &mut D| driver.begin(&version, &specification, size))
    }

    fn write(part: Vec<u8>) -> Result<(), String> {
        call(|driver: &mut D| driver.write(&part))
    }

    fn finish() -> Result<(), String> {
        call(D::finish)
    }
}
