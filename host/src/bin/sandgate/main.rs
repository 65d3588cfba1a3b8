//! The program: parses the command line, runs the command, maps the outcome to
//! exit codes: 0 done, 1 failed, 2 wrong usage (from the parser).

// Texts go to people by `say`, which makes them harmless.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod cli;
mod contract;
mod demo;
mod dev;
mod draw;
mod memory;
mod say;
mod source;
mod standin;
mod toolchain;

use std::process::ExitCode;

use clap::Parser;
use cli::{Cli, Outcome};

fn main() -> ExitCode {
    memory::keep_little();
    run()
}

#[tokio::main]
async fn run() -> ExitCode {
    match Cli::parse().run().await {
        Outcome::Done => ExitCode::SUCCESS,
        Outcome::Failed => ExitCode::FAILURE,
    }
}
