//! Runs drivers: the engine, the linker, compiling and its cache, instances.
//!
//! The durable thing is a `Driver` (compiled and linked once for all devices
//! that use it); an `Instance` is disposable. Never knows about clouds.

mod alerts;
mod blobs;
mod cache;
pub mod contract;
mod http;
mod inspect;
mod instance;
mod limits;
mod log;
mod metadata;
mod modbus;
mod net;
mod state;
mod storage;
mod telemetry;
mod timers;
mod wasi_sockets;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncReadExt;
use wasmtime::component::{Component, InstancePre, Linker};
use wasmtime::{Config, Engine};

pub use cache::compile_worker;
pub use inspect::{Inspection, embed_manifest, inspect};
pub use instance::{CallError, FirmwareStep, Instance};
pub use limits::{Limits, RateLimiter, TICK};
pub use log::DeviceLog;

use crate::bus::BusHandle;
use crate::device::Statistics;
use crate::manifest::Manifest;
use crate::network::Target;
use crate::router::Outlet;
use crate::storage::DeviceStorage;
use cache::Cache;
use contract::DriverIndices;
use state::State;

/// Larger components are refused before they are read: the largest toolchain,
/// Python, makes 19 MB.
pub const MAX_COMPONENT: u64 = 64 << 20;

/// The SHA-256 of a component file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Computes it.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    /// The first 12 hexadecimal digits, for people.
    pub fn short(&self) -> String {
        self.to_string().chars().take(12).collect()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How a component becomes machine code.
#[derive(Debug, Clone)]
pub enum Compiler {
    /// In a child process with a memory limit and low priority: this program.
    Child(PathBuf),
    /// In this process, on a blocking thread; for tests and `check`.
    InProcess,
}

/// See the module documentation.
#[derive(Clone)]
pub struct Sandbox {
    engine: Engine,
    linker: Arc<Linker<State>>,
    compiler: Compiler,
    cache: Option<Cache>,
}

/// A driver that is ready to make instances.
pub struct Driver {
    /// What it declares.
    pub manifest: Arc<Manifest>,
    /// Which file it is.
    pub digest: Digest,
    /// What the component imports and exports.
    pub inspection: Inspection,
    /// How long the compiler took; zero when the cache had it.
    pub compile_time: std::time::Duration,
    pre: InstancePre<State>,
    indices: DriverIndices,
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.manifest.label(), self.digest.short())
    }
}

/// What one device may use: the grants, resolved to live things.
pub struct Capabilities {
    /// Where its messages go.
    pub outlet: Arc<Outlet>,
    /// Its log.
    pub log: Arc<DeviceLog>,
    /// Its counters and last values.
    pub statistics: Arc<Statistics>,
    /// Its key-values.
    pub storage: Option<DeviceStorage>,
    /// Granted addresses for `net` and WASI sockets.
    pub tcp: Vec<Target>,
    /// Granted hosts for `http`.
    pub http: Vec<Target>,
    /// Granted buses by the driver's names for them.
    pub buses: BTreeMap<String, BusHandle>,
}

impl Sandbox {
    /// A sandbox that caches compiled code in a folder, if one is given.
    pub fn new(compiler: Compiler, cache: Option<&Path>) -> Result<Sandbox> {
        let engine = engine()?;
        let mut linker = Linker::new(&engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker).map_err(|error| anyhow!("linking WASI: {error}"))?;
        contract::Driver::add_to_linker::<_, wasmtime::component::HasSelf<State>>(&mut linker, |state| state)
            .map_err(|error| anyhow!("linking the driver contract: {error}"))?;
        let cache = cache.map(|folder| Cache::open(folder, &engine)).transpose()?;
        start_ticker(&engine)?;
        Ok(Sandbox { engine, linker: Arc::new(linker), compiler, cache })
    }

    /// Reads, checks, compiles and links a component file.
    pub async fn load(&self, path: &Path) -> Result<Driver> {
        let bytes = read_component(path).await.with_context(|| format!("reading driver {}", path.display()))?;
        self.prepare(bytes).await.with_context(|| format!("loading driver {}", path.display()))
    }

    /// Checks, compiles and links a component.
    pub async fn prepare(&self, bytes: Vec<u8>) -> Result<Driver> {
        let sandbox = self.clone();
        let work = tokio::task::spawn_blocking(move || sandbox.prepare_blocking(&bytes));
        work.await.context("compiling")?
    }

