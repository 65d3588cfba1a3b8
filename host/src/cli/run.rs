//! `sandgate run`: a gateway until it is told to stop.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::Outcome;
use crate::config::{Communication, Config, Session};
use crate::launch::{self, Running};
use crate::logs::{self, Format, LogTap};
use crate::sandbox::{Compiler, Sandbox};

/// Runs the gateway of a configuration file, or only checks it.
pub(super) async fn run(path: &Path, check_only: bool, json: bool) -> Result<Outcome> {
    let config = Config::load(path)?;
    if check_only {
        return check(&config, json).await;
    }
    let tap = LogTap::default();
    let logging = logs::start(&tap, if json { Format::Json } else { Format::Text });
    let gateway = launch::start(path, config, tap)?;
    let stopped = stop_when_told(&gateway);
    let outcome = tokio::select! {
        outcome = stopped => outcome?,
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
    tokio::select! {
        () = gateway.control.stop() => {}
        // Whoever asks twice does not want to wait.
        _ = tokio::signal::ctrl_c() => return Ok(Outcome::Failed),
        _ = terminate.recv() => return Ok(Outcome::Failed),
    }
    Ok(Outcome::Done)
}

/// Loads every driver and holds each device's configuration against it.
async fn check(config: &Config, json: bool) -> Result<Outcome> {
    let sandbox = Sandbox::new(Compiler::InProcess, None)?;
    let mut findings: Vec<(String, Result<String, String>)> = Vec::new();
    for (name, session) in &config.sessions {
        let result = match session {
            Session::Enapter(session) => Communication::load(session, &config.folder).map(drop),
            Session::Kaa(session) => {
                session.broker(&config.folder).and_then(|_| session.gateway_token(&config.folder)).map(drop)
            }
        };
        let result = result.map(|()| "is fine".to_owned()).map_err(|error| format!("{error:#}"));
        findings.push((format!("sessions.{name}"), result));
    }
    for (id, device) in &config.devices {
        let result = match sandbox.load(&config.driver_path(device)).await {
            Err(error) => Err(format!("{error:#}")),
            Ok(driver) => {
                let given = serde_json::to_value(&device.configuration).unwrap_or_default();
                let checked = driver.manifest.check_configuration(given.as_object().cloned().unwrap_or_default());
                let problem = |problem| format!("devices.{id}.configuration.{problem}");
                let checked = checked
                    .map_err(problem)
                    .and_then(|_| device.check(&driver.manifest).map_err(|problem| format!("devices.{id}: {problem}")));
                checked.map(|()| format!("{} is fine", driver.manifest.label()))
            }
        };
        findings.push((id.clone(), result));
    }
    for (place, result) in &findings {
        match result {
            _ if json => {}
            Ok(text) | Err(text) => println!("{place}: {text}"),
        }
    }
    if json {
        let finding = |(place, result): &(String, Result<String, String>)| match result {
            Ok(text) => json!({"place": place, "ok": true, "text": text}),
            Err(text) => json!({"place": place, "ok": false, "text": text}),
        };
        println!("{}", serde_json::Value::from(findings.iter().map(finding).collect::<Vec<_>>()));
    }
    Ok(if findings.iter().all(|(_, result)| result.is_ok()) { Outcome::Done } else { Outcome::Failed })
}
