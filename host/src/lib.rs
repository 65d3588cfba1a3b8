#![doc = include_str!("../ARCHITECTURE.md")]
// Texts go to people by the program's `say` and by `logs`, which make them harmless.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub use sandgate_manifest as manifest;
pub use sandgate_manifest::{text, units};

// The order is that of floors: a module uses those above it in this list only;
// `tests/e2e/tidy.rs` checks it.

pub mod capture;
pub mod clock;
pub mod files;
pub mod scribe;
pub mod secrets;
pub mod shortage;
pub mod sockets;
pub mod worker;

pub mod ledger;
pub mod message;
pub mod state;

pub mod network;
pub mod statistics;

pub mod outbox;

pub mod config;

pub mod cloud;
pub mod question;
pub mod web;

pub mod download;
pub mod upload;

pub mod router;

pub mod bus;
pub mod storage;

pub mod can;
pub mod io;
pub mod serial;

pub mod lines;

pub mod tape;

pub mod blueprint;

pub mod sandbox;

pub mod journal;
pub mod receipt;
pub mod registry;

pub mod device;

pub mod gate;

pub mod session;

pub mod status;

pub mod gateway;
pub mod watcher;

pub mod supervisor;

pub mod rollout;

pub mod scenario;

pub mod logs;

pub mod admin;

pub mod launch;
