//! The section `driver:`: what this gateway needs to know beside the blueprint.

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
}

/// What a driver wants to use.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Requests {
    /// Names of Modbus lines; the operator's grant says which bus each is.
    pub modbus: Vec<String>,
    /// `host:port` patterns for `net` and WASI sockets.
    pub tcp: Vec<Target>,
    /// `host:port` patterns for `http`.
    pub http: Vec<Target>,
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
