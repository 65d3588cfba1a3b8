//! The commands that talk to a running gateway through its admin socket.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use futures::StreamExt;
use reqwest::Method;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json, json};

use super::{Gateway, Outcome};
use crate::say::say;
use sandgate::admin::SOCKET;
use sandgate::device::Recording;
use sandgate::logs::LogLine;
use sandgate::receipt::Receipt;
use sandgate::rollout::{Progress, RolloutPhase, Step};
use sandgate::text;

/// How far two looks for rates are apart.
const RATES: Duration = Duration::from_secs(1);

/// How often it is looked how far a rollout is.
const LOOK: Duration = Duration::from_millis(500);

/// How long a gateway that runs may take to tell its status.
const PATIENCE: Duration = Duration::from_secs(5);

struct Client {
    http: reqwest::Client,
    socket: PathBuf,
}

impl Client {
    fn new(gateway: &Gateway) -> Result<Client> {
        let socket = gateway.state.join(SOCKET);
        // No TLS on the socket, but the client wants a provider.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http =
            reqwest::Client::builder().unix_socket(socket.clone()).no_proxy().build().context("making a client")?;
        Ok(Client { http, socket })
    }

    async fn send(&self, method: Method, path: &str, body: Option<&Json>) -> Result<reqwest::Response> {
        let mut request = self.http.request(method, format!("http://gateway{path}"));
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        request.send().await.map_err(|error| self.explain(&error))
    }

    /// Why nothing was answered, and what to do.
    fn explain(&self, error: &reqwest::Error) -> anyhow::Error {
        let folder = self.socket.parent().unwrap_or(&self.socket).display();
        let mut cause: Option<&dyn std::error::Error> = Some(error);
        let mut kind = None;
        while let Some(error) = cause {
            kind = kind.or(error.downcast_ref::<std::io::Error>().map(std::io::Error::kind));
            cause = error.source();
        }
        if kind == Some(ErrorKind::PermissionDenied) {
            let owner = self.socket.parent().and_then(|folder| folder.metadata().ok());
            let owner = owner.map_or(String::new(), |folder| format!(", the one with the id {}", folder.uid()));
            return anyhow!("the state folder {folder} is another user's; run this as the gateway's user{owner}");
        }
        if error.is_connect() {
            return anyhow!("no gateway runs with the state folder {folder}; name another with --state");
        }
        anyhow!("asking the gateway: {error}")
    }

    /// The answer, or the error that the gateway gives.
    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: Option<&Json>) -> Result<T> {
        let bytes = self.bytes(method, path, body).await?;
        serde_json::from_slice(&bytes).context("reading the answer of the gateway")
    }

    /// The same, as it is.
    async fn bytes(&self, method: Method, path: &str, body: Option<&Json>) -> Result<Vec<u8>> {
        self.unless_silent(async {
            let response = self.send(method, path, body).await?;
            let good = response.status().is_success();
            let bytes = response.bytes().await.context("reading the answer of the gateway")?;
            if !good {
                let error: Json = serde_json::from_slice(&bytes).unwrap_or_default();
                match error.get("error").and_then(Json::as_str) {
                    Some(text) => bail!("{text}"),
                    None => bail!("the gateway answered: {}", String::from_utf8_lossy(&bytes)),
                }
            }
            Ok(bytes.into())
        })
        .await
    }

    /// Waits for an answer as long as the gateway gives others: a swap may take
    /// minutes, but a gateway that hangs never answers.
    async fn unless_silent<T>(&self, answer: impl Future<Output = Result<T>>) -> Result<T> {
        let silence = async {
            loop {
                tokio::time::sleep(PATIENCE).await;
                if tokio::time::timeout(PATIENCE, self.send(Method::GET, "/v1/status", None)).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            answer = answer => answer,
            () = silence => bail!(
                "the gateway has not answered for {} s; look at its log, and whether its process is stopped",
                2 * PATIENCE.as_secs()
            ),
        }
    }
}

impl Client {
    /// Fails for a device that the gateway does not have.
    async fn expect_device(&self, device: &str) -> Result<()> {
        let status: Json = self.ask(Method::GET, "/v1/status", None).await?;
        let devices = status.get("devices").and_then(Json::as_array).into_iter().flatten();
        let known: Vec<&str> = devices.filter_map(|device| device.get("id")?.as_str()).collect();
        if !known.contains(&device) {
            bail!("no device {device:?}; {}", text::instead(device, known));
        }
        Ok(())
    }
}

fn device_path(device: &str, end: &str) -> Result<String> {
    if !sandgate::message::is_valid_device_id(device) {
        bail!("{device:?} is no device id");
    }
    Ok(format!("/v1/devices/{device}/{end}"))
}

