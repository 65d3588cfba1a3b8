#![doc = include_str!("../ARCHITECTURE.md")]
// Texts go to people by `cli::say` and `logs`, which make them harmless.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod clock;
pub mod files;
pub mod ledger;
pub mod scribe;
pub mod secrets;
pub mod shortage;
pub mod sockets;
pub mod state;
pub mod text;

pub mod config;
pub mod manifest;
pub mod message;
pub mod network;

pub mod cloud;
pub mod download;
pub mod outbox;
pub mod router;
pub mod session;
pub mod web;

pub mod bus;
pub mod sandbox;
pub mod storage;

pub mod device;
pub mod journal;
pub mod receipt;
pub mod registry;

pub mod gateway;
pub mod status;
pub mod supervisor;
pub mod watcher;

pub mod admin;
pub mod cli;
pub mod demo;
pub mod launch;
pub mod logs;
pub mod standin;
