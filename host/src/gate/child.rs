//! The gate in a process of its own: whatever a driver computes there, its memory
//! and time are limited, it writes into no log, and it ends with the gateway.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::{Grounds, PATIENCE, Problem, compare};
use crate::config::{Limits, ModbusAccess, Rate, Size, Span};
use crate::device::Configuration;
use crate::receipt::Comparison;
use crate::sandbox::{Compiler, Sandbox};
use crate::tape::Tape;

/// What the process may have in memory beside what it only reserves.
const MEMORY: u64 = 1 << 30;
/// What it may say.
const MAX_ANSWER: u64 = 4 << 20;
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
    configuration: Map<String, Json>,
    whole_configuration: Map<String, Json>,
}

impl From<&Grounds> for Allowed {
    fn from(grounds: &Grounds) -> Allowed {
        let Grounds { limits, tcp, http, buses, configuration } = grounds;
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
            configuration: Configuration { own: allowed.configuration, whole: allowed.whole_configuration },
        }
    }
}

/// Compares with `PROGRAM gate-worker`. The child gets the order, a line of JSON,
/// and the tape on its standard input, which stays open: its end is the gateway's.
pub async fn compare_in_child(program: &Path, order: &Order, tape: &[u8]) -> Result<Comparison, Problem> {
    let failed = |text: String| Problem { is_of_new: false, text };
    let starting = |error: std::io::Error| failed(format!("starting {} gate-worker: {error}", program.display()));
    let mut child = Command::new(program)
        .arg("gate-worker")
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(starting)?;
    let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(failed("the gate has no pipes".into()));
    };
    let mut line = serde_json::to_vec(order).map_err(|error| failed(error.to_string()))?;
    line.push(b'\n');
    let mut answer = Vec::new();
    let exchange = async {
        let give = async {
            // A child that ends early has said why.
            let _ = input.write_all(&(line.len() as u64).to_le_bytes()).await;
            let _ = input.write_all(&line).await;
            let _ = input.write_all(&(tape.len() as u64).to_le_bytes()).await;
            let _ = input.write_all(tape).await;
            let _ = input.flush().await;
        };
        let mut output = output.take(MAX_ANSWER);
        let _ = tokio::join!(give, output.read_to_end(&mut answer));
    };
    if tokio::time::timeout(PATIENCE + LOADING, exchange).await.is_err() {
        return Err(Problem { is_of_new: true, text: "it computes too long on what the device has done".into() });
    }
    let ended = "the gate has ended without an answer, out of memory or of time";
    serde_json::from_slice(&answer).unwrap_or_else(|_| Err(Problem { is_of_new: true, text: ended.into() }))
}

/// The child's side.
pub fn gate_worker() -> Result<()> {
    use rustix::process::{Resource, Rlimit, nice, setrlimit};
    let limit = Rlimit { current: Some(MEMORY), maximum: Some(MEMORY) };
    setrlimit(Resource::Data, limit).context("limiting memory")?;
    let seconds = (PATIENCE + LOADING).as_secs();
    let limit = Rlimit { current: Some(seconds), maximum: Some(seconds) };
    setrlimit(Resource::Cpu, limit).context("limiting time")?;
    // A refusal costs the gateway some pace, nothing else.
    let _ = nice(10);
    let (line, tape) = (read_part()?, read_part()?);
    std::thread::spawn(|| {
        // The input ends when nobody waits any more.
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(1);
    });
    let order: Order = serde_json::from_slice(&line).context("reading the order")?;
    let answer = carry_out(order, &tape);
    std::io::stdout().write_all(&serde_json::to_vec(&answer)?)?;
    Ok(())
}

fn read_part() -> Result<Vec<u8>> {
    let (mut size, mut bytes) = ([0; 8], Vec::new());
    let mut input = std::io::stdin();
    input.read_exact(&mut size)?;
    input.take(u64::from_le_bytes(size)).read_to_end(&mut bytes)?;
    Ok(bytes)
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
