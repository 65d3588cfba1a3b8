//! The commands that talk to a running stand-in of Kaa over HTTP.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Subcommand, ValueEnum};
use futures::StreamExt;
use reqwest::{Method, StatusCode, Url};
use serde_json::{Value as Json, json};

use super::super::super::Outcome;
use crate::say::say;
use sandgate_standin::kaa::faults;

#[derive(Debug, Subcommand)]
pub(super) enum Ask {
    /// Send a command to an endpoint.
    SendCommand {
        /// The endpoint's token.
        token: String,
        /// The command type.
        command_type: String,
        /// The payload, as JSON.
        payload: Option<String>,
        /// Seconds to wait for the result, at most 60; fails if none comes.
        #[arg(long = "await", value_name = "SECONDS")]
        seconds: Option<f64>,
        /// How long the command waits for the endpoint, in milliseconds; 0 pushes it once.
        #[arg(long, value_name = "MS")]
        ttl: Option<u64>,
        #[command(flatten)]
        site: Site,
    },
    /// Assign a configuration to an endpoint.
    PutConfig {
        /// The endpoint's token.
        token: String,
        /// The configuration as JSON, or @FILE.
        config: String,
        /// Its name; without it the default one.
        #[arg(long)]
        name: Option<String>,
        /// For this app version; default is the one that the endpoint spoke with last.
        #[arg(long, value_name = "VERSION")]
        app_version: Option<String>,
        #[command(flatten)]
        site: Site,
    },
    /// Offer software to an endpoint; a file is served by the stand-in.
    OfferSoftware {
        /// The endpoint's token.
        token: String,
        /// The new version.
        version: String,
        /// The file; its link, checksum (SHA-256), sha256 and size go into the offer.
        #[arg(required_unless_present = "link", conflicts_with = "link")]
        file: Option<PathBuf>,
        /// Where the software is, if it is elsewhere.
        #[arg(long, value_name = "URL")]
        link: Option<String>,
        /// Only for endpoints that run this version; repeat for more.
        #[arg(long, value_name = "VERSION", num_args = 1..)]
        from: Vec<String>,
        #[command(flatten)]
        site: Site,
    },
    /// Show the samples of an endpoint.
    Samples {
        /// The endpoint's token.
        token: String,
        /// Go on with new ones.
        #[arg(long, short)]
        follow: bool,
        #[command(flatten)]
        site: Site,
    },
    /// List the endpoints.
    Endpoints {
        #[command(flatten)]
        site: Site,
    },
    /// Show the metadata of an endpoint.
    Metadata {
        /// The endpoint's token.
        token: String,
        #[command(flatten)]
        site: Site,
    },
    /// Change the state of a token; with an app version an unknown one is made.
    Token {
        /// The token.
        token: String,
        /// The new state; a revoked token stays revoked.
        state: TokenState,
        /// The app version of a new endpoint.
        #[arg(long, value_name = "VERSION")]
        app_version: Option<String>,
        #[command(flatten)]
        site: Site,
    },
    /// Make the stand-in misbehave; without arguments show how it does.
    #[command(after_help = faults_help())]
    Fault {
        #[arg(help = "The faults, each as NAME[=VALUE][,ext=EXTENSION][,token=TOKEN][,times=N]")]
        faults: Vec<String>,
        /// Clear the faults of this name, or all, before setting new ones.
        #[arg(long, value_name = "NAME", num_args = 0..=1, require_equals = true, default_missing_value = "")]
        clear: Option<String>,
        #[command(flatten)]
        site: Site,
    },
}

