//! The gate in a process of its own: whatever a driver computes there, its memory
//! and time are limited, it writes into no log, and it ends with the gateway.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Grounds, PATIENCE, Problem, compare};
use crate::config::{Limits, ModbusAccess, Rate, Size, Span};
use crate::device::Configuration;
use crate::io::PinKind;
use crate::receipt::Comparison;
use crate::sandbox::{Compiler, Sandbox};
use crate::tape::Tape;
use crate::worker;

/// What the process may have in memory beside what it only reserves.
const MEMORY: u64 = 1 << 30;
/// What it may say, and why it ends.
const MAX_ANSWER: u64 = 4 << 20;
const MAX_REASON: u64 = 4 << 10;
/// What it may be given.
const MAX_PART: u64 = 256 << 20;
/// For loading the code of both versions, before they run.
const LOADING: Duration = Duration::from_secs(20);

/// What two versions are compared on.
#[derive(Debug, Serialize, Deserialize)]
pub struct Order {
    /// The component that runs, and the one that shall.
    pub old: PathBuf,
    /// The same.
    pub new: PathBuf,
    /// The folder with compiled code.
    pub cache: PathBuf,
    /// What the device may do.
    pub allowed: Allowed,
}

/// `Grounds` in plain numbers and texts.
#[derive(Debug, Serialize, Deserialize)]
pub struct Allowed {
    memory: Option<u64>,
    storage: Option<u64>,
    cpu: Option<Duration>,
    call: Option<Duration>,
    telemetry: Option<(f64, f64)>,
    logs: Option<(f64, f64)>,
    tcp: Vec<String>,
    http: Vec<String>,
    /// The units on each line, where they are not those of the configuration.
    lines: BTreeMap<String, Option<Vec<u8>>>,
    /// Serial ports.
    ports: Vec<String>,
    /// Inputs and outputs.
    pins: BTreeMap<String, PinKind>,
    /// CAN buses.
    can: Vec<String>,
    configuration: Map<String, Json>,
    whole_configuration: Map<String, Json>,
}

impl From<&Grounds> for Allowed {
    fn from(grounds: &Grounds) -> Allowed {
        let Grounds { limits, tcp, http, buses, ports, pins, can, configuration } = grounds;
        let rate = |rate: Option<Rate>| rate.map(|rate| (rate.per_second, rate.burst));
        Allowed {
            memory: limits.memory.map(|size| size.0),
            storage: limits.storage.map(|size| size.0),
            cpu: limits.cpu.map(|span| span.0),
            call: limits.call.map(|span| span.0),
            telemetry: rate(limits.telemetry),
            logs: rate(limits.logs),
            tcp: tcp.iter().map(ToString::to_string).collect(),
            http: http.iter().map(ToString::to_string).collect(),
            lines: buses.iter().map(|(name, access)| (name.clone(), access.unit_numbers())).collect(),
            ports: ports.clone(),
            pins: pins.clone(),
            can: can.clone(),
            configuration: configuration.own.clone(),
            whole_configuration: configuration.whole.clone(),
        }
    }
}

impl From<Allowed> for Grounds {
    fn from(allowed: Allowed) -> Grounds {
        let rate = |rate: Option<(f64, f64)>| rate.map(|(per_second, burst)| Rate { per_second, burst });
        let targets = |texts: Vec<String>| texts.iter().filter_map(|text| text.parse().ok()).collect();
        let buses = allowed.lines.into_iter().map(|(name, units)| (name, ModbusAccess::of_units(units)));
        Grounds {
            limits: Limits {
                memory: allowed.memory.map(Size),
                storage: allowed.storage.map(Size),
                cpu: allowed.cpu.map(Span),
                call: allowed.call.map(Span),
                telemetry: rate(allowed.telemetry),
                logs: rate(allowed.logs),
                ..Limits::default()
            },
            tcp: targets(allowed.tcp),
            http: targets(allowed.http),
            buses: buses.collect(),
            ports: allowed.ports,
            pins: allowed.pins,
            can: allowed.can,
            configuration: Configuration { own: allowed.configuration, whole: allowed.whole_configuration },
        }
    }
}

/// Compares with `PROGRAM gate-worker`. The child gets the order, JSON, and the tape
/// on its standard input, which stays open: its end is the gateway's.
pub async fn compare_in_child(program: &Path, order: &Order, tape: &[u8]) -> Result<Comparison, Problem> {
    let failed = |text: String| Problem { is_of_new: false, text };
    let starting = |error: std::io::Error| failed(format!("starting {} gate-worker: {error}", program.display()));
    let (_child, mut input, output, reasons) = worker::start(program, "gate-worker").map_err(starting)?;
    let order = serde_json::to_vec(order).map_err(|error| failed(error.to_string()))?;
    let (mut answer, mut reason) = (Vec::new(), Vec::new());
    let exchange = async {
        let give = async {
            // A child that ends early has said why.
            for part in [order.as_slice(), tape] {
                let _ = input.write_all(&(part.len() as u64).to_le_bytes()).await;
                let _ = input.write_all(part).await;
            }
            let _ = input.flush().await;
        };
        let (mut output, mut reasons) = (output.take(MAX_ANSWER), reasons.take(MAX_REASON));
        let _ = tokio::join!(give, output.read_to_end(&mut answer), reasons.read_to_end(&mut reason));
    };
    if tokio::time::timeout(PATIENCE + LOADING, exchange).await.is_err() {
        return Err(Problem { is_of_new: true, text: "it computes too long on what the device has done".into() });
    }
    serde_json::from_slice(&answer).unwrap_or_else(|_| {
        let reason = String::from_utf8_lossy(&reason);
        let reason = Some(reason.trim()).filter(|reason| !reason.is_empty()).unwrap_or("out of memory or of time");
        Err(Problem { is_of_new: true, text: format!("the gate has ended without an answer: {reason}") })
    })
}

/// The child's side.
pub fn gate_worker() -> Result<()> {
    worker::limit(rustix::process::Resource::Data, MEMORY, (PATIENCE + LOADING).as_secs())?;
    let (order, tape) = (worker::read_part(MAX_PART)?, worker::read_part(MAX_PART)?);
    worker::end_with_input();
    let order: Order = serde_json::from_slice(&order).context("reading the order")?;
    let answer = carry_out(order, &tape);
    std::io::stdout().write_all(&serde_json::to_vec(&answer)?)?;
    Ok(())
}

fn carry_out(order: Order, tape: &[u8]) -> Result<Comparison, Problem> {
    let failed = |is_of_new: bool| move |error: anyhow::Error| Problem { is_of_new, text: format!("{error:#}") };
    let tape = Tape::read(tape).map_err(|text| Problem { is_of_new: false, text })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| failed(false)(anyhow!(error)))?;
    let load = |path: PathBuf, is_of_new: bool| {
        let loaded = runtime.block_on(async {
            let sandbox = Sandbox::new(Compiler::InProcess, Some(&order.cache))?;
            sandbox.load(&path).await
        });
        loaded.map(Arc::new).map_err(failed(is_of_new))
    };
    let (old, new) = (load(order.old, false)?, load(order.new, true)?);
    compare((&old, &new), &tape, &order.allowed.into())
}
