//! `sandgate run`: a gateway until it is told to stop.

use std::path::Path;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

use super::Outcome;
use crate::config::Config;
use crate::logs::{self, LogTap};
use crate::sandbox::{Compiler, Sandbox};
use crate::supervisor::Supervisor;

/// Runs the gateway of a configuration file, or only checks it.
pub(super) async fn run(path: &Path, check_only: bool, json: bool) -> Result<Outcome> {
    let config = Config::load(path)?;
    if check_only {
        return check(&config).await;
    }
    let tap = LogTap::default();
    logs::start(&tap, json, true);
    let compiler = Compiler::Child(std::env::current_exe().context("finding this program")?);
    let state = config.state.clone();
    let devices = config.devices.len();
    std::fs::create_dir_all(&state).with_context(|| format!("creating state folder {}", state.display()))?;
    let listener = crate::admin::bind(&state).await?;
    let (supervisor, control) = Supervisor::open(path, config, compiler)?;
    tracing::info!("sandgate {} with {devices} devices, state in {}", env!("CARGO_PKG_VERSION"), state.display());
    tokio::spawn(crate::admin::serve(listener, control.clone(), tap));
    let running = tokio::spawn(supervisor.run());

    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut hang_up = signal(SignalKind::hangup()).context("listening for SIGHUP")?;
    tokio::select! {
        interrupt = tokio::signal::ctrl_c() => interrupt.context("listening for Ctrl-C")?,
        _ = terminate.recv() => {}
        _ = hang_up.recv() => {}
    }
    tracing::info!("stopping");
    tokio::select! {
        () = control.stop() => {}
        // Whoever asks twice does not want to wait.
        _ = tokio::signal::ctrl_c() => return Ok(Outcome::Failed),
        _ = terminate.recv() => return Ok(Outcome::Failed),
    }
    running.await.context("stopping")?;
    let _ = std::fs::remove_file(state.join(crate::admin::SOCKET));
    Ok(Outcome::Done)
}

/// Loads every driver and holds each device's configuration against it.
async fn check(config: &Config) -> Result<Outcome> {
    let sandbox = Sandbox::new(Compiler::InProcess, None)?;
    let mut outcome = Outcome::Done;
    for (name, session) in &config.sessions {
        let crate::config::Session::Enapter(session) = session;
        if let Err(error) = crate::config::Communication::load(session, &config.folder) {
            outcome = Outcome::Failed;
            println!("sessions.{name}: {error:#}");
        }
    }
    for (id, device) in &config.devices {
        match sandbox.load(&config.driver_path(device)).await {
            Err(error) => {
                outcome = Outcome::Failed;
                println!("{id}: {error:#}");
            }
            Ok(driver) => {
                let given = serde_json::to_value(&device.configuration).unwrap_or_default();
                let given = given.as_object().cloned().unwrap_or_default();
                match driver.manifest.check_configuration(given) {
                    Ok(_) => println!("{id}: {} is fine", driver.manifest.label()),
                    Err(problem) => {
                        outcome = Outcome::Failed;
                        println!("{id}: devices.{id}.configuration.{problem}");
                    }
                }
            }
        }
    }
    Ok(outcome)
}