/// `sandgate devices`
pub(super) async fn devices(gateway: &Gateway, json: bool) -> Result<Outcome> {
    let status: Json = Client::new(gateway)?.ask(Method::GET, "/v1/status", None).await?;
    if json {
        say!("{status:#}");
    } else {
        // Of another version it may have more or less.
        super::devices::print(&serde_json::from_value(status).context("reading the status of the gateway")?);
    }
    Ok(Outcome::Done)
}

/// `sandgate outbox`
pub(super) async fn outbox(gateway: &Gateway, json: bool) -> Result<Outcome> {
    let client = Client::new(gateway)?;
    let status: Json = client.ask(Method::GET, "/v1/status", None).await?;
    if json {
        let sessions = status.get("sessions").cloned().unwrap_or_default();
        say!("{sessions:#}");
        return Ok(Outcome::Done);
    }
    // Rates need two looks.
    let begin = tokio::time::Instant::now();
    tokio::time::sleep(RATES).await;
    let later: Json = client.ask(Method::GET, "/v1/status", None).await?;
    let parse = |status| serde_json::from_value(status).context("reading the status of the gateway");
    super::outbox::print(&parse(status)?, &parse(later)?, begin.elapsed());
    Ok(Outcome::Done)
}

/// `sandgate swap`
pub(super) async fn swap(
    gateway: &Gateway,
    device: &str,
    (file, accept_diff): (Option<PathBuf>, bool),
    json: bool,
) -> Result<Outcome> {
    // The gateway has its own working folder.
    let file = file.map(std::path::absolute).transpose().context("finding the driver file")?;
    let path = device_path(device, "swap")?;
    let order = json!({ "file": file, "accept_diff": accept_diff });
    let receipt: Receipt = Client::new(gateway)?.ask(Method::POST, &path, Some(&order)).await?;
    print_receipt(&receipt, json)
}

/// `sandgate swap --driver`
pub(super) async fn roll_out(
    gateway: &Gateway,
    (driver, file): (&str, Option<PathBuf>),
    steps: &[String],
    watch: &str,
    json: bool,
) -> Result<Outcome> {
    for step in steps {
        step.parse::<Step>().map_err(|problem| anyhow!("--steps: {problem}"))?;
    }
    // The gateway has its own working folder.
    let file = file.map(std::path::absolute).transpose().context("finding the driver file")?;
    let order = json!({ "driver": driver, "file": file, "steps": steps, "watch": watch });
    let client = Client::new(gateway)?;
    let mut progress: Progress = client.ask(Method::POST, "/v1/rollout", Some(&order)).await?;
    let mut shown = String::new();
    loop {
        let line = describe(&progress);
        if !json && line != shown {
            say!("{}", text::visible(&line));
            shown = line;
        }
        if progress.is_over() {
            break;
        }
        tokio::time::sleep(LOOK).await;
        let now: Option<Progress> = client.ask(Method::GET, "/v1/rollout", None).await?;
        progress = now.context("the gateway was started anew, and does not go on with it")?;
    }
    if json {
        say!("{}", serde_json::to_string_pretty(&progress)?);
    }
    Ok(if progress.phase == RolloutPhase::Done { Outcome::Done } else { Outcome::Failed })
}

/// How far a rollout is, in a line.
fn describe(progress: &Progress) -> String {
    let Progress { driver, devices, swapped, step, steps, phase, reason } = progress;
    let reason = reason.as_deref().unwrap_or_default();
    match phase {
        RolloutPhase::Swapping => format!("step {step} of {steps}: {swapped} of {devices} devices swapped"),
        RolloutPhase::Watching => format!("step {step} of {steps}: watching {swapped} of {devices} devices"),
        RolloutPhase::GoingBack => format!("going back: {reason}"),
        RolloutPhase::Done => format!("done: {swapped} of {devices} devices run the new {driver}"),
        RolloutPhase::Failed if *swapped == 0 => format!("failed, and nothing was swapped: {reason}"),
        RolloutPhase::Failed => format!("failed, and went back: {reason}"),
    }
}

/// `sandgate rollback`
pub(super) async fn roll_back(gateway: &Gateway, device: &str, to: Option<String>, json: bool) -> Result<Outcome> {
    let path = device_path(device, "rollback")?;
    let receipt: Receipt = Client::new(gateway)?.ask(Method::POST, &path, Some(&json!({ "to": to }))).await?;
    print_receipt(&receipt, json)
}

fn print_receipt(receipt: &Receipt, json: bool) -> Result<Outcome> {
    if json {
        say!("{}", serde_json::to_string_pretty(receipt)?);
    } else {
        say!("{}", text::visible(&format!("{}: {receipt}", receipt.device)));
    }
    let rejected = matches!(receipt.outcome, sandgate::receipt::Outcome::Rejected(_));
    Ok(if rejected { Outcome::Failed } else { Outcome::Done })
}

