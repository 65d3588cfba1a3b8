//! The gateway's configuration file: its types, loading and checking.
//!
//! Owns every default. Called by `cli` and by the supervisor at a reload.
//! Loading touches only the file itself and the secret sources it names.

mod bus;
mod check;
mod communication;
mod diff;
mod enapter;
mod endpoint;
mod kaa;
mod modbus;
mod original;
mod parameters;
mod tapes;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde::Deserialize;

pub use crate::units::{Delay, Rate, Secret, Share, Size, Source, Span};
pub use bus::{AnalogInput, Bias, Bus, Can, DigitalInput, DigitalOutput, ModbusRtu, ModbusTcp, Parity, Serial};
pub use communication::{Broker, Communication, Credentials, Tls};
pub use diff::{Change, diff};
pub use enapter::{EnapterSession, PropertiesTopic, TlsFiles};
pub use endpoint::Endpoint;
pub use kaa::{Batch, KaaEndpoint, KaaSession, Timestamp};
pub use modbus::{ConfiguredUnits, ModbusAccess, ModbusGrant, WriteKind};
pub use original::Original;
pub use parameters::Parameters;
pub use tapes::{Gate, GateMode, Gates, Tapes};

use original::{keys_at, line_and_column};

use crate::manifest::{Manifest, RequestKind};
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
    /// What is kept of what drivers do.
    #[serde(default)]
    pub tapes: Tapes,
    /// How new versions of drivers are tried before they take over.
    #[serde(default)]
    pub gate: Gates,
    /// Field lines that devices share, by name.
    #[serde(default)]
    pub buses: BTreeMap<String, Bus>,
    /// Devices, by id.
    #[serde(default)]
    pub devices: BTreeMap<String, Arc<Device>>,
    /// The folder of the file; paths in it start there.
    #[serde(skip)]
    pub folder: PathBuf,
    /// The text of the file.
    #[serde(skip)]
    pub original: Original,
}

/// The gateway itself, the parent of all devices in the cloud.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gateway {
    /// How often the gateway sends its own telemetry.
    pub telemetry_every: Span,
    /// How often the gateway repeats its properties with the set of children.
    pub properties_every: Span,
    /// How long after it came a command may be started; later it is refused.
    pub command_deadline: Span,
}

impl Default for Gateway {
    fn default() -> Self {
        Gateway {
            telemetry_every: Span(Duration::from_secs(10)),
            properties_every: Span(Duration::from_secs(300)),
            command_deadline: Span(Duration::from_secs(60)),
        }
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

/// Bounds of an outbox.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Outbox {
    /// Maximum bytes that wait; beyond it the oldest telemetry is dropped.
    pub max_size: Size,
    /// How much of that may be in memory, where all of it is without a disk.
    pub max_memory: Size,
    /// Telemetry and logs older than this are dropped.
    pub max_age: Span,
    /// After an outage: how much of the messages of each device may be of those
    /// that have waited, while newer ones go first. Without it all go in their order.
    pub backfill: Option<Share>,
    /// How long what is accepted waits until it is brought to the disk together
    /// with others; a power cut costs no more than that.
    pub sync_every: Delay,
}

impl Default for Outbox {
    fn default() -> Self {
        Outbox {
            max_size: Size(256 << 20),
            max_memory: Size(32 << 20),
            max_age: Span(Duration::from_secs(7 * 24 * 3600)),
            backfill: None,
            sync_every: Delay(Duration::from_millis(50)),
        }
    }
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
    pub configuration: Parameters,
    /// What the driver may use.
    #[serde(default)]
    pub grants: Grants,
    /// What the driver may consume.
    #[serde(default)]
    pub limits: Limits,
    /// The level from which the driver's log goes to the cloud.
    #[serde(default)]
    pub cloud_log: LogLevel,
    /// Whether what crosses between the driver and the host is recorded.
    #[serde(default = "default_tape")]
    pub tape: bool,
    /// How a new version of its driver is tried before it takes over.
    pub gate: Option<Gate>,
    /// How long a new driver is watched after a swap; a crash or a worse error
    /// rate in this time brings the old one back.
    #[serde(default = "default_health_window")]
    pub health_window: Span,
    /// Its id, the key of its table.
    #[serde(skip)]
    pub id: String,
    /// The text of the file.
    #[serde(skip)]
    pub original: Original,
}

impl Device {
    /// Holds what stands here against what a driver's manifest says. The error
    /// names the place.
    pub fn check(&self, manifest: &Manifest) -> Result<(), String> {
        let requests = &manifest.driver.requests;
        if let Some((kind, line)) = requests.needed_lines().find(|(kind, line)| !self.grants.has_line(*kind, line)) {
            let (key, noun) = (kind.key(), kind.noun());
            let mut like = self.grants.lines().filter(|(own, name, _)| *own == kind && !requests.covers(kind, name));
            let found = like.next().map_or(String::new(), |(_, name, _)| format!(", found grants.{key}.{name}"));
            let text = format!("the driver requests the {noun} {line:?}; expected `grants.{key}.{line}`{found}");
            return Err(self.wrong(&["grants", key], &text));
        }
        for (session, endpoint) in &self.endpoints {
            let (key, mut names) = endpoint.measurements();
            if let Some(name) = names.find(|name| !manifest.blueprint.telemetry.contains_key(*name)) {
                let text = "expected telemetry that the manifest declares";
                return Err(self.wrong(&["endpoints", session, key, name], text));
            }
        }
        self.check_configuration(manifest)
    }

