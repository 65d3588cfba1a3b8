//! The gateway's configuration file: its types, loading and checking.
//!
//! Owns every default. Called by `cli` and by the supervisor at a reload.
//! Loading touches only the file itself and the secret sources it names.

mod check;
mod communication;
mod diff;
mod kaa;
mod modbus;
mod units;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde::Deserialize;

pub use communication::{Broker, Communication, Credentials, Tls};
pub use diff::{Change, diff};
pub use kaa::{Batch, Endpoint, KaaSession, Timestamp};
pub use modbus::{ConfiguredUnits, ModbusAccess, ModbusGrant, WriteKind};
pub use units::{Rate, Secret, Size, Source, Span};

use crate::manifest::Manifest;
use crate::network::Target;

/// All that an operator says.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Folder for the admin socket, the code cache, storage and receipts.
    /// Relative to the file; default `sandgate-state` beside it.
    #[serde(default = "default_state")]
    pub state: PathBuf,
    /// The gateway as a device.
    #[serde(default)]
    pub gateway: Gateway,
    /// Connections to clouds, by name.
    #[serde(default)]
    pub sessions: BTreeMap<String, Session>,
    /// Field lines that devices share, by name.
    #[serde(default)]
    pub buses: BTreeMap<String, Bus>,
    /// Devices, by id.
    #[serde(default)]
    pub devices: BTreeMap<String, Device>,
    /// The folder of the file; paths in it start there.
    #[serde(skip)]
    pub folder: PathBuf,
}

/// The gateway itself, the parent of all devices in the cloud.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gateway {
    /// How often the gateway sends its own telemetry.
    pub telemetry_every: Span,
    /// How often the gateway repeats its properties with the set of children.
    pub properties_every: Span,
}

impl Default for Gateway {
    fn default() -> Self {
        Gateway { telemetry_every: Span(Duration::from_secs(10)), properties_every: Span(Duration::from_secs(300)) }
    }
}

/// One MQTT connection to a cloud.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Session {
    /// The Enapter MQTT API.
    Enapter(Box<EnapterSession>),
    /// The Kaa MQTT API.
    Kaa(Box<KaaSession>),
}

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

/// Bounds of an outbox.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Outbox {
    /// At most so many bytes wait; then the oldest telemetry is dropped.
    pub max_size: Size,
    /// Telemetry and logs older than this are dropped.
    pub max_age: Span,
}

impl Default for Outbox {
    fn default() -> Self {
        Outbox { max_size: Size(16 << 20), max_age: Span(Duration::from_secs(7 * 24 * 3600)) }
    }
}

/// A field line that the host owns.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bus {
    /// Modbus over TCP.
    ModbusTcp(ModbusTcp),
    /// Modbus RTU on a serial port.
    ModbusRtu(ModbusRtu),
}

/// A Modbus TCP server or gateway.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModbusTcp {
    /// `host:port`.
    pub address: Target,
    /// How long a unit may take to answer.
    #[serde(default = "default_bus_timeout")]
    pub timeout: Span,
    /// Pause between the end of a transaction and the next; none by default.
    pub gap: Option<Span>,
}

/// A serial line with Modbus RTU.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModbusRtu {
    /// The serial port, such as `/dev/ttyUSB0`.
    pub port: PathBuf,
    /// Bits a second.
    #[serde(default = "default_baud_rate")]
    pub baud_rate: u32,
    /// Parity bit.
    #[serde(default)]
    pub parity: Parity,
    /// Stop bits, 1 or 2.
    #[serde(default = "default_stop_bits")]
    pub stop_bits: u8,
    /// How long a unit may take to answer.
    #[serde(default = "default_bus_timeout")]
    pub timeout: Span,
    /// Pause between the end of a transaction and the next; by default the
    /// 3.5 characters that the Modbus specification asks for.
    pub gap: Option<Span>,
}

/// The parity of a serial line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Parity {
    /// No parity bit.
    #[default]
    None,
    /// Even number of ones; the default of the Modbus specification.
    Even,
    /// Odd number of ones.
    Odd,
}

/// One configured driver.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// The component file. Relative to the configuration file.
    pub driver: PathBuf,
    /// The child's type in the parent's blueprint; default: the driver's name
    /// with `_` for `-`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The session that carries it; needed when there are several.
    pub session: Option<String>,
    /// Its address in each Kaa session that carries it, by the session's name.
    #[serde(default)]
    pub endpoints: BTreeMap<String, Endpoint>,
    /// `configuration.<bucket>.<parameter>`, checked against the manifest.
    #[serde(default)]
    pub configuration: toml::Table,
    /// What the driver may use.
    #[serde(default)]
    pub grants: Grants,
    /// What the driver may consume.
    #[serde(default)]
    pub limits: Limits,
    /// The level from which the driver's log goes to the cloud.
    #[serde(default)]
    pub cloud_log: LogLevel,
    /// How long a new driver is watched after a swap; a crash or a worse error
    /// rate in this time brings the old one back.
    #[serde(default = "default_health_window")]
    pub health_window: Span,
}

