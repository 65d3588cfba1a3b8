//! The program: parses the command line, runs the command, maps the outcome to
//! exit codes: 0 done, 1 failed, 2 wrong usage (from the parser).

use std::process::ExitCode;

use clap::Parser;
use sandgate::cli::{Cli, Outcome};

#[tokio::main]
async fn main() -> ExitCode {
    match Cli::parse().run().await {
        Outcome::Done => ExitCode::SUCCESS,
        Outcome::Failed => ExitCode::FAILURE,
    }
}
