//! Compiling components, in a child process: its memory and time are
//! limited, and it ends with the gateway, however that ends.

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;

use super::engine::{Kind, engine};
use crate::shortage::Shortage;
use crate::worker;

/// What the system kills with when it is out of memory.
const SIGKILL: i32 = rustix::process::Signal::KILL.as_raw();
/// Python components need 360 MB to compile.
const WORKER_MEMORY: u64 = 2 << 30;
/// They need 10 s of a slow processor, too.
const WORKER_SECONDS: u64 = 600;
/// A machine that is busy gives the child little of its time.
const LONGEST: Duration = Duration::from_secs(3600);
/// Machine code stays in the gateway's memory; that of Python takes 50 MiB.
const MAX_CODE: u64 = 80 << 20;
const MAX_REASON: u64 = 4 << 10;

/// How a component becomes machine code.
#[derive(Debug, Clone)]
pub enum Compiler {
    /// In a child process with a memory limit and low priority: this program.
    Child(PathBuf),
    /// In this process, on a blocking thread; for tests and `check`.
    InProcess,
}

/// Compiles one component at a time: each takes a processor and up to some
/// hundred megabytes.
#[derive(Debug, Clone)]
pub(super) struct Compilations {
    compiler: Compiler,
    turn: Arc<Semaphore>,
}

impl Compilations {
    pub(super) fn new(compiler: Compiler) -> Self {
        Compilations { compiler, turn: Arc::new(Semaphore::new(1)) }
    }

    /// Waits for its turn and compiles, unless `found` has the code by then.
    pub(super) async fn run<T>(&self, bytes: &Bytes, found: impl AsyncFnOnce() -> Option<T>) -> Result<Compiled<T>> {
        let _turn = self.turn.acquire().await?;
        if let Some(component) = found().await {
            return Ok(Compiled::Found(component));
        }
        let code = match &self.compiler {
            Compiler::Child(program) => in_child(program, bytes).await?,
            Compiler::InProcess => {
                let bytes = bytes.clone();
                tokio::task::spawn_blocking(move || compile_here(&bytes)).await??
            }
        };
        within_bounds(code).map(Compiled::New)
    }
}

/// Compiles on this thread.
pub(super) fn compile_here(bytes: &[u8]) -> Result<Vec<u8>> {
    within_bounds(
        engine(Kind::of(bytes))?.precompile_component(bytes).map_err(|error| anyhow!("compiling: {error:#}"))?,
    )
}

fn within_bounds(code: Vec<u8>) -> Result<Vec<u8>> {
    ensure!(code.len() as u64 <= MAX_CODE, "compiling: expected at most {} MiB of code, found more", MAX_CODE >> 20);
    Ok(code)
}

/// What came of a compilation.
pub(super) enum Compiled<T> {
    /// Somebody else has compiled it meanwhile.
    Found(T),
    /// The machine code.
    New(Vec<u8>),
}

/// Compiles with `PROGRAM compile-worker`. The child gets the component on its
/// standard input, which stays open: its end is the gateway's.
async fn in_child(program: &Path, bytes: &Bytes) -> Result<Vec<u8>> {
    let starting = || format!("starting {} compile-worker", program.display());
    let (mut child, mut input, output, reasons) = worker::start(program, "compile-worker").with_context(starting)?;
    let (mut code, mut reason) = (Vec::new(), Vec::new());
    let exchange = async {
        let give = async {
            // A child that ends early says why on its standard error.
            let _ = input.write_all(&(bytes.len() as u64).to_le_bytes()).await;
            let _ = input.write_all(bytes).await;
            let _ = input.flush().await;
        };
        let (mut output, mut reasons) = (output.take(MAX_CODE + 1), reasons.take(MAX_REASON));
        let _ = tokio::join!(give, output.read_to_end(&mut code), reasons.read_to_end(&mut reason));
        child.wait().await
    };
    let status = match tokio::time::timeout(LONGEST, exchange).await {
        Ok(status) => status.context("waiting for the compiler")?,
        Err(_) => bail!("compiling: it took over {} s", LONGEST.as_secs()),
    };
    if status.signal() == Some(SIGKILL) {
        bail!(Shortage("compiling: killed; the machine is probably out of memory".into()));
    }
    if !status.success() {
        let reason = String::from_utf8_lossy(&reason);
        let reason = reason.trim();
        bail!("compiling: {}", if reason.is_empty() { "killed, out of memory or of time" } else { reason });
    }
    Ok(code)
}

/// The child's side: reads a component from standard input and writes its code
/// to standard output.
pub fn compile_worker() -> Result<()> {
    worker::limit(rustix::process::Resource::As, WORKER_MEMORY, WORKER_SECONDS)?;
    let bytes = worker::read_part(super::MAX_COMPONENT)?;
    worker::end_with_input();
    let code = engine(Kind::of(&bytes))?.precompile_component(&bytes).map_err(|error| anyhow!("{error:#}"))?;
    std::io::stdout().write_all(&code)?;
    Ok(())
}
