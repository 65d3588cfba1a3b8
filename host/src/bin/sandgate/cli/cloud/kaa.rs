//! `sandgate cloud kaa`: runs the stand-in and prints a line for each event.

mod ask;

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::broadcast::error::RecvError;

use super::super::Outcome;
use crate::say::{say, tell};
use sandgate_standin::kaa::events::Event;
use sandgate_standin::kaa::metadata::Access;
use sandgate_standin::kaa::{self, Fault, Rules, Settings, Tls, User};

#[derive(Debug, Args)]
pub(in crate::cli) struct Options {
    #[command(subcommand)]
    ask: Option<ask::Ask>,
    /// Where to serve MQTT.
    #[arg(long, default_value = "127.0.0.1:1883", value_name = "ADDRESS")]
    mqtt: SocketAddr,
    /// Where to serve HTTP.
    #[arg(long, default_value = "127.0.0.1:8880", value_name = "ADDRESS")]
    http: SocketAddr,
    /// Let only this MQTT client in, as NAME@TENANT:PASSWORD; repeat for more.
    #[arg(long, value_name = "USER", value_parser = parse_user)]
    user: Vec<User>,
    /// Serve MQTT by TLS, with this certificate chain (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_certificate: Option<PathBuf>,
    /// The private key of the certificate (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
    /// Take messages only from clients with a certificate of this CA (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_client_ca: Option<PathBuf>,
    /// Know only this app version, as VERSION=APPLICATION; repeat for more.
    #[arg(long, value_name = "VERSION=APPLICATION", value_parser = parse_pair)]
    app_version: Vec<(String, String)>,
    /// Refuse tokens that nobody has made.
    #[arg(long)]
    no_provisioning: bool,
    /// A metadata key that devices can only read; repeat for more.
    #[arg(long, value_name = "KEY")]
    read_only: Vec<String>,
    /// A metadata key that devices cannot see; repeat for more.
    #[arg(long, value_name = "KEY")]
    hidden: Vec<String>,
    /// Take samples on `json` only, as without "relaxed resource path validation".
    #[arg(long)]
    strict_path: bool,
    /// How long upload tokens are valid.
    #[arg(long, default_value = "1h", value_name = "TIME", value_parser = humantime::parse_duration)]
    upload_token_lifetime: std::time::Duration,
    /// Misbehave from the start, as in status-late=2s,ext=dcx,times=3; repeat for more.
    #[arg(long, value_name = "FAULT")]
    fault: Vec<Fault>,
}

/// `sandgate cloud kaa`
pub(super) async fn run(options: Options, json: bool) -> Result<Outcome> {
    match options.ask {
        Some(ask) => ask::run(ask, json).await,
        None => serve(options, json).await,
    }
}

async fn serve(options: Options, json: bool) -> Result<Outcome> {
    let access =
        Access { read_only: options.read_only.into_iter().collect(), hidden: options.hidden.into_iter().collect() };
    let rules = Rules {
        applications: options.app_version.into_iter().collect(),
        auto_provision: !options.no_provisioning,
        access,
        relaxed_path: !options.strict_path,
        upload_token_lifetime: options.upload_token_lifetime,
        ..Rules::default()
    };
    let read = |path: &PathBuf| std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()));
    let tls = match (&options.tls_certificate, &options.tls_key) {
        (Some(certificate), Some(key)) => Some(Tls {
            certificate: read(certificate)?,
            key: read(key)?,
            client_ca: options.tls_client_ca.as_ref().map(read).transpose()?,
        }),
        _ => None,
    };
    let (users, faults) = (options.user, options.fault);
    let settings = Settings { mqtt: options.mqtt, http: options.http, users, tls, rules, faults };
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let running = kaa::start(settings).await?;
    let mut events = running.cloud.listen();
    announce(&running, json);
    running.cloud.events().iter().for_each(|event| print(event, json));
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Ok(event) => print(&event, json),
                Err(RecvError::Lagged(count)) => tell!("{count} events were too fast to print"),
                Err(RecvError::Closed) => break,
            },
            result = tokio::signal::ctrl_c() => {
                result.context("listening for ctrl-c")?;
                break;
            }
            _ = terminate.recv() => break,
        }
    }
    running.stop().await;
    Ok(Outcome::Done)
}

fn announce(running: &kaa::Running, json: bool) {
    let (mqtt, http) = (running.mqtt, running.http);
    if json {
        say!("{}", json!({"what": "listening", "mqtt": mqtt.to_string(), "http": http.to_string()}));
    } else {
        say!("Kaa stand-in listens: MQTT on {mqtt}, HTTP on http://{http}; an endpoint's id is its token");
    }
}

fn print(event: &Event, json: bool) {
    if json {
        say!("{}", json!(event));
    } else {
        say!("{event}");
    }
}

fn parse_user(text: &str) -> Result<User> {
    let (name, password) = text.split_once(':').ok_or_else(|| anyhow!("expected NAME@TENANT:PASSWORD"))?;
    Ok(User { name: name.to_owned(), password: password.to_owned() })
}

fn parse_pair(text: &str) -> Result<(String, String)> {
    let (version, application) = text.split_once('=').ok_or_else(|| anyhow!("expected VERSION=APPLICATION"))?;
    Ok((version.to_owned(), application.to_owned()))
}
