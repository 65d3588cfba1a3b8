//! Settings of a session with Enapter, and what those of other clouds share.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::{Outbox, Source, Span};

/// Settings of an Enapter session. Either `communication_config` or the
/// single values are given.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnapterSession {
    /// The blob that the Enapter CLI generates: base64 of JSON, v3 or v1.
    pub communication_config: Option<Source>,
    /// Broker host name; with a blob: instead of the blob's.
    pub host: Option<String>,
    /// Broker port; with a blob: instead of the blob's.
    pub port: Option<u16>,
    /// The parent's hardware id.
    pub hardware_id: Option<String>,
    /// The parent's channel id; default "s".
    pub channel_id: Option<String>,
    /// User name for a broker that asks for one.
    pub username: Option<String>,
    /// Password for a broker that asks for one.
    pub password: Option<Source>,
    /// TLS; absent means plain MQTT (or what the blob says).
    pub tls: Option<TlsFiles>,
    /// Whether the server certificate must carry the host name. Enapter's own
    /// do not, so the default is false; the chain is always verified.
    #[serde(default)]
    pub verify_host_name: bool,
    /// MQTT client id; default `sandgate-` and the hardware id.
    pub client_id: Option<String>,
    /// The topic for properties: `properties` or the older `register`.
    #[serde(default)]
    pub properties_topic: PropertiesTopic,
    /// MQTT quality of service, 0 or 1. With 0 "sent" is all that is known.
    #[serde(default = "default_qos")]
    pub qos: u8,
    /// MQTT keep-alive.
    #[serde(default = "default_keep_alive")]
    pub keep_alive: Span,
    /// Bounds of the queue between the devices and this session.
    #[serde(default)]
    pub outbox: Outbox,
}

/// The name of Enapter's properties topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PropertiesTopic {
    /// `…/v1/properties`, as documented.
    #[default]
    Properties,
    /// `…/v1/register`, as Enapter's SDK up to 0.24 uses.
    Register,
}

/// PEM files for TLS. Relative to the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table with `ca`")]
pub struct TlsFiles {
    /// Certificates that the server's chain must end in. Without it: those
    /// that the system trusts, which is of use for a public cloud only.
    pub ca: Option<PathBuf>,
    /// The client's certificate chain, together with `key`.
    pub certificate: Option<PathBuf>,
    /// The client's private key.
    pub key: Option<PathBuf>,
}

pub(super) fn default_qos() -> u8 {
    1
}

pub(super) fn default_keep_alive() -> Span {
    Span(Duration::from_secs(60))
}

/// What the protocol can say, in whole seconds.
pub(super) const KEEP_ALIVE: &str = "expected 1s to 65535s";

pub(super) fn keep_alive_fits(span: Span) -> bool {
    (1..=u64::from(u16::MAX)).contains(&span.0.as_secs())
}
