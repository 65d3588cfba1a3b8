#![doc = include_str!("../README.md")]

#[doc(hidden)]
#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::restriction, unsafe_code)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "sandgate:driver/migrating-driver",
        pub_export_macro: true,
        export_macro_name: "export_bindings",
        default_bindings_module: "sandgate_driver::bindings",
        additional_derives: [PartialEq],
    });
}

#[doc(hidden)]
#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::restriction, unsafe_code)]
pub mod firmware_bindings {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "package sandgate:sdk; world firmware { export sandgate:driver/firmware@0.1.3; }",
        world: "sandgate:sdk/firmware",
        pub_export_macro: true,
        export_macro_name: "export_firmware",
        default_bindings_module: "sandgate_driver::firmware_bindings",
    });
}

/// The contract's imports: the gateway's, or in `cargo test` the fake host's.
#[cfg(target_arch = "wasm32")]
use bindings::sandgate::driver as host;
#[cfg(not(target_arch = "wasm32"))]
use fake as host;

mod driver;
mod error;
#[cfg(not(target_arch = "wasm32"))]
#[allow(missing_docs)] // the contract's own
mod fake;
mod firmware;
mod log;
mod poller;
mod registers;
mod sample;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;

pub use bindings::exports::sandgate::driver::device_driver::{CommandError, StartReason};
pub use bindings::sandgate::driver::alerts::Alert;
pub use bindings::sandgate::driver::telemetry::{FlushError, SendError};
pub use bindings::sandgate::driver::timers::TimerId;
pub use bindings::sandgate::driver::types::{Attribute, Rejection, Value};
pub use driver::{Adapter, Command, Configuration, Context, Driver, result};
pub use error::{Describe, Error};
pub use firmware::Firmware;
pub use poller::{Found, Poller, Turn};
pub use registers::{Registers, WordOrder};
pub use sample::{Sample, attribute, flush, publish_properties};

/// HTTP requests to granted hosts.
pub mod http {
    pub use crate::host::http::{Header, HttpError, Request, Response, fetch};

    /// Fetches a URL with GET and no headers.
    pub fn get(url: &str) -> Result<Response, HttpError> {
        fetch(&Request { method: "GET".into(), url: url.into(), headers: Vec::new(), body: Vec::new(), timeout: None })
    }
}

/// CAN buses that the gateway owns.
pub mod can {
    pub use crate::host::can::{CanError, Channel, Frame, Monitor, Overflow, Queue};
}

/// Inputs and outputs of the gateway's machine.
pub mod io {
    pub use crate::host::io::{Analog, Counter, Input, IoError, Output};
}

/// Modbus lines that the gateway owns.
pub mod modbus {
    pub use crate::host::modbus::{ModbusError, Unit};
}

/// TCP to granted addresses.
pub mod net {
    pub use crate::host::net::{NetError, TcpConnection};
}

/// Bytes on serial ports that the gateway owns.
pub mod serial {
    pub use crate::host::serial::{Parity, Port, SerialError, Settings};
}

/// Small persistent key-values of the device.
pub mod storage {
    pub use crate::host::storage::{StorageError, delete, get, keys, set};
}

/// When `on_timer` is called.
pub mod timers {
    use std::time::Duration;

    use crate::host::timers;
    pub use timers::{TimerError, TimerId, cancel};

    /// Calls `on_timer` every so often, first after one interval.
    pub fn every(interval: Duration) -> Result<TimerId, TimerError> {
        timers::every(interval.as_secs_f64() * 1000.0)
    }

    /// Calls `on_timer` once, after the delay.
    pub fn after(delay: Duration) -> Result<TimerId, TimerError> {
        timers::after(delay.as_secs_f64() * 1000.0)
    }
}

/// What is wrong with the device right now.
pub mod alerts {
    use crate::host::alerts;
    pub use alerts::{Alert, set, unknown};

    /// Replaces the set of active alerts by these, without details.
    pub fn set_ids<'a>(ids: impl IntoIterator<Item = &'a str>) -> Result<(), Vec<crate::Rejection>> {
        let active: Vec<Alert> = ids.into_iter().map(|id| Alert { id: id.to_owned(), details: None }).collect();
        set(&active)
    }
}

/// Progress of the command that is being handled.
pub mod command_log {
    pub use crate::host::command_log::write;
}

/// Key-values of the device that the cloud holds.
pub mod metadata {
    pub use crate::host::metadata::{MetadataError, delete, get, keys, merge, replace};
}

/// Files for the cloud.
pub mod blobs {
    pub use crate::host::blobs::{BlobError, upload};
}

/// Files that travel in the driver.
pub mod files {
    pub use crate::host::files::{names, read};
}

/// What is left of the limits of the call that runs.
pub mod budget {
    pub use crate::host::budget::{Remaining, left};
}

/// Lines of the device's log, beside the macros `info!` and its like.
pub mod logging {
    pub use crate::host::logging::{Level, log, log_persistent};
}

#[doc(hidden)]
pub const fn is_driver<D: Driver>() {}

/// Makes a type the driver of this component, and embeds the manifest.
///
/// `export!(Meter)` embeds `manifest.yml` beside `Cargo.toml`;
/// `export!(Meter, manifest = "other.yml")` another file, relative to it.
/// `export!(Meter, firmware)` and `export!(Meter, firmware, manifest = …)` are
/// for drivers that also implement `Firmware`.
#[macro_export]
macro_rules! export {
    ($driver:ty, firmware $(, manifest = $path:literal)?) => {
        $crate::export!($driver $(, manifest = $path)?);
        #[cfg(target_arch = "wasm32")]
        $crate::firmware_bindings::export_firmware!(SandgateDriver with_types_in $crate::firmware_bindings);
    };
    ($driver:ty) => {
        $crate::export!($driver, manifest = "manifest.yml");
    };
    ($driver:ty, manifest = $path:literal) => {
        const _: () = {
            const TEXT: &[u8] = include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/", $path));
            // Other targets, for tests, have other rules for section names.
            #[cfg_attr(target_arch = "wasm32", unsafe(link_section = "sandgate:manifest"))]
            #[used]
            static MANIFEST: [u8; TEXT.len()] = {
                let mut text = [0; TEXT.len()];
                let mut index = 0;
                while index < text.len() {
                    text[index] = TEXT[index];
                    index += 1;
                }
                text
            };
        };
        // On the host a driver is only tested, and its exports' names are none that a linker there takes.
        const _: () = $crate::is_driver::<$driver>();
        #[cfg(target_arch = "wasm32")]
        #[doc(hidden)]
        type SandgateDriver = $crate::Adapter<$driver>;
        #[cfg(target_arch = "wasm32")]
        $crate::bindings::export_bindings!(SandgateDriver with_types_in $crate::bindings);
    };
}
