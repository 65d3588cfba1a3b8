//! The program: parses the command line, runs the command, maps the outcome to
//! exit codes: 0 done, 1 failed, 2 wrong usage (from the parser).

use std::process::ExitCode;

use clap::Parser;
use sandgate::cli::{Cli, Outcome};

#[tokio::main]
async fn main() -> ExitCode {
    quiet_broken_pipes();
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

/// Ends without a panic message when nobody reads the output any more, as in
/// `sandgate logs | head`: printing macros know no other way to fail.
fn quiet_broken_pipes() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let text = info.payload().downcast_ref::<String>();
        if text.is_some_and(|text| text.starts_with("failed printing to std")) {
            std::process::exit(1);
        }
        hook(info);
    }));
}
