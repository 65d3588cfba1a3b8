//! The commands that ask a running stand-in, over its HTTP API.

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Subcommand};
use futures::StreamExt;
use reqwest::Method;
use serde_json::{Map, Value as Json, json};

use super::super::super::{Outcome, remote};
use crate::say::say;
use sandgate_standin::enapter::channel::LogLine;
use sandgate_standin::enapter::event::clean;

/// Lines of an error that are shown.
const LINES: usize = 40;

/// What to ask.
#[derive(Debug, Subcommand)]
pub(super) enum Question {
    /// List the devices that the stand-in knows.
    Devices(Standin),
    /// Show the telemetry of a device.
    Samples {
        #[command(flatten)]
        rows: Rows,
    },
    /// Show the log of a device.
    Logs {
        #[command(flatten)]
        rows: Rows,
    },
    /// Send a command to a device and wait for its result.
    SendCommand {
        /// The device's channel id.
        channel: String,
        /// The command's name.
        name: String,
        /// Arguments as key=value; values that are no JSON are texts.
        #[arg(value_parser = remote::argument)]
        arguments: Vec<remote::Argument>,
        /// How many seconds it may take; default is the stand-in's.
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<f64>,
        #[command(flatten)]
        standin: Standin,
    },
}

/// Which running stand-in is meant.
#[derive(Debug, Args)]
pub(super) struct Standin {
    /// The HTTP address of the running stand-in.
    #[arg(long, env = "SANDGATE_ENAPTER_URL", default_value = "http://127.0.0.1:8881")]
    url: String,
}

/// Which rows of which device.
#[derive(Debug, Args)]
pub(super) struct Rows {
    /// The device's channel id.
    channel: String,
    /// Maximum number, newest first.
    #[arg(long, short = 'n', default_value_t = 100)]
    limit: u64,
    /// Go on with new ones.
    #[arg(long, short)]
    follow: bool,
    #[command(flatten)]
    standin: Standin,
}

/// Asks and prints the answer.
pub(super) async fn run(question: Question, json: bool) -> Result<Outcome> {
    match question {
        Question::Devices(standin) => devices(&Client::new(standin)?, json).await,
        Question::Samples { rows } => samples(rows, json).await,
        Question::Logs { rows } => logs(rows, json).await,
        Question::SendCommand { channel, name, arguments, timeout, standin } => {
            let arguments: serde_json::Map<String, Json> = arguments.into_iter().collect();
            let body = json!({"name": name, "arguments": arguments});
            send_command(&Client::new(standin)?, &channel, &body, timeout, json).await
        }
    }
}

struct Client {
    http: reqwest::Client,
    url: String,
}

impl Client {
    fn new(standin: Standin) -> Result<Client> {
        // TLS is not used, but the client wants a provider.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().build().context("making a client")?;
        Ok(Client { http, url: standin.url.trim_end_matches('/').to_owned() })
    }

