//! Runs drivers: the engine, the linker, compiling and its cache, instances.
//!
//! The durable thing is a `Driver` (compiled and linked once for all devices
//! that use it); an `Instance` is disposable. Never knows about clouds.

mod alerts;
mod blobs;
pub mod boundary;
mod cache;
mod can;
mod compiler;
pub mod contract;
mod engine;
mod http;
mod instance;
mod io;
mod limits;
mod log;
mod metadata;
mod modbus;
mod net;
pub mod replay;
mod serial;
mod shares;
mod stacks;
mod state;
mod storage;
mod surroundings;
mod telemetry;
mod timers;
mod trap;
mod wasi_sockets;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use wasmtime::Engine;
use wasmtime::component::{Component, InstancePre, Linker};

pub use compiler::{Compiler, compile_worker};
pub use instance::{CallError, FirmwareStep, Instance};
pub use limits::{Limits, RateLimiter, TICK};
pub use log::DeviceLog;
use sandgate_manifest::component::CONTRACT;
pub use sandgate_manifest::component::{Inspection, embed_files, embed_manifest, inspect};
pub use surroundings::Surroundings;

use crate::blueprint::Blueprint;
use crate::bus::TcpLines;
use crate::files;
use crate::lines::Granted;
use crate::manifest::files::Files;
use crate::manifest::{Manifest, component};
use crate::message::DeviceId;
use crate::network::{Lookups, Target};
use crate::router::Outlet;
use crate::sockets::Sockets;
use crate::statistics::Statistics;
use crate::storage::DeviceStorage;
use crate::tape::{self, Deck, DriverOnTape, Header, Tapes};
use crate::text;
use cache::Cache;
use compiler::{Compilations, Compiled};
use contract::DriverIndices;
use engine::Kind;
use shares::Shares;
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

/// See the module documentation.
#[derive(Clone)]
pub struct Sandbox {
    small: Runner,
    large: Runner,
    compilations: Compilations,
    /// Code in use, by its digest.
    code: Arc<Mutex<HashMap<Digest, Weak<Code>>>>,
    shares: Shares,
}

/// What runs components of one kind.
#[derive(Clone)]
struct Runner {
    engine: Engine,
    linker: Arc<Linker<State>>,
    cache: Option<Cache>,
}

impl Runner {
    fn new(kind: Kind, cache: Option<&Path>) -> Result<Runner> {
        let engine = engine::engine(kind)?;
        let mut linker = Linker::new(&engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker).map_err(|error| anyhow!("linking WASI: {error}"))?;
        boundary::add_to_linker(&mut linker).map_err(|error| anyhow!("linking clocks and chance: {error}"))?;
        wasi_sockets::add_to_linker(&mut linker).map_err(|error| anyhow!("linking WASI sockets: {error}"))?;
        contract::Driver::add_to_linker::<_, wasmtime::component::HasSelf<State>>(&mut linker, |state| state)
            .map_err(|error| anyhow!("linking the driver contract: {error}"))?;
        let cache = cache.map(|folder| Cache::new(folder, &engine));
        Ok(Runner { engine, linker: Arc::new(linker), cache })
    }
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
    pub compile_time: Duration,
    files: Arc<Files>,
    code: Arc<Code>,
    shares: Shares,
}

/// What runs: the same for all drivers of one runtime.
struct Code {
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
    /// Its counters and last values.
    pub statistics: Arc<Statistics>,
    /// Its key-values.
    pub storage: Option<DeviceStorage>,
    /// Granted addresses for `net` and WASI sockets.
    pub tcp: Vec<Target>,
    /// Granted hosts for `http`.
    pub http: Vec<Target>,
    /// Those of them whose certificate is not looked at.
    pub unverified_tls: Vec<Target>,
    /// Granted lines by the driver's names for them.
    pub lines: Granted,
    /// Connections that it may open, with all others.
    pub sockets: Sockets,
    /// Look-ups of names, with all others.
    pub lookups: Lookups,
    /// Modbus TCP by address, with all others.
    pub tcp_lines: TcpLines,
    /// Its tapes, if it may have any.
    pub tapes: Option<Tapes>,
    /// What is simulated around it; nothing by default.
    pub surroundings: Surroundings,
}

impl Capabilities {
    /// Those of a device that may do nothing.
    fn nothing(device: &str) -> Capabilities {
        Capabilities {
            outlet: Arc::new(Outlet { device: DeviceId::new(device), routes: Vec::new() }),
            statistics: Arc::default(),
            storage: None,
            tcp: Vec::new(),
            http: Vec::new(),
            unverified_tls: Vec::new(),
            lines: Granted::default(),
            sockets: Sockets::new(0),
            lookups: Lookups::new(),
            tcp_lines: TcpLines::default(),
            tapes: None,
            surroundings: Surroundings::default(),
        }
    }
}

impl Sandbox {
    /// A sandbox that caches compiled code in a folder, if one is given.
    pub fn new(compiler: Compiler, cache: Option<&Path>) -> Result<Sandbox> {
        let (small, large) = (Runner::new(Kind::Small, cache)?, Runner::new(Kind::Large, cache)?);
        engine::start_ticker(&[small.engine.clone(), large.engine.clone()])?;
        let compilations = Compilations::new(compiler);
        Ok(Sandbox { small, large, compilations, code: Arc::default(), shares: Shares::new() })
    }