    fn prepare_blocking(&self, bytes: &[u8]) -> Result<Driver> {
        let inspection = inspect(bytes)?;
        let manifest = inspection.manifest()?;
        let digest = Digest::of(bytes);
        let (component, compile_time) = self.compile(bytes, &digest)?;
        let pre = self.linker.instantiate_pre(&component).map_err(explain_import)?;
        let indices = DriverIndices::new(&pre).map_err(|error| anyhow!("not a Sandgate driver: {error}"))?;
        Ok(Driver { manifest: Arc::new(manifest), digest, inspection, compile_time, pre, indices })
    }

    fn compile(&self, bytes: &[u8], digest: &Digest) -> Result<(Component, std::time::Duration)> {
        if let Some(component) = self.cache.as_ref().and_then(|cache| cache.find(&self.engine, digest)) {
            return Ok((component, std::time::Duration::ZERO));
        }
        let start = std::time::Instant::now();
        let code = match &self.compiler {
            Compiler::InProcess => {
                self.engine.precompile_component(bytes).map_err(|error| anyhow!("compiling: {error:#}"))?
            }
            Compiler::Child(program) => cache::compile_in_child(program, bytes)?,
        };
        let component = cache::load_code(&self.engine, &code)?;
        if let Some(cache) = &self.cache {
            cache.keep(digest, &code);
        }
        Ok((component, start.elapsed()))
    }
}

impl Driver {
    /// Whether it updates the software of the device behind it.
    pub fn updates_device(&self) -> bool {
        self.inspection.exports.iter().any(|name| name.starts_with("sandgate:driver/firmware@"))
    }

    /// Makes an instance for a device.
    pub async fn instantiate(&self, capabilities: &Capabilities, limits: Limits) -> Result<Instance, CallError> {
        let state = State::new(&self.manifest, capabilities, &limits);
        Instance::new(&self.pre, &self.indices, state, limits).await
    }
}

/// The engine that every driver runs on, also in the compile worker.
fn engine() -> Result<Engine> {
    let mut config = Config::new();
    config.epoch_interruption(true);
    // No guest needs it in contract 0.1, and a call costs a third without.
    config.concurrency_support(false);
    // Deep recursion ends in a trap before the fiber's stack does.
    config.max_wasm_stack(512 << 10);
    config.async_stack_size(1 << 20);
    Engine::new(&config).map_err(|error| anyhow!("starting the WebAssembly engine: {error}"))
}

/// Advances the epoch for as long as the engine lives. A plain thread, because
/// it must tick when all async threads are busy with guests.
fn start_ticker(engine: &Engine) -> Result<()> {
    let engine = engine.weak();
    let tick = move || {
        while let Some(engine) = engine.upgrade() {
            engine.increment_epoch();
            drop(engine);
            std::thread::sleep(TICK);
        }
    };
    std::thread::Builder::new().name("epoch".into()).spawn(tick).context("starting the epoch thread")?;
    Ok(())
}

/// Reads a component file of sensible size.
pub async fn read_component(path: &Path) -> Result<Vec<u8>> {
    let metadata = tokio::fs::metadata(path).await?;
    // A pipe or a device would be read for ever.
    if !metadata.is_file() {
        bail!("expected a file");
    }
    let size = metadata.len();
    if size > MAX_COMPONENT {
        bail!("expected a component of at most {} MiB, found {} MiB", MAX_COMPONENT >> 20, size >> 20);
    }
    // It may grow while it is read.
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    tokio::fs::File::open(path).await?.take(MAX_COMPONENT + 1).read_to_end(&mut bytes).await?;
    if bytes.len() as u64 > MAX_COMPONENT {
        bail!("expected a component of at most {} MiB, found more", MAX_COMPONENT >> 20);
    }
    Ok(bytes)
}

/// Says what a missing import means for the author.
fn explain_import(error: wasmtime::Error) -> anyhow::Error {
    let text = format!("{error:#}");
    match text.split('`').nth(1) {
        Some(name) if text.contains("component imports") => {
            anyhow!(
                "the component imports {name}, which this gateway does not offer in that form: {}",
                error.root_cause()
            )
        }
        _ => anyhow!("linking: {text}"),
    }
}
