//! End-to-end tests: the real program with real guests, brokers and devices.
//!
//! Nothing sleeps to wait for something; `harness` waits for the thing itself
//! and gives up after three minutes with all that was seen.

// A test fails by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod harness;

mod again;
mod blueprints;
mod broken;
mod brokers;
mod commands;
mod corpus;
mod dev;
mod durable;
mod fault_proxy;
mod faults;
mod field;
mod gate;
mod hostile;
mod kaa;
mod languages;
mod maps;
mod modbus;
mod once;
mod order;
mod paused;
mod preflight;
mod random_faults;
mod reload;
mod scenarios;
mod serial;
mod standin_enapter;
mod standin_kaa;
mod state;
mod swap;
mod tapes;
mod tidy;
mod tls;
mod toolchain;
mod wire;
mod world;
mod zoo;
