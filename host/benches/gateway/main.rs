//! The numbers of a gateway, each as a ratio against a baseline of the same run
//! or against its bar: `cargo bench -p sandgate`. Needs mosquitto for two of
//! them, and for the process with ten thousand devices; the others are left out
//! where it is missing. `cargo bench -p sandgate -- throughput round_trip` measures
//! only these. Ends with 1 when a bar is missed.

// A benchmark fails by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::sync::atomic::{AtomicBool, Ordering};

mod durable;
mod in_process;
mod languages;
mod scenarios;
mod setup;
mod through_broker;
mod through_kaa;
mod through_process;

// The zoo of the end-to-end tests, and what it stands on.
#[allow(unused)]
#[path = "../../../tests/e2e/harness.rs"]
mod harness;
#[allow(unused)]
#[path = "../../../tests/e2e/modbus.rs"]
mod modbus;
#[allow(unused)]
#[path = "../../../tests/e2e/zoo.rs"]
mod zoo;

fn main() {
    // `cargo test --benches` only asks whether it builds and starts.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        println!("{:<62} {:>12} {:>12} {:>8}  bar", "what", "measured", "baseline", "ratio");
        if wanted("call") {
            in_process::sandbox_cost().await;
        }
        if wanted("memory") {
            in_process::memory().await;
        }
        if wanted("swaps") {
            in_process::swaps().await;
            in_process::roll_back_after_trap().await;
        }
        if wanted("restart") {
            in_process::restart_after_trap().await;
        }
        if !through_broker::mosquitto_is_here() {
            println!("mosquitto is not installed: no throughput and no round trip");
        } else {
            if wanted("throughput") {
                through_broker::throughput().await;
            }
            if wanted("durable") {
                durable::throughput().await;
                durable::drain().await;
            }
            if wanted("round_trip") {
                through_broker::command_round_trip().await;
            }
        }
        if wanted("outbox") {
            durable::outbox().await;
        }
        if through_broker::mosquitto_is_here() && wanted("scale") {
            through_process::scale().await;
        }
        if through_broker::mosquitto_is_here() && wanted("languages") {
            languages::languages().await;
        }
        // An hour: only by its name.
        if std::env::args().any(|argument| argument == "soak") {
            through_process::soak().await;
        }
        // A quarter of an hour: the same.
        if std::env::args().any(|argument| argument == "zoo") {
            zoo::one_by_one().await;
        }
        if wanted("batching") {
            through_kaa::batching().await;
        }
        if wanted("software") {
            through_kaa::software().await;
        }
        if wanted("scenarios") {
            scenarios::scenarios();
        }
        if wanted("endpoints") {
            through_kaa::endpoints().await;
        }
    });
    // Idle tasks of the broker's clients do not end by themselves.
    std::process::exit(i32::from(MISSED.load(Ordering::Relaxed)));
}

/// Whether a measurement was asked for by its name; all are when none was.
fn wanted(name: &str) -> bool {
    let mut names = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).peekable();
    names.peek().is_none() || names.any(|wanted| wanted == name)
}

/// Whether a bar was missed; then the program ends with 1.
static MISSED: AtomicBool = AtomicBool::new(false);

/// Prints a line: what was measured, beside what, the bar and whether it is met.
fn print(what: &str, measured: String, baseline: &str, ratio: Option<f64>, (bar, is_met): (&str, bool)) {
    MISSED.fetch_or(!is_met, Ordering::Relaxed);
    let bar = if is_met { bar.to_owned() } else { format!("{bar}  MISSED") };
    let ratio = ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
    println!("{what:<62} {measured:>12} {baseline:>12} {ratio:>8}  {bar}");
}
