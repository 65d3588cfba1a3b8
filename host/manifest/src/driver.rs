//! The section `driver:`: what this gateway needs to know beside the blueprint.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::target::Target;
use crate::units::{Rate, Size, Span};

/// What this gateway needs to know beside the blueprint.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriverSection {
    /// Lower-case words joined by `-`, such as `power-meter-pm2100`.
    pub name: String,
    /// Semantic version of the driver.
    pub version: String,
    /// What the driver wants to use. The operator grants it.
    #[serde(default)]
    pub requests: Requests,
    /// What the driver needs; the operator's limits win.
    #[serde(default)]
    pub limits: RequestedLimits,
    /// What this gateway needs to know of commands, by name.
    #[serde(default)]
    pub commands: BTreeMap<String, CommandTerms>,
}

/// On which terms a command is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CommandTerms {
    /// Whether it does no harm when it is carried out twice: it is then carried
    /// out again where a crash of the gateway cut it short. Default false.
    pub idempotent: bool,
    /// How long after it came it may be started, if that is less than the
    /// gateway's `command_deadline`.
    pub deadline: Option<Span>,
}

/// What a driver wants to use.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Requests {
    /// Names of Modbus lines; the operator's grant says which bus each is. `*`
    /// stands for every line that is granted, by the name that it is granted by.
    pub modbus: Vec<String>,
    /// Names of serial ports, in the same way.
    pub serial: Vec<String>,
    /// Names of CAN buses, in the same way.
    pub can: Vec<String>,
    /// Names of inputs and outputs, in the same way.
    pub io: Vec<String>,
    /// `host:port` patterns for `net` and WASI sockets.
    pub tcp: Vec<Target>,
    /// `host:port` patterns for `http`.
    pub http: Vec<Target>,
    /// What a device may do without: a line or an address, whichever it has.
    pub optional: BTreeSet<RequestKind>,
}

/// A kind of request, by its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // the names say it all
pub enum RequestKind {
    Modbus,
    Serial,
    Can,
    Io,
    Tcp,
    Http,
}

impl RequestKind {
    /// Its key under `driver.requests`, and under a device's `grants`.
    pub fn key(self) -> &'static str {
        match self {
            RequestKind::Modbus => "modbus",
            RequestKind::Serial => "serial",
            RequestKind::Can => "can",
            RequestKind::Io => "io",
            RequestKind::Tcp => "tcp",
            RequestKind::Http => "http",
        }
    }

    /// What one of them is called for people.
    pub fn noun(self) -> &'static str {
        match self {
            RequestKind::Modbus => "Modbus line",
            RequestKind::Serial => "serial port",
            RequestKind::Can => "CAN bus",
            RequestKind::Io => "input or output",
            RequestKind::Tcp => "TCP address",
            RequestKind::Http => "web server",
        }
    }
}

/// In place of a line's name: whichever are granted.
const ANY_LINE: &str = "*";

/// One kind of request, of all that there are.
#[derive(Debug, Clone, PartialEq)]
pub struct Requested {
    /// Its key under `driver.requests`, and under a device's `grants`.
    pub key: &'static str,
    /// What it is called for people.
    pub title: &'static str,
    /// The import of the contract that cannot do without.
    pub import: &'static str,
    /// Whether something else than that import makes use of it.
    pub is_shared: bool,
    /// What is asked for.
    pub items: Vec<String>,
}

impl Requests {
    /// All kinds, with what is asked for.
    pub fn list(&self) -> [Requested; 6] {
        let texts = |targets: &[Target]| targets.iter().map(ToString::to_string).collect();
        let of = |key, title, import, items| Requested { key, title, import, is_shared: key == "tcp", items };
        [
            of("modbus", "Modbus lines", "modbus", self.modbus.clone()),
            of("serial", "serial ports", "serial", self.serial.clone()),
            of("can", "CAN buses", "can", self.can.clone()),
            of("io", "inputs and outputs", "io", self.io.clone()),
            // WASI sockets use it as well.
            of("tcp", "TCP", "net", texts(&self.tcp)),
            of("http", "HTTP", "http", texts(&self.http)),
        ]
    }

    /// The kinds that are patterns of addresses.
    pub fn targets(&self) -> [(RequestKind, &'static str, &[Target]); 2] {
        [(RequestKind::Tcp, "tcp", &self.tcp), (RequestKind::Http, "http", &self.http)]
    }

    /// The kinds that are names, for each of which the operator says which line it is.
    pub fn names(&self) -> [(RequestKind, &[String]); 4] {
        [
            (RequestKind::Modbus, &self.modbus),
            (RequestKind::Serial, &self.serial),
            (RequestKind::Can, &self.can),
            (RequestKind::Io, &self.io),
        ]
    }

    /// Whether a line of this name may be used where it is granted.
    pub fn covers(&self, kind: RequestKind, name: &str) -> bool {
        let mut names = self.names().into_iter().filter(|(own, _)| *own == kind).flat_map(|(_, names)| names);
        names.any(|own| own == name || own == ANY_LINE)
    }

    /// The lines that have a name here.
    pub fn lines(&self) -> impl Iterator<Item = (RequestKind, &String)> {
        let all = self.names().into_iter().flat_map(|(kind, names)| names.iter().map(move |name| (kind, name)));
        all.filter(|(_, name)| *name != ANY_LINE)
    }

    /// The lines without which a device cannot run.
    pub fn needed_lines(&self) -> impl Iterator<Item = (RequestKind, &String)> {
        self.lines().filter(|(kind, _)| !self.optional.contains(kind))
    }
}

/// What a driver needs at least.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RequestedLimits {
    /// Linear memory; default 32 MiB, at most 128 MiB.
    pub memory: Option<Size>,
    /// CPU time of one call; default 500 ms, at most 5 s.
    pub cpu: Option<Span>,
    /// Wall-clock time of one call; default 10 s, at most 60 s.
    pub call: Option<Span>,
    /// Samples and property sets; default 20/s.
    pub telemetry: Option<Rate>,
    /// Log lines; default 20/s.
    pub logs: Option<Rate>,
}