    fn runner(&self, kind: Kind) -> &Runner {
        match kind {
            Kind::Small => &self.small,
            Kind::Large => &self.large,
        }
    }

    /// Reads, checks, compiles and links a component file.
    pub async fn load(&self, path: &Path) -> Result<Driver> {
        let bytes = read_component(path).await.with_context(|| format!("reading driver {}", path.display()))?;
        self.prepare(bytes).await.with_context(|| format!("loading driver {}", path.display()))
    }

    /// Checks, compiles and links a component.
    pub async fn prepare(&self, bytes: Bytes) -> Result<Driver> {
        self.prepare_telling(bytes, || {}).await
    }

    /// The same; tells when it has to compile.
    pub async fn prepare_telling(&self, bytes: Bytes, compiles: impl FnOnce()) -> Result<Driver> {
        let look = move || {
            let mut inspection = inspect(&bytes)?;
            let manifest = inspection.manifest()?;
            let files = std::mem::take(&mut inspection.files);
            let code = match component::code(&bytes) {
                Cow::Borrowed(code) => bytes.slice_ref(code),
                Cow::Owned(code) => code.into(),
            };
            Ok::<_, anyhow::Error>((inspection, manifest, files, Digest::of(&bytes), Digest::of(&code), code))
        };
        let (inspection, manifest, files, digest, code_digest, code) = blocking(look).await??;
        let (code, compile_time) = self.code(code, code_digest, compiles).await?;
        let (manifest, files, shares) = (Arc::new(manifest), Arc::new(files), self.shares.clone());
        Ok(Driver { manifest, digest, inspection, compile_time, files, code, shares })
    }

    /// The linked code of a component, shared with others that run it.
    async fn code(&self, bytes: Bytes, digest: Digest, compiles: impl FnOnce()) -> Result<(Arc<Code>, Duration)> {
        let known = || lock(&self.code).get(&digest).and_then(Weak::upgrade);
        if let Some(code) = known() {
            return Ok((code, Duration::ZERO));
        }
        let runner = self.runner(Kind::of(&bytes));
        if !runner.cache.as_ref().is_some_and(|cache| cache.holds(&digest)) {
            compiles();
        }
        let (component, compile_time) = self.compile(runner, bytes, digest).await?;
        let linker = Arc::clone(&runner.linker);
        let (pre, indices) = blocking(move || link(&linker, &component)).await??;
        // Somebody else may have linked it meanwhile.
        let code = known().unwrap_or_else(|| Arc::new(Code { pre, indices }));
        let mut all = lock(&self.code);
        all.retain(|_, code| code.strong_count() > 0);
        all.insert(digest, Arc::downgrade(&code));
        Ok((code, compile_time))
    }

    /// Whether a gateway takes a component. Compiles it here and now.
    pub fn try_component(&self, bytes: &[u8]) -> Result<()> {
        inspect(bytes)?.manifest()?;
        let code = component::code(bytes);
        let runner = self.runner(Kind::of(&code));
        let component = cache::load_code(&runner.engine, &compiler::compile_here(&code)?)?;
        link(&runner.linker, &component).map(drop)
    }

    /// The code of a component: from the cache, or made now.
    async fn compile(&self, runner: &Runner, bytes: Bytes, digest: Digest) -> Result<(Component, Duration)> {
        let begin = std::time::Instant::now();
        let find = async || {
            let (engine, cache) = (runner.engine.clone(), runner.cache.clone()?);
            blocking(move || cache.find(&engine, &digest)).await.ok().flatten()
        };
        if let Some(component) = find().await {
            return Ok((component, Duration::ZERO));
        }
        let code = match self.compilations.run(&bytes, find).await? {
            Compiled::Found(component) => return Ok((component, Duration::ZERO)),
            Compiled::New(code) => code,
        };
        let (engine, cache) = (runner.engine.clone(), runner.cache.clone());
        let load = move || {
            let component = cache::load_code(&engine, &code)?;
            if let Some(cache) = cache {
                cache.keep(&digest, &code);
            }
            Ok::<_, anyhow::Error>(component)
        };
        Ok((blocking(load).await??, begin.elapsed()))
    }
}

/// Finds all that a component imports, and what a driver has to export.
fn link(linker: &Linker<State>, component: &Component) -> Result<(InstancePre<State>, DriverIndices)> {
    let pre = linker.instantiate_pre(component).map_err(explain_import)?;
    let indices = DriverIndices::new(&pre)
        .map_err(|error| anyhow!("not a Sandgate driver: {}", text::shortened(&error.to_string(), MAX_REASON)))?;
    Ok((pre, indices))
}

/// Longer errors of the engine are cut: they may list what a component holds.
const MAX_REASON: usize = 1000;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does what computes or waits for the disk on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.context("a bug in the gateway, or in its compiler")
}