/// The faults, each with what it does.
fn faults_help() -> String {
    let lines = faults::ALL.iter().map(|(written, does)| format!("  {written:<27} {does}\n"));
    format!("Faults:\n{}", lines.collect::<String>())
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum TokenState {
    /// Accepted.
    Active,
    /// Refused until it is active again.
    Suspended,
    /// Refused for ever.
    Revoked,
}

/// Which running stand-in is meant.
#[derive(Debug, Args)]
pub(super) struct Site {
    /// Where the stand-in serves HTTP.
    #[arg(long, default_value = "http://127.0.0.1:8880")]
    url: Url,
}

/// Carries out one of them.
pub(super) async fn run(ask: Ask, json: bool) -> Result<Outcome> {
    match ask {
        Ask::SendCommand { token, command_type, payload, seconds, ttl, site } => {
            send_command(&site, &[&token, &command_type], payload, (seconds, ttl), json).await
        }
        Ask::PutConfig { token, config, name, app_version, site } => {
            put_config(&site, &token, &config, (name, app_version), json).await
        }
        Ask::OfferSoftware { token, version, file, link, from, site } => {
            offer_software(&site, [&token, &version], (file.as_deref(), link), from, json).await
        }
        Ask::Samples { token, follow, site } => samples(&site, &token, follow, json).await,
        Ask::Endpoints { site } => endpoints(&site, json).await,
        Ask::Metadata { token, site } => {
            let path = ["epmx", "api", "v1", "endpoints", &token, "metadata"];
            let metadata = site.ask(Method::GET, &path, &[], None).await?.1;
            print_values(&metadata, json);
            Ok(Outcome::Done)
        }
        Ask::Token { token, state, app_version, site } => {
            let state = format!("{state:?}").to_lowercase();
            let body = json!({"state": state, "appVersion": app_version});
            let endpoint = site.ask(Method::PUT, &["standin", "v1", "tokens", &token], &[], Some(&body)).await?.1;
            say!("{}", if json { endpoint.to_string() } else { format!("{token} is {state}") });
            Ok(Outcome::Done)
        }
        Ask::Fault { faults, clear, site } => fault(&site, &faults, clear.as_deref(), json).await,
    }
}

impl Site {
    /// The address of a call; the segments are escaped.
    fn address(&self, path: &[&str], query: &[(&str, String)]) -> Result<Url> {
        let mut url = self.url.clone();
        let mut segments = url.path_segments_mut().map_err(|()| anyhow!("{}: expected an http address", self.url))?;
        segments.pop_if_empty().extend(path);
        drop(segments);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Ok(url)
    }

    async fn send(&self, method: Method, url: Url, body: Vec<u8>) -> Result<reqwest::Response> {
        // No TLS here, but the client wants a provider.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().build().context("making a client")?;
        let response = http.request(method, url).body(body).send().await.map_err(|error| {
            if error.is_connect() {
                anyhow!(
                    "no stand-in serves {}; start it with `sandgate cloud kaa`, or name another with --url",
                    self.url
                )
            } else {
                anyhow!("asking the stand-in: {error}")
            }
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let bytes = response.bytes().await.unwrap_or_default();
        let error: Json = serde_json::from_slice(&bytes).unwrap_or_default();
        match error.get("reasonPhrase").and_then(Json::as_str) {
            Some(text) => bail!("{text}"),
            None => bail!("the stand-in answered {status}: {}", String::from_utf8_lossy(&bytes)),
        }
    }

    /// The answer, or the error that the stand-in gives.
    async fn ask(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, String)],
        body: Option<&Json>,
    ) -> Result<(StatusCode, Json)> {
        let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        let response = self.send(method, self.address(path, query)?, body).await?;
        let status = response.status();
        let bytes = response.bytes().await.context("reading the stand-in's answer")?;
        let answer = if bytes.is_empty() { Ok(Json::Null) } else { serde_json::from_slice(&bytes) };
        Ok((status, answer.context("reading the stand-in's answer")?))
    }

    async fn endpoint(&self, token: &str) -> Result<Json> {
        Ok(self.ask(Method::GET, &["standin", "v1", "endpoints", token], &[], None).await?.1)
    }
}

/// Reads JSON of the command line.
fn parse(text: &str, what: &str) -> Result<Json> {
    serde_json::from_str(text).with_context(|| format!("{what}: expected JSON, found {text:?}"))
}

fn text(value: &Json, key: &str) -> String {
    match value.get(key) {
        None | Some(Json::Null) => String::new(),
        Some(Json::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

async fn send_command(
    site: &Site,
    names: &[&str; 2],
    payload: Option<String>,
    (seconds, ttl): (Option<f64>, Option<u64>),
    json: bool,
) -> Result<Outcome> {
    let [token, command_type] = *names;
    let payload = payload.map(|payload| parse(&payload, "payload")).transpose()?;
    let mut query = Vec::new();
    query.extend(seconds.map(|seconds| ("awaitTimeout", seconds.to_string())));
    query.extend(ttl.map(|ttl| ("commandTtl", ttl.to_string())));
    let path = ["cex", "api", "v1", "endpoints", token, "commands", command_type];
    let (status, answer) = site.ask(Method::POST, &path, &query, payload.as_ref()).await?;
    if json {
        say!("{answer}");
    } else if status == StatusCode::OK {
        let payload = answer.get("payload").map(|payload| format!(" {payload}")).unwrap_or_default();
        say!("{} {}{payload}", text(&answer, "statusCode"), text(&answer, "reasonPhrase"));
    } else {
        let waited = if seconds.is_some() { "no result in time" } else { "sent" };
        say!("{waited}; {command_type} has the id {}", text(&answer, "id"));
    }
    let failed = match answer.get("statusCode").and_then(Json::as_i64) {
        Some(code) => !(200..300).contains(&code),
        None => seconds.is_some(),
    };
    Ok(if failed { Outcome::Failed } else { Outcome::Done })
}

async fn put_config(
    site: &Site,
    token: &str,
    config: &str,
    (name, app_version): (Option<String>, Option<String>),
    json: bool,
) -> Result<Outcome> {
    let config = match config.strip_prefix('@') {
        Some(file) => {
            let read = std::fs::read_to_string(file).with_context(|| format!("reading configuration {file}"))?;
            parse(&read, file)?
        }
        None => parse(config, "configuration")?,
    };
    let app_version = match app_version {
        Some(app_version) => app_version,
        None => text(&site.endpoint(token).await?, "appVersion"),
    };
    let query: Vec<_> = name.map(|name| ("configName", name)).into_iter().collect();
    let path = ["ecr", "api", "v1", "endpoints", token, "app-versions", &app_version];
    let document = site.ask(Method::PUT, &path, &query, Some(&config)).await?.1;
    if json {
        say!("{document}");
    } else {
        say!("{token} is assigned configuration {}", text(&document, "configId"));
    }
    Ok(Outcome::Done)
}

async fn offer_software(
    site: &Site,
    [token, version]: [&str; 2],
    (file, link): (Option<&Path>, Option<String>),
    from: Vec<String>,
    json: bool,
) -> Result<Outcome> {
    let application = text(&site.endpoint(token).await?, "application");
    let specification = match (file, link) {
        (Some(file), _) => upload(site, file).await?,
        (None, link) => json!({ "link": link }),
    };
    let from = if from.is_empty() { Json::Null } else { json!(from) };
    let body = json!({
        "specification": specification,
        "upgradableFrom": from,
        "rolloutStrategy": "targeted",
        "endpoints": [token],
    });
    let path = ["otao", "api", "v1", "applications", &application, "software", version];
    let offer = site.ask(Method::PUT, &path, &[], Some(&body)).await?.1;
    if json {
        say!("{offer}");
    } else {
        say!("{token} is offered {version}: {}", text(&specification, "link"));
    }
    Ok(Outcome::Done)
}

/// Gives a file to the stand-in and returns what an offer says of it.
async fn upload(site: &Site, file: &Path) -> Result<Json> {
    let bytes = std::fs::read(file).with_context(|| format!("reading software {}", file.display()))?;
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or("software");
    let url = site.address(&["standin", "v1", "files", name], &[])?;
    let response = site.send(Method::POST, url, bytes).await?;
    let stored: Json = serde_json::from_slice(&response.bytes().await?).context("reading the stand-in's answer")?;
    let sha256 = text(&stored, "sha256");
    Ok(json!({"link": text(&stored, "link"), "checksum": sha256, "sha256": sha256, "size": stored.get("size")}))
}

async fn samples(site: &Site, token: &str, follow: bool, json: bool) -> Result<Outcome> {
    let path = ["standin", "v1", "endpoints", token, "samples"];
    let url = site.address(&path, &[("follow", follow.to_string())])?;
    let response = site.send(Method::GET, url, Vec::new()).await?;
    if !follow {
        let bytes = response.bytes().await.context("reading the stand-in's answer")?;
        let samples: Vec<Json> = serde_json::from_slice(&bytes).context("reading the stand-in's answer")?;
        samples.iter().for_each(|sample| print_sample(sample, json));
        return Ok(Outcome::Done);
    }
    let mut parts = response.bytes_stream();
    let mut buffer = Vec::new();
    while let Some(part) = parts.next().await {
        buffer.extend_from_slice(&part.map_err(|_| anyhow!("the stand-in has stopped"))?);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            print_sample(&serde_json::from_slice(&line).context("reading a sample")?, json);
        }
    }
    Ok(Outcome::Done)
}

/// One sample a line, also as JSON.
fn print_sample(sample: &Json, json: bool) {
    if json {
        return say!("{sample}");
    }
    let received = sample.get("received").and_then(Json::as_u64).unwrap_or_default();
    let received = std::time::UNIX_EPOCH + std::time::Duration::from_millis(received);
    say!("{} {}", humantime::format_rfc3339_millis(received), sample.get("value").unwrap_or(&Json::Null));
}

async fn endpoints(site: &Site, json: bool) -> Result<Outcome> {
    let endpoints = site.ask(Method::GET, &["standin", "v1", "endpoints"], &[], None).await?.1;
    if json {
        say!("{endpoints:#}");
        return Ok(Outcome::Done);
    }
    say!("{:<24} {:<10} {:<10} {:<24} {:>8}  SOFTWARE", "ENDPOINT", "STATE", "CONNECTED", "APP VERSION", "SAMPLES");
    for endpoint in endpoints.as_array().into_iter().flatten() {
        let get = |key| text(endpoint, key);
        say!(
            "{:<24} {:<10} {:<10} {:<24} {:>8}  {}",
            get("endpoint"),
            get("state"),
            if get("connected") == "true" { "yes" } else { "no" },
            get("appVersion"),
            get("samples"),
            get("software"),
        );
    }
    Ok(Outcome::Done)
}

fn print_values(values: &Json, json: bool) {
    if json {
        return say!("{values:#}");
    }
    values.as_object().into_iter().flatten().for_each(|(key, value)| say!("{key}: {value}"));
}

async fn fault(site: &Site, faults: &[String], clear: Option<&str>, json: bool) -> Result<Outcome> {
    let path = ["standin", "v1", "faults"];
    if let Some(name) = clear {
        let query: Vec<_> = if name.is_empty() { Vec::new() } else { vec![("name", name.to_owned())] };
        site.ask(Method::DELETE, &path, &query, None).await?;
    }
    for fault in faults {
        site.ask(Method::POST, &path, &[], Some(&json!({ "fault": fault }))).await?;
    }
    let answer = site.ask(Method::GET, &path, &[], None).await?.1;
    if json {
        say!("{answer:#}");
        return Ok(Outcome::Done);
    }
    let set: Vec<&Json> = answer.get("faults").and_then(Json::as_array).into_iter().flatten().collect();
    if set.is_empty() {
        say!("no faults");
    }
    set.iter().filter_map(|fault| fault.as_str()).for_each(|fault| say!("{fault}"));
    Ok(Outcome::Done)
}