    /// Holds the configuration against what a manifest declares.
    pub fn check_configuration(&self, manifest: &Manifest) -> Result<(), String> {
        manifest.check_configuration(self.configuration.buckets()).map(drop).map_err(|wrong| {
            let keys: Vec<&str> = ["configuration"].into_iter().chain(wrong.keys.iter().map(String::as_str)).collect();
            self.wrong(&keys, &wrong.problem)
        })
    }

    /// An error about something in this device's table: where, and what is wrong.
    pub fn wrong(&self, keys: &[&str], problem: &str) -> String {
        let keys: Vec<&str> = ["devices", self.id.as_str()].iter().chain(keys).copied().collect();
        format!("{}: {}: {problem}", self.original.place(&keys), keys.join("."))
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
    /// The driver's name for a serial port → a name under `[buses]`.
    pub serial: BTreeMap<String, String>,
    /// The same for CAN buses.
    pub can: BTreeMap<String, String>,
    /// The same for inputs and outputs.
    pub io: BTreeMap<String, String>,
    /// `host:port` for `net` and WASI sockets.
    pub tcp: Option<Vec<Target>>,
    /// `host:port` for `http`.
    pub http: Option<Vec<Target>>,
    /// Those of them whose certificate nobody looks at: devices that have made their own.
    pub unverified_tls: Vec<Target>,
}

impl Grants {
    /// All lines: their kinds, the driver's names for them, the names under `[buses]`.
    pub fn lines(&self) -> impl Iterator<Item = (RequestKind, &String, &String)> {
        let modbus = self.modbus.iter().map(|(name, grant)| (RequestKind::Modbus, name, &grant.bus));
        let serial = self.serial.iter().map(|(name, bus)| (RequestKind::Serial, name, bus));
        let can = self.can.iter().map(|(name, bus)| (RequestKind::Can, name, bus));
        modbus.chain(serial).chain(can).chain(self.io.iter().map(|(name, bus)| (RequestKind::Io, name, bus)))
    }

    /// Whether a line is granted under this name.
    pub fn has_line(&self, kind: RequestKind, name: &str) -> bool {
        self.lines().any(|(own, granted, _)| own == kind && granted == name)
    }

    /// The patterns of addresses of a kind; none when nothing is said about it.
    pub fn targets(&self, key: &str) -> Option<&[Target]> {
        match key {
            "tcp" => self.tcp.as_deref(),
            "http" => self.http.as_deref(),
            _ => None,
        }
    }
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
    /// What may wait in each outbox; without it as much as the outbox has room for.
    pub outbox_size: Option<Size>,
    /// The age at which its telemetry and logs are dropped there, instead of the outbox's.
    pub outbox_age: Option<Span>,
}

fn default_state() -> PathBuf {
    PathBuf::from("sandgate-state")
}

fn default_tape() -> bool {
    true
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
        config.original = Original::new(path, &text);
        for device in config.devices.values_mut() {
            Arc::make_mut(device).original = config.original.clone();
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        config.folder = folder.unwrap_or(Path::new(".")).to_owned();
        config.state = config.folder.join(&config.state);
        config.read_tokens()?;
        Ok(config)
    }

    /// Reads tokens of endpoints from where they are kept.
    fn read_tokens(&mut self) -> Result<()> {
        for (id, device) in &mut self.devices {
            for (name, endpoint) in &mut Arc::make_mut(device).endpoints {
                endpoint.read_token(&self.folder).map_err(|error| {
                    let keys = ["devices", id, "endpoints", name, "token"];
                    anyhow!("{}: {}: {error:#}", self.original.place(&keys), keys.join("."))
                })?;
            }
        }
        check::check_tokens(self).map_err(anyhow::Error::msg)
    }

    /// Parses and checks a text. The error starts with `line:column: `.
    pub fn parse(text: &str) -> Result<Config, String> {
        let mut config: Config = toml::from_str(text).map_err(|error| explain(text, &error))?;
        check::check(&config, text)?;
        for (id, device) in &mut config.devices {
            Arc::make_mut(device).id.clone_from(id);
        }
        Ok(config)
    }

    /// An error about something in the file: where, and what is wrong.
    pub fn wrong(&self, keys: &[&str], problem: &str) -> String {
        format!("{}: {}: {problem}", self.original.place(keys), keys.join("."))
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
        all.extend(endpoints.filter_map(|endpoint| endpoint.token().read(&self.folder).ok()));
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

/// How the parser calls what it expected, and how an operator would.
const EXPECTED: [(&str, &str); 7] = [
    ("expected a sequence", "expected a list such as [\"a\", \"b\"]"),
    ("expected a map", "expected a table"),
    ("expected a string", "expected a text in quotes"),
    ("expected path string", "expected a path in quotes"),
    ("expected a boolean", "expected true or false"),
    ("expected u8", "expected a number from 0 to 255"),
    ("expected u16", "expected a number from 0 to 65535"),
];

/// Says what is wrong with a text that is no configuration, in one line.
fn explain(text: &str, error: &toml::de::Error) -> String {
    let span = error.span().unwrap_or_default();
    let place = line_and_column(text, span.start);
    // The first line says what; the rest repeats the file.
    let message = error.message().trim().replace('\n', ", ");
    if message == "duplicate key" {
        let key = text.get(span).unwrap_or_default();
        return format!("{place}: `{key}` stands here a second time; expected each key once");
    }
    let message = EXPECTED.iter().fold(message, |message, (theirs, ours)| match message.strip_suffix(theirs) {
        Some(start) => format!("{start}{ours}"),
        None => message,
    });
    // What stands in the place of a secret may be one.
    match keys_at(text, span.start) {
        keys if keys.is_empty() => format!("{place}: {message}"),
        keys => format!("{place}: {keys}: {message}"),
    }
}