    /// The answer, or the error that the stand-in gives.
    async fn send(&self, method: Method, path: &str, body: Option<&Json>) -> Result<reqwest::Response> {
        let mut request = self.http.request(method, format!("{}{path}", self.url));
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let response = request.send().await.map_err(|error| match error.is_connect() {
            true => anyhow!("no stand-in listens at {}; start one with `sandgate cloud enapter`", self.url),
            false => anyhow!("asking the stand-in at {}: {}", self.url, error.without_url()),
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let bytes = response.bytes().await.context("reading the answer of the stand-in")?;
        let answer: Json = serde_json::from_slice(&bytes).unwrap_or_default();
        match answer.pointer("/errors/0/message").and_then(Json::as_str) {
            Some(text) => bail!("{text}"),
            None => bail!("{} answered {status}; is it a stand-in for Enapter?", self.url),
        }
    }

    async fn ask(&self, method: Method, path: &str, body: Option<&Json>) -> Result<Json> {
        let response = self.send(method, path, body).await?;
        let bytes = response.bytes().await.context("reading the answer of the stand-in")?;
        serde_json::from_slice(&bytes).context("reading the answer of the stand-in")
    }

    /// Hands each line of the answer over as it comes.
    async fn lines(&self, path: &str, mut take: impl FnMut(Json)) -> Result<()> {
        let mut parts = self.send(Method::GET, path, None).await?.bytes_stream();
        let mut buffer = Vec::new();
        while let Some(part) = parts.next().await {
            buffer.extend_from_slice(&part.map_err(|_| anyhow!("the stand-in has stopped"))?);
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                take(serde_json::from_slice(&line).context("reading the answer of the stand-in")?);
            }
        }
        Ok(())
    }
}

/// A device's path; ids hold no character that would need more care.
fn device_path(prefix: &str, channel: &str, end: &str) -> Result<String> {
    let is_id = |c: char| c.is_ascii_alphanumeric() || "-_.:~".contains(c);
    if channel.is_empty() || !channel.chars().all(is_id) {
        bail!("expected a channel id such as s--meter, found {channel:?}");
    }
    Ok(format!("{prefix}/devices/{channel}/{end}"))
}

async fn devices(client: &Client, json: bool) -> Result<Outcome> {
    let answer = client.ask(Method::GET, "/standin/v1/devices", None).await?;
    if json {
        say!("{answer:#}");
        return Ok(Outcome::Done);
    }
    say!(
        "{:<28} {:<36} {:<8} {:<20} {:>8} {:>8}  ALERTS",
        "CHANNEL",
        "HARDWARE",
        "STATE",
        "BLUEPRINT",
        "SAMPLES",
        "DROPPED"
    );
    for device in answer.get("devices").and_then(Json::as_array).into_iter().flatten() {
        let text = |key: &str| match device.get(key) {
            None | Some(Json::Null) => "-".to_owned(),
            Some(Json::String(text)) => clean(text),
            Some(other) => other.to_string(),
        };
        let alerts = match device.get("alerts").and_then(Json::as_array) {
            None => "unknown".to_owned(),
            Some(alerts) if alerts.is_empty() => "none".to_owned(),
            Some(alerts) => clean(&alerts.iter().filter_map(|a| a.get("id")?.as_str()).collect::<Vec<_>>().join(", ")),
        };
        say!(
            "{:<28} {:<36} {:<8} {:<20} {:>8} {:>8}  {alerts}",
            text("channel_id"),
            text("hardware_id"),
            text("state"),
            text("blueprint"),
            text("samples"),
            text("dropped"),
        );
    }
    Ok(Outcome::Done)
}

async fn samples(rows: Rows, json: bool) -> Result<Outcome> {
    let end = format!("samples?limit={}&follow={}", rows.limit, rows.follow);
    let path = device_path("/standin/v1", &rows.channel, &end)?;
    let print = |sample: Json| {
        if json {
            return say!("{sample}");
        }
        let mut sample = sample.as_object().cloned().unwrap_or_default();
        let seconds = sample.shift_remove("timestamp").and_then(|value| value.as_u64()).unwrap_or_default();
        sample.shift_remove("received");
        say!("{} {}", time(seconds), words(&sample));
    };
    Client::new(rows.standin)?.lines(&path, print).await?;
    Ok(Outcome::Done)
}

async fn logs(rows: Rows, json: bool) -> Result<Outcome> {
    let end = format!("logs?limit={}&follow={}", rows.limit, rows.follow);
    let path = device_path("/standin/v1", &rows.channel, &end)?;
    let print = |line: Json| match serde_json::from_value::<LogLine>(line.clone()) {
        Ok(line) if !json => say!("{} {:<7} {}", time(line.timestamp), line.severity, clean(&line.message)),
        _ => say!("{line}"),
    };
    Client::new(rows.standin)?.lines(&path, print).await?;
    Ok(Outcome::Done)
}

/// Prints progress as it comes, then the result; any end but success is a failure.
async fn send_command(
    client: &Client,
    channel: &str,
    body: &Json,
    timeout: Option<f64>,
    json: bool,
) -> Result<Outcome> {
    let query = timeout.map(|seconds| format!("?timeout={seconds}")).unwrap_or_default();
    let path = device_path("/v3", channel, &format!("command_executions{query}"))?;
    let answer = client.ask(Method::POST, &path, Some(body)).await?;
    let id = answer.get("execution_id").and_then(Json::as_str).context("reading the answer of the stand-in")?;
    let mut last = Json::Null;
    let path = format!("/standin/v1/executions/{id}");
    let follow = client.lines(&path, |line| {
        // Progress has no id; the execution that comes last has one.
        if line.get("id").is_none() && !json {
            let message = line.pointer("/payload/message").and_then(Json::as_str).map(clean);
            say!("log: {}", message.unwrap_or_else(|| payload(&line)));
        }
        last = line;
    });
    follow.await?;
    if json {
        say!("{last:#}");
    }
    let state = last.get("state").and_then(Json::as_str).unwrap_or_default();
    let response = last.get("response").unwrap_or(&Json::Null);
    match state {
        "SUCCESS" if json => Ok(Outcome::Done),
        _ if json => Ok(Outcome::Failed),
        "SUCCESS" => {
            let result = response.get("payload").and_then(Json::as_object).filter(|result| !result.is_empty());
            match result {
                Some(result) => result.iter().for_each(|(name, value)| say!("{name}: {}", clean(&value.to_string()))),
                None => say!("completed"),
            }
            Ok(Outcome::Done)
        }
        "ERROR" => {
            let message = response.pointer("/payload/message").and_then(Json::as_str).map(paragraph);
            bail!("{}", message.unwrap_or_else(|| payload(response)))
        }
        "TIMEOUT" => bail!("timed out: the device did not answer"),
        _ => bail!("the stand-in has stopped"),
    }
}

/// The last lines of a text: a traceback says at its end what went wrong.
fn paragraph(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(clean).collect();
    let first = lines.len().saturating_sub(LINES);
    lines.get(first..).unwrap_or_default().join("\n")
}

fn payload(response: &Json) -> String {
    clean(&response.get("payload").unwrap_or(&Json::Null).to_string())
}

fn words(values: &Map<String, Json>) -> String {
    let word = |(name, value): (&String, &Json)| match value {
        Json::String(text) => format!("{}={}", clean(name), clean(text)),
        other => format!("{}={}", clean(name), clean(&other.to_string())),
    };
    values.iter().map(word).collect::<Vec<_>>().join(" ")
}

fn time(seconds: u64) -> humantime::Rfc3339Timestamp {
    // The year 9999 is the last one that can be written.
    let seconds = seconds.min(253_402_300_799);
    humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds))
}
