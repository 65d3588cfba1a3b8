//! The numbers of a gateway, each as a ratio against a baseline of the same run
//! or against its bar: `cargo bench`. Needs mosquitto for two of them.

// A benchmark fails by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod in_process;
mod setup;
mod through_broker;
mod through_kaa;

fn main() {
    // `cargo test --benches` only asks whether it builds and starts.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        println!("{:<62} {:>12} {:>12} {:>8}  bar", "what", "measured", "baseline", "ratio");
        in_process::sandbox_cost().await;
        in_process::memory().await;
        in_process::swaps().await;
        in_process::restart_after_trap().await;
        if through_broker::mosquitto_is_here() {
            through_broker::throughput().await;
            through_broker::command_round_trip().await;
        } else {
            println!("mosquitto is not installed: no throughput and no round trip");
        }
        through_kaa::batching().await;
        through_kaa::software().await;
        through_kaa::endpoints().await;
    });
    // Idle tasks of the broker's clients do not end by themselves.
    std::process::exit(0);
}

fn print(what: &str, measured: String, baseline: &str, ratio: Option<f64>, bar: &str) {
    let ratio = ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
    println!("{what:<62} {measured:>12} {baseline:>12} {ratio:>8}  {bar}");
}
