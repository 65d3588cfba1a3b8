//! What an input or an output of the machine can be asked for.

use std::io;
use std::time::Duration;

/// What is behind a pin: the machine's, or a simulated one.
pub trait Pin: Send + Sync {
    /// Whether it is on.
    fn get(&self) -> io::Result<bool> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Switches an output.
    fn set(&self, on: bool) -> io::Result<()> {
        let _ = on;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// How often an input went on.
    fn count(&self) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Lets pulses be counted from here.
    fn set_count(&self, count: u64) -> io::Result<()> {
        let _ = count;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// How long a change has to last.
    fn set_debounce(&self, time: Duration) -> io::Result<()> {
        let _ = time;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// In V, A or degrees Celsius.
    fn read(&self) -> io::Result<f64> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
