//! The program: parses the command line, runs the command, maps the outcome to
//! exit codes: 0 done, 1 failed, 2 wrong usage (from the parser).

use std::process::ExitCode;

use clap::Parser;
use sandgate::cli::{Cli, Outcome};

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let json = cli.json();
    match cli.run().await {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Failed) => ExitCode::FAILURE,
        Err(error) => {
            if json {
                println!("{}", serde_json::json!({ "error": format!("{error:#}") }));
            } else {
                eprintln!("error: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}
