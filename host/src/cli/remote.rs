//! The commands that talk to a running gateway through its admin socket.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use futures::StreamExt;
use reqwest::Method;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json, json};

use super::{Gateway, Outcome};
use crate::admin::SOCKET;
use crate::logs::LogLine;
use crate::receipt::Receipt;

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
        request.send().await.map_err(|error| {
            if error.is_connect() {
                anyhow!(
                    "no gateway runs with the state folder {}; name another with --state",
                    folder(&self.socket).display()
                )
            } else {
                anyhow!("asking the gateway: {error}")
            }
        })
    }

    /// The answer, or the error that the gateway gives.
    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: Option<&Json>) -> Result<T> {
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
        serde_json::from_slice(&bytes).context("reading the answer of the gateway")
    }
}

impl Client {
    /// Fails for a device that the gateway does not have.
    async fn expect_device(&self, device: &str) -> Result<()> {
        let status: Json = self.ask(Method::GET, "/v1/status", None).await?;
        let devices = status.get("devices").and_then(Json::as_array).into_iter().flatten();
        let known: Vec<&str> = devices.filter_map(|device| device.get("id")?.as_str()).collect();
        if !known.contains(&device) {
            bail!("no device {device:?}; expected one of: {}", known.join(", "));
        }
        Ok(())
    }
}

fn folder(socket: &Path) -> &Path {
    socket.parent().unwrap_or(socket)
}

fn device_path(device: &str, end: &str) -> Result<String> {
    if !crate::message::is_valid_device_id(device) {
        bail!("{device:?} is no device id");
    }
    Ok(format!("/v1/devices/{device}/{end}"))
}

/// `sandgate devices`
pub(super) async fn devices(gateway: &Gateway, json: bool) -> Result<Outcome> {
    let status: Json = Client::new(gateway)?.ask(Method::GET, "/v1/status", None).await?;
    if json {
        println!("{status:#}");
        return Ok(Outcome::Done);
    }
    let text = |value: &Json, key: &str| match value.get(key) {
        None | Some(Json::Null) => String::new(),
        Some(Json::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    for (name, session) in status.get("sessions").and_then(Json::as_object).into_iter().flatten() {
        let connected = session.get("connected").and_then(Json::as_bool) == Some(true);
        let state = match text(session, "problem") {
            _ if connected => "connected".to_owned(),
            problem if problem.is_empty() => "connecting".to_owned(),
            problem => format!("not connected: {problem}"),
        };
        let (address, waiting) = (text(session, "address"), text(session, "waiting"));
        let lost = [("dropped", "dropped for room or age"), ("rejected", "rejected by the cloud")];
        let lost = lost.map(|(key, words)| match session.get(key).and_then(Json::as_u64) {
            None | Some(0) => String::new(),
            Some(number) => format!(", {number} {words}"),
        });
        let delivered = text(session, "delivered");
        println!("session {name}: {address} {state}, {delivered} delivered, {waiting} waiting{}", lost.concat());
    }
    println!(
        "{:<20} {:<11} {:<30} {:>9} {:>8} {:>8}  ALERTS",
        "DEVICE", "STATE", "DRIVER", "SAMPLES", "REJECTED", "CRASHES"
    );
    for device in status.get("devices").and_then(Json::as_array).into_iter().flatten() {
        let alerts = match device.get("alerts").and_then(Json::as_array) {
            None => "unknown".to_owned(),
            Some(alerts) if alerts.is_empty() => "none".to_owned(),
            Some(alerts) => alerts.iter().filter_map(Json::as_str).collect::<Vec<_>>().join(", "),
        };
        let driver = format!("{} {}", text(device, "driver"), text(device, "version"));
        let get = |key| text(device, key);
        println!(
            "{:<20} {:<11} {driver:<30} {:>9} {:>8} {:>8}  {alerts}",
            get("id"),
            get("phase"),
            get("samples"),
            get("rejected"),
            get("crashes"),
        );
        if !get("problem").is_empty() {
            println!("    {}", get("problem"));
        }
    }
    Ok(Outcome::Done)
}

/// `sandgate swap`
pub(super) async fn swap(gateway: &Gateway, device: &str, file: Option<PathBuf>, json: bool) -> Result<Outcome> {
    // The gateway has its own working folder.
    let file = file.map(std::path::absolute).transpose().context("finding the driver file")?;
    let path = device_path(device, "swap")?;
    let receipt: Receipt = Client::new(gateway)?.ask(Method::POST, &path, Some(&json!({ "file": file }))).await?;
    print_receipt(&receipt, json)
}

/// `sandgate rollback`
pub(super) async fn roll_back(gateway: &Gateway, device: &str, json: bool) -> Result<Outcome> {
    let path = device_path(device, "rollback")?;
    let receipt: Receipt = Client::new(gateway)?.ask(Method::POST, &path, None).await?;
    print_receipt(&receipt, json)
}

fn print_receipt(receipt: &Receipt, json: bool) -> Result<Outcome> {
    if json {
        println!("{}", serde_json::to_string_pretty(receipt)?);
    } else {
        println!("{}: {receipt}", receipt.device);
    }
    let rejected = matches!(receipt.outcome, crate::receipt::Outcome::Rejected(_));
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
        println!("{}", serde_json::to_string_pretty(&receipts)?);
        return Ok(Outcome::Done);
    }
    for receipt in &receipts {
        let time =
            humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + std::time::Duration::from_millis(receipt.time));
        println!("{time} {}: {receipt}", receipt.device);
    }
    Ok(Outcome::Done)
}

/// `sandgate restart`
pub(super) async fn restart(gateway: &Gateway, device: &str, json: bool) -> Result<Outcome> {
    let path = device_path(device, "restart")?;
    let answer: Json = Client::new(gateway)?.ask(Method::POST, &path, None).await?;
    println!("{}", if json { answer.to_string() } else { format!("{device} restarted") });
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
    let response = client.send(Method::GET, &path, None).await?;
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
    let text = String::from_utf8_lossy(line);
    match serde_json::from_slice::<LogLine>(line) {
        Ok(line) if !json => println!("{}", line.display()),
        _ => print!("{text}"),
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
        println!("{answer:#}");
    } else {
        match answer.get("result").and_then(Json::as_object) {
            Some(result) if !result.is_empty() => result.iter().for_each(|(name, value)| println!("{name}: {value}")),
            _ => println!("completed"),
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