/// `sandgate swaps`
pub(super) async fn swaps(gateway: &Gateway, device: Option<&str>, json: bool) -> Result<Outcome> {
    let client = Client::new(gateway)?;
    let mut receipts: Vec<Receipt> = client.ask(Method::GET, "/v1/swaps", None).await?;
    if let Some(device) = device
        && !receipts.iter().any(|receipt| receipt.device == device)
    {
        client.expect_device(device).await?;
    }
    receipts.retain(|receipt| device.is_none_or(|device| device == receipt.device));
    if json {
        say!("{}", serde_json::to_string_pretty(&receipts)?);
        return Ok(Outcome::Done);
    }
    for receipt in &receipts {
        let time = humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + Duration::from_millis(receipt.time));
        say!("{}", text::visible(&format!("{time} {}: {receipt}", receipt.device)));
    }
    Ok(Outcome::Done)
}

/// `sandgate tape`, the bytes of its file.
pub(super) async fn tape(gateway: &Gateway, device: &str) -> Result<Vec<u8>> {
    Client::new(gateway)?.bytes(Method::GET, &device_path(device, "tape")?, None).await
}

/// The begin of `sandgate record`.
pub(super) async fn record(gateway: &Gateway, device: &str, recording: Recording) -> Result<()> {
    let (path, body) = (device_path(device, "record")?, serde_json::to_value(recording)?);
    let _: Json = Client::new(gateway)?.ask(Method::POST, &path, Some(&body)).await?;
    Ok(())
}

/// `sandgate restart`
pub(super) async fn restart(gateway: &Gateway, device: &str, json: bool) -> Result<Outcome> {
    let path = device_path(device, "restart")?;
    let answer: Json = Client::new(gateway)?.ask(Method::POST, &path, None).await?;
    say!("{}", if json { answer.to_string() } else { format!("{device} restarted") });
    Ok(Outcome::Done)
}

/// `sandgate logs`
pub(super) async fn logs(gateway: &Gateway, device: Option<String>, follow: bool, json: bool) -> Result<Outcome> {
    let client = Client::new(gateway)?;
    let device = match device {
        Some(device) => {
            client.expect_device(&device).await?;
            format!("&device={device}")
        }
        None => String::new(),
    };
    let path = format!("/v1/logs?follow={follow}{device}");
    let response = client.unless_silent(client.send(Method::GET, &path, None)).await?;
    let mut parts = response.bytes_stream();
    let mut buffer = Vec::new();
    while let Some(part) = parts.next().await {
        buffer.extend_from_slice(&part.map_err(|_| anyhow!("the gateway has stopped"))?);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            print_line(&line, json);
        }
    }
    Ok(Outcome::Done)
}

fn print_line(line: &[u8], json: bool) {
    match serde_json::from_slice::<LogLine>(line) {
        Ok(line) if !json => say!("{}", text::visible(&line.display().to_string())),
        _ => say!("{}", String::from_utf8_lossy(line).trim_end()),
    }
}

/// `sandgate command`
pub(super) async fn command(
    gateway: &Gateway,
    device: &str,
    name: &str,
    arguments: Vec<Argument>,
    json: bool,
) -> Result<Outcome> {
    let arguments: Map<String, Json> = arguments.into_iter().collect();
    if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        bail!("{name:?} is no command name");
    }
    let path = device_path(device, &format!("commands/{name}"))?;
    let answer: Json = Client::new(gateway)?.ask(Method::POST, &path, Some(&Json::Object(arguments))).await?;
    if json {
        say!("{answer:#}");
    } else {
        match answer.get("result").and_then(Json::as_object) {
            Some(result) if !result.is_empty() => {
                result.iter().for_each(|(name, value)| say!("{}: {value}", text::visible(name)));
            }
            _ => say!("completed"),
        }
    }
    Ok(Outcome::Done)
}

/// The name and the value of an argument.
pub(super) type Argument = (String, Json);

/// Reads `key=value`; a value that is no JSON is a text.
pub(super) fn argument(text: &str) -> Result<Argument, String> {
    let (key, value) = text.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or("expected key=value")?;
    Ok((key.to_owned(), serde_json::from_str(value).unwrap_or_else(|_| Json::from(value))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_json_where_they_can_be_and_texts_elsewhere() {
        let words = ["a=1", "b=true", "c=hello", "d=\"1\"", "e={\"x\":[1]}", "f=x=y"];
        let parsed: Map<String, Json> = words.into_iter().map(|word| argument(word).unwrap()).collect();
        let parsed = Json::Object(parsed);
        assert_eq!(parsed, json!({"a": 1, "b": true, "c": "hello", "d": "1", "e": {"x": [1]}, "f": "x=y"}));
        assert!(argument("a").is_err() && argument("=1").is_err());
    }
}