impl Driver {
    /// Whether it updates the software of the device behind it.
    pub fn updates_device(&self) -> bool {
        self.inspection.exports.iter().any(|name| name.starts_with("sandgate:driver/firmware@"))
    }

    /// The header of a tape of a device with this driver, without what a recorder and an instance know.
    pub fn header(&self, device: &str) -> Header {
        let of = &self.manifest.driver;
        let (name, version) = (of.name.clone(), of.version.clone());
        Header {
            host: env!("CARGO_PKG_VERSION").into(),
            device: device.to_owned(),
            driver: DriverOnTape { name, version, digest: self.digest.to_string() },
            began: 0,
            is_whole: false,
            configuration: serde_json::Value::Null,
            limits: tape::Limits { memory: 0, cpu_ms: 0, call_ms: 0 },
            memory: 0,
            handles: BTreeMap::new(),
            problem: None,
        }
    }

    /// What is wrong with the scripts of a driver, without running them: file, line
    /// and reason of each. Nothing where the runtime does not say.
    pub async fn script_problems(&self) -> Result<Vec<String>, CallError> {
        let capabilities = Capabilities::nothing("scripts");
        let log = DeviceLog::silent(&capabilities, self.manifest.label());
        let mut instance = self.instantiate(&capabilities, Arc::new(log), Limits::default()).await?;
        instance.script_problems().await
    }

    /// Makes an instance for a device.
    pub async fn instantiate(
        &self,
        capabilities: &Capabilities,
        log: Arc<DeviceLog>,
        limits: Limits,
    ) -> Result<Instance, CallError> {
        let deck = capabilities.tapes.as_ref().map_or(Deck::Off, Tapes::deck);
        self.instantiate_with(capabilities, log, limits, deck).await
    }

    /// The same with something else at its boundary.
    async fn instantiate_with(
        &self,
        capabilities: &Capabilities,
        log: Arc<DeviceLog>,
        limits: Limits,
        deck: Deck,
    ) -> Result<Instance, CallError> {
        let state = State::new(self, capabilities, log, &limits, deck);
        // Whoever waits for others lets a clock that jumps go on.
        let is_alone = capabilities.surroundings.seed.is_some();
        let shares = if is_alone { Shares::new() } else { self.shares.clone() };
        let share = shares.share(std::time::Instant::now());
        Instance::new(&self.code.pre, &self.code.indices, state, limits, share).await
    }
}

/// Reads a component file of sensible size, or makes one of a blueprint's folder.
pub async fn read_component(path: &Path) -> Result<Bytes> {
    let path = path.to_owned();
    let read = move || match path.is_dir() {
        true => Blueprint::of_folder(&path)?.component().map(Some),
        false => Ok(files::read(&path, MAX_COMPONENT)?),
    };
    Ok(blocking(read).await??.ok_or_else(|| anyhow!("there is no such file"))?.into())
}

/// What helps when an import is of a later version of the contract.
fn newer(import: &str) -> String {
    let patch = |version: &str| version.rsplit_once('.').and_then(|(_, patch)| patch.parse::<u32>().ok());
    let asked = import.strip_prefix("sandgate:driver/").and_then(|name| name.split_once('@')).map(|(_, asked)| asked);
    match asked {
        Some(asked) if patch(asked) > patch(CONTRACT) => {
            format!("; it is built for sandgate:driver {asked}, this gateway has {CONTRACT}: take a newer gateway")
        }
        _ => String::new(),
    }
}

/// Says what a missing import means for the author.
fn explain_import(error: wasmtime::Error) -> anyhow::Error {
    let text = format!("{error:#}");
    let text = text::shortened(&text, MAX_REASON);
    match text.split('`').nth(1) {
        Some(name) if text.contains("component imports") => {
            let reason = error.root_cause().to_string();
            anyhow!(
                "the component imports {name}, which this gateway does not offer in that form: {}{}",
                text::shortened(&reason, MAX_REASON),
                newer(name)
            )
        }
        _ => anyhow!("linking: {text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blueprint::Sources;

    const MANIFEST: &str =
        "{blueprint_spec: device/3.0, display_name: X, runtime: {type: lua, options: {file: a.lua}}}";

    #[tokio::test]
    async fn drivers_of_one_runtime_share_its_code_and_nothing_else() {
        let sandbox = Sandbox::new(Compiler::InProcess, None).unwrap();
        let driver = async |script: &str| {
            let files = [("manifest.yml", MANIFEST), ("a.lua", script)];
            let sources: Sources =
                files.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec())).collect();
            let component = Blueprint::read("x", &sources).unwrap().component().unwrap();
            sandbox.prepare(component.into()).await.unwrap()
        };
        let (one, other) = (driver("return 1").await, driver("return = 2").await);
        assert!(Arc::ptr_eq(&one.code, &other.code) && one.digest != other.digest);
        assert!(!one.compile_time.is_zero() && other.compile_time.is_zero());
        assert_eq!(one.script_problems().await.unwrap(), Vec::<String>::new());
        assert!(other.script_problems().await.unwrap()[0].starts_with("a.lua:1: "));
        // Nobody keeps it for ever.
        drop((one, other));
        assert!(!driver("return 1").await.compile_time.is_zero());
    }
}
