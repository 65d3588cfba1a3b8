//! `sandgate run`: a gateway until it is told to stop.

use std::path::Path;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

use super::{Outcome, preflight, service};
use sandgate::config::Config;
use sandgate::launch::{self, Running};
use sandgate::logs::{self, Format, LogTap};

/// Runs the gateway of a configuration file, or only checks it.
pub(super) async fn run(path: &Path, check_only: bool, json: bool) -> Result<Outcome> {
    let file = path.to_owned();
    // On a worker, so that the memory that parsing a large file needs is used again.
    let config = tokio::spawn(async move { Config::load(&file) }).await??;
    if check_only {
        return preflight::run(&config, json).await;
    }
    let tap = LogTap::default();
    let logging = logs::start(&tap, if json { Format::Json } else { Format::Text });
    let gateway = launch::start(path, config, tap)?;
    let stopped = stop_when_told(&gateway);
    let outcome = tokio::select! {
        // One that has stopped no longer answers either.
        biased;
        outcome = stopped => outcome?,
        () = service::tell_life(&gateway) => Outcome::Failed,
        () = logging.tell_drops() => Outcome::Failed,
    };
    if outcome == Outcome::Done {
        gateway.ended().await?;
    }
    Ok(outcome)
}

/// Stops a gateway when the system says so; failed when it says so twice.
async fn stop_when_told(gateway: &Running) -> Result<Outcome> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut hang_up = signal(SignalKind::hangup()).context("listening for SIGHUP")?;
    tokio::select! {
        interrupt = tokio::signal::ctrl_c() => interrupt.context("listening for Ctrl-C")?,
        _ = terminate.recv() => {}
        _ = hang_up.recv() => {}
    }
    tracing::info!("stopping");
    service::tell_stop();
    tokio::select! {
        () = gateway.control.stop() => {}
        // Whoever asks twice does not want to wait.
        _ = tokio::signal::ctrl_c() => return Ok(Outcome::Failed),
        _ = terminate.recv() => return Ok(Outcome::Failed),
    }
    Ok(Outcome::Done)
}
