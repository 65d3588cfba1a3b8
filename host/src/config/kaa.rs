//! Settings of a Kaa session and of a device's endpoint in it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Deserializer};

use super::communication::{Broker, Login, broker};
use super::enapter::{KEEP_ALIVE, default_keep_alive, default_qos, keep_alive_fits};
use super::{Outbox, Size, Source, Span, TlsFiles};
use crate::clock::TimeFormat;
use crate::config::Secret;
use crate::outbox::Batching;

/// One MQTT connection to Kaa; it carries as many endpoints as are configured.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KaaSession {
    /// Broker host name.
    pub host: String,
    /// Broker port; default 1883, with TLS 8883.
    pub port: Option<u16>,
    /// The application version of all endpoints that name no other.
    pub app_version: String,
    /// The token of the gateway's own endpoint; without it the gateway is not
    /// seen in the cloud, only its devices are.
    pub token: Option<Source>,
    /// User name, usually `<name>@<tenant>`.
    pub username: Option<String>,
    /// Password.
    pub password: Option<Source>,
    /// TLS; absent means plain MQTT.
    pub tls: Option<TlsFiles>,
    /// Whether the server certificate must carry the host name.
    #[serde(default = "yes")]
    pub verify_host_name: bool,
    /// MQTT client id; default `sandgate-` and eight random characters.
    pub client_id: Option<String>,
    /// MQTT quality of service, 0 or 1. A message counts as delivered when
    /// Kaa has answered, with both.
    #[serde(default = "default_qos")]
    pub qos: u8,
    /// MQTT keep-alive.
    #[serde(default = "default_keep_alive")]
    pub keep_alive: Span,
    /// Bounds of the queue between the devices and this session.
    #[serde(default)]
    pub outbox: Outbox,
    /// How samples of a device are put together.
    #[serde(default)]
    pub batch: Batch,
    /// The time in samples.
    #[serde(default)]
    pub timestamp: Timestamp,
    /// How long Kaa may take to answer; then a message is sent again.
    #[serde(default = "default_reply_timeout")]
    pub reply_timeout: Span,
    /// How often commands, configurations and software are asked for beside
    /// what is pushed: a push can get lost.
    #[serde(default = "default_poll_every")]
    pub poll_every: Span,
    /// Whether to ask, after a lost connection, which of the unanswered
    /// messages arrived; needs the extension `rsx`.
    #[serde(default)]
    pub request_status: bool,
    /// Whether to compare clocks at each connect; needs the extension `tsx`.
    #[serde(default)]
    pub check_time: bool,
    /// Named configurations to observe beside the default one.
    #[serde(default)]
    pub configurations: Vec<String>,
    /// Whether software that Kaa offers replaces drivers.
    #[serde(default = "yes")]
    pub software: bool,
    /// The largest software that is downloaded.
    #[serde(default = "default_software_size")]
    pub max_software_size: Size,
    /// Where binary data goes, `https://host`; default is the MQTT host
    /// without a leading `mqtt.`, by https.
    pub binary_data_url: Option<String>,
    /// Content types that the store of binary data takes as they are; all
    /// others go as `application/octet-stream`, which its API names.
    #[serde(default)]
    pub binary_data_types: Vec<String>,
}

/// How samples of a device are put together.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Batch {
    /// Maximum samples in a message.
    pub max_count: usize,
    /// Maximum bytes of a message.
    pub max_size: Size,
    /// A sample waits for others no longer than this.
    pub max_age: Span,
}

impl Default for Batch {
    fn default() -> Self {
        Batch { max_count: 100, max_size: Size(64 << 10), max_age: Span(Duration::from_secs(1)) }
    }
}

impl Batch {
    /// The same for the outbox.
    pub fn batching(&self) -> Batching {
        // One sample has nothing to wait for.
        let age = if self.max_count <= 1 { Duration::ZERO } else { self.max_age.0 };
        Batching { count: self.max_count, bytes: self.max_size.bytes(), age }
    }
}

/// The time in samples.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timestamp {
    /// The field's name.
    pub field: String,
    /// How it is written.
    pub format: TimeFormat,
}

impl Default for Timestamp {
    fn default() -> Self {
        Timestamp { field: "timestamp".into(), format: TimeFormat::Milliseconds }
    }
}

/// A device's address in a Kaa session.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KaaEndpoint {
    /// The endpoint's token: the text, or where it is kept. Who has it can
    /// speak for the device, so it does not appear in a log. `Config::load`
    /// makes it a `Source::Value`.
    #[serde(deserialize_with = "text_or_source")]
    pub token: Source,
    /// The application version, if it is not the session's.
    pub app_version: Option<String>,
    /// Measurements that go as plain numbers: the attribute's name and its
    /// unit, which may be empty. Needs Kaa's relaxed resource path.
    #[serde(default)]
    pub plain: BTreeMap<String, String>,
}