impl Device {
    /// Holds what a driver asks for, and what a cloud is to get from it, against its manifest.
    pub fn check(&self, manifest: &Manifest) -> Result<(), String> {
        for bus in &manifest.driver.requests.modbus {
            if !self.grants.modbus.contains_key(bus) {
                return Err(format!(
                    "it requests the Modbus line {bus:?}; expected grants.modbus.{bus} in the configuration"
                ));
            }
        }
        for (session, endpoint) in &self.endpoints {
            for name in endpoint.plain.keys() {
                if !manifest.blueprint.telemetry.contains_key(name) {
                    return Err(format!(
                        "endpoints.{session}.plain.{name}: expected telemetry that the manifest declares"
                    ));
                }
            }
        }
        Ok(())
    }
}

/// The level of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    /// All.
    Debug,
    /// Normal operation and above.
    #[default]
    Info,
    /// Warnings and errors.
    Warning,
    /// Errors only.
    Error,
    /// Nothing.
    Off,
}

/// What a device may use. Nothing by default.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Grants {
    /// The driver's bus name → a name under `[buses]`, and what may be done there.
    pub modbus: BTreeMap<String, ModbusGrant>,
    /// `host:port` for `net` and WASI sockets.
    pub tcp: Vec<Target>,
    /// `host:port` for `http`.
    pub http: Vec<Target>,
}

/// What a device may consume. The manifest may ask for less or more; what
/// stands here wins.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Linear memory.
    pub memory: Option<Size>,
    /// CPU time of one call.
    pub cpu: Option<Span>,
    /// Wall-clock time of one call.
    pub call: Option<Span>,
    /// Samples and property sets.
    pub telemetry: Option<Rate>,
    /// Log lines.
    pub logs: Option<Rate>,
    /// All stored values together.
    pub storage: Option<Size>,
}

fn default_state() -> PathBuf {
    PathBuf::from("sandgate-state")
}

fn default_qos() -> u8 {
    1
}

fn default_keep_alive() -> Span {
    Span(Duration::from_secs(60))
}

/// What the protocol can say, in whole seconds.
const KEEP_ALIVE: &str = "expected 1s to 65535s";

fn keep_alive_fits(span: Span) -> bool {
    (1..=u64::from(u16::MAX)).contains(&span.0.as_secs())
}

fn default_bus_timeout() -> Span {
    Span(Duration::from_secs(1))
}

fn default_baud_rate() -> u32 {
    9600
}

fn default_stop_bits() -> u8 {
    1
}

fn default_health_window() -> Span {
    Span(Duration::from_secs(30))
}

impl Config {
    /// Reads and checks a file.
    ///
    /// Errors name the file, the line and what was expected.
    pub fn load(path: &Path) -> Result<Config> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("reading configuration {}", path.display()))?;
        let mut config = Config::parse(&text).map_err(|error| anyhow!("{}:{error}", path.display()))?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        config.folder = folder.unwrap_or(Path::new(".")).to_owned();
        config.state = config.folder.join(&config.state);
        config.read_tokens().with_context(|| path.display().to_string())?;
        Ok(config)
    }

    /// Reads tokens of endpoints from where they are kept.
    fn read_tokens(&mut self) -> Result<()> {
        for (id, device) in &mut self.devices {
            for (name, endpoint) in &mut device.endpoints {
                endpoint.read_token(&self.folder).with_context(|| format!("devices.{id}.endpoints.{name}.token"))?;
            }
        }
        check::check_tokens(self).map_err(anyhow::Error::msg)
    }

    /// Parses and checks a text. The error starts with `line:column: `.
    pub fn parse(text: &str) -> Result<Config, String> {
        let config: Config = toml::from_str(text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start);
            // The first line says what; the rest repeats the file.
            let message = error.message().trim().replace('\n', ", ");
            format!("{}: {message}", check::line_and_column(text, offset))
        })?;
        check::check(&config, text)?;
        Ok(config)
    }

    /// The secrets that it holds or names, as far as they can be read.
    pub fn secrets(&self) -> Vec<String> {
        let mut all = Vec::new();
        let read = |source: &Option<Source>| source.as_ref().and_then(|source| source.read(&self.folder).ok());
        for session in self.sessions.values() {
            match session {
                Session::Enapter(session) => {
                    all.extend(read(&session.password));
                    if let Some(blob) = read(&session.communication_config) {
                        all.extend(Communication::from_blob(&blob).map(|held| held.secrets()).unwrap_or_default());
                        all.push(blob);
                    }
                }
                Session::Kaa(session) => all.extend(read(&session.password).into_iter().chain(read(&session.token))),
            }
        }
        let endpoints = self.devices.values().flat_map(|device| device.endpoints.values());
        all.extend(endpoints.filter_map(|endpoint| endpoint.token.read(&self.folder).ok()));
        all.into_iter().map(|secret| secret.0).collect()
    }

    /// The sessions of a device: the named one and those that it has
    /// endpoints in, or the only one.
    pub fn sessions_of<'a>(&'a self, device: &'a Device) -> BTreeSet<&'a str> {
        let named = device.session.iter().chain(device.endpoints.keys()).map(String::as_str);
        let named: BTreeSet<&str> = named.collect();
        if named.is_empty() { self.sessions.keys().take(1).map(String::as_str).collect() } else { named }
    }

    /// The component file of a device.
    pub fn driver_path(&self, device: &Device) -> PathBuf {
        self.folder.join(&device.driver)
    }
}
