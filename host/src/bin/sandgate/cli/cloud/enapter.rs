//! `sandgate cloud enapter`: runs the stand-in and prints what happens.

mod ask;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::super::Outcome;
use crate::say::say;
use sandgate_standin::enapter::blueprints::{Source, Sources};
use sandgate_standin::enapter::{self, Running, Settings};

/// The hardware id in the printed configuration when any will do.
const ANY_HARDWARE: &str = "SLOCAL";

/// What to run or to ask.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(in crate::cli) struct Options {
    #[command(subcommand)]
    question: Option<ask::Question>,
    /// Where gateways connect.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:1883")]
    mqtt: SocketAddr,
    /// Where the HTTP API listens.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8881")]
    http: SocketAddr,
    /// The only hardware id that may publish; default is any.
    #[arg(long, value_name = "ID")]
    hardware_id: Option<String>,
    /// The blueprint of the gateway itself; its children's are read from beside it.
    #[arg(long, value_name = "FILE")]
    parent: Option<PathBuf>,
    /// Blueprints or drivers of children: [TYPE=]FILE, or a folder.
    #[arg(long, value_name = "[TYPE=]FILE", num_args = 1..)]
    blueprint: Vec<Source>,
    /// How long a command may take.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time)]
    command_timeout: Duration,
}

/// Runs the stand-in until it is told to stop, or asks a running one.
pub(super) async fn run(options: Options, json: bool) -> Result<Outcome> {
    if let Some(question) = options.question {
        return ask::run(question, json).await;
    }
    let settings = Settings {
        mqtt: options.mqtt,
        http: options.http,
        hardware_id: options.hardware_id.clone(),
        blueprints: Sources { parent: options.parent, children: options.blueprint },
        command_timeout: options.command_timeout,
    };
    let running = enapter::start(settings).await?;
    let hardware = options.hardware_id.as_deref().unwrap_or(ANY_HARDWARE);
    if json {
        let address = format!("http://{}", running.http);
        say!("{}", json!({"mqtt": running.mqtt, "http": address, "hardware_id": hardware}));
    } else {
        introduce(&running, hardware);
    }
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    tokio::select! {
        () = print(&running, json) => {}
        interrupt = tokio::signal::ctrl_c() => interrupt.context("listening for Ctrl-C")?,
        _ = terminate.recv() => {}
    }
    Ok(Outcome::Done)
}

fn introduce(running: &Running, hardware: &str) {
    say!("MQTT {}, HTTP http://{}", running.mqtt, running.http);
    say!("{}", running.knows);
    say!("what the cloud would drop is told once for a connection, and counted");
    let ip = running.mqtt.ip();
    if !ip.is_loopback() {
        say!("whoever reaches this machine can connect: nothing here asks for a password");
    }
    // An address that means "all of this machine's" is none to connect to.
    let host = if ip.is_unspecified() { "127.0.0.1".to_owned() } else { ip.to_string() };
    say!("a gateway connects with these lines in its configuration:\n");
    say!("[sessions.local.enapter]\nhost = {host:?}\nport = {}\nhardware_id = {hardware:?}\n", running.mqtt.port());
}

/// Prints events for ever.
async fn print(running: &Running, json: bool) {
    let mut next = 0;
    loop {
        let (events, missed, after) = running.events(next).await;
        next = after;
        if missed > 0 && !json {
            say!("({missed} events were too many to print)");
        }
        for event in events {
            match json {
                // Texts and numbers always serialize.
                true => say!("{}", serde_json::to_string(&event).unwrap_or_default()),
                false => say!("{event}"),
            }
        }
    }
}

/// A time such as "30s", never zero.
fn time(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if !time.is_zero() => Ok(time),
        _ => Err("expected a time above zero such as \"30s\" or \"500ms\"".into()),
    }
}