impl KaaSession {
    /// Puts together what is needed to connect.
    pub fn broker(&self, folder: &Path) -> Result<Broker> {
        let login = Login { username: self.username.as_ref(), password: self.password.as_ref() };
        broker(&self.host, self.port, login, self.tls.as_ref(), folder).map(|mut broker| {
            if let Some(tls) = &mut broker.tls {
                tls.verify_host_name = self.verify_host_name;
            }
            broker
        })
    }

    /// The token of the gateway's own endpoint.
    pub fn gateway_token(&self, folder: &Path) -> Result<Option<String>> {
        let Some(source) = &self.token else { return Ok(None) };
        let token = source.read(folder).context("reading token")?.0.trim().to_owned();
        anyhow::ensure!(is_topic_level(&token), "token: {TOPIC_LEVEL}");
        Ok(Some(token))
    }

    /// Where binary data goes.
    pub fn binary_data_url(&self) -> String {
        let host = self.host.strip_prefix("mqtt.").unwrap_or(&self.host);
        self.binary_data_url.clone().unwrap_or_else(|| format!("https://{host}"))
    }

    /// What is wrong with the settings: the key and what was expected.
    pub(super) fn problem(&self) -> Option<(&'static str, &'static str)> {
        let is_name = |name: &String| is_topic_level(name) && !name.bytes().all(|byte| byte.is_ascii_digit());
        let http = |url: &String| url.starts_with("http://") || url.starts_with("https://");
        match self {
            _ if self.qos > 1 => Some(("qos", "expected 0 or 1")),
            _ if !keep_alive_fits(self.keep_alive) => Some(("keep_alive", KEEP_ALIVE)),
            _ if !is_app_version(&self.app_version) => Some(("app_version", APP_VERSION)),
            _ if self.poll_every.0 < Duration::from_secs(1) => Some(("poll_every", "expected at least 1s")),
            _ if self.username.is_some() != self.password.is_some() => {
                Some(("", "expected `username` and `password` together"))
            }
            _ if self.tls.as_ref().is_some_and(|tls| tls.certificate.is_some() != tls.key.is_some()) => {
                Some(("tls", "expected `certificate` and `key` together"))
            }
            _ if self.batch.max_count == 0 => Some(("batch", "expected a `max_count` above zero")),
            _ if self.batch.max_size.bytes() > MAX_BATCH => Some(("batch", "expected a `max_size` of at most 1MiB")),
            _ if self.timestamp.field.is_empty() => Some(("timestamp", "expected a `field` with a name")),
            _ if !self.configurations.iter().all(is_name) => {
                Some(("configurations", "expected names without /, +, # and spaces that are no numbers"))
            }
            _ if !self.binary_data_url.iter().all(http) => Some(("binary_data_url", "expected http://… or https://…")),
            _ => None,
        }
    }
}

impl KaaEndpoint {
    /// The token, once it is read.
    pub fn token(&self) -> Option<&str> {
        match &self.token {
            Source::Value(token) => Some(&token.0),
            Source::Env(_) | Source::File(_) => None,
        }
    }

    /// Reads the token from where it is kept.
    pub(super) fn read_token(&mut self, folder: &Path) -> Result<()> {
        let token = self.token.read(folder)?;
        anyhow::ensure!(is_topic_level(&token.0), TOPIC_LEVEL);
        self.token = Source::Value(token);
        Ok(())
    }

    /// What is wrong with the settings: the key and what was expected.
    pub(super) fn problem(&self) -> Option<(&'static str, &'static str)> {
        match self {
            _ if !self.token().is_none_or(is_topic_level) => Some(("token", TOPIC_LEVEL)),
            _ if !self.app_version.iter().all(|version| is_app_version(version)) => Some(("app_version", APP_VERSION)),
            _ if !self.plain.keys().all(|name| is_topic_level(name)) => Some(("plain", TOPIC_LEVEL)),
            _ => None,
        }
    }
}

const TOPIC_LEVEL: &str = "expected a text without /, +, #, dots and spaces";

const APP_VERSION: &str = "expected lower-case letters, digits, - and _";
/// The stand-in, and probably Kaa, takes no larger messages.
const MAX_BATCH: usize = 1 << 20;

fn is_app_version(text: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_';
    !text.is_empty() && text.bytes().all(is_part)
}

fn is_topic_level(text: &str) -> bool {
    !text.is_empty() && !text.contains(['/', '+', '#', ' ', '.', '\n', '\0'])
}

/// Reads a token that stands in the file, or a table that says where it is.
fn text_or_source<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Source, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Raw {
        Text(Secret),
        Table(Source),
    }
    let expected = "expected a text, { env = \"NAME\" } or { file = \"PATH\" }";
    match Raw::deserialize(deserializer) {
        Ok(Raw::Text(text)) => Ok(Source::Value(text)),
        Ok(Raw::Table(source)) => Ok(source),
        // The library's own error would not say what, and could show the text.
        Err(_) => Err(serde::de::Error::custom(expected)),
    }
}

fn yes() -> bool {
    true
}

fn default_reply_timeout() -> Span {
    Span(Duration::from_secs(15))
}

fn default_poll_every() -> Span {
    Span(Duration::from_secs(600))
}

fn default_software_size() -> Size {
    Size(32 << 20)
}
