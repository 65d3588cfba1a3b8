//! Machine code of components: compiled in a child process, kept on disk.
//!
//! A cache file is named by the component's digest and the engine, and starts
//! with the SHA-256 of its code, so a damaged file or one of another engine is
//! never run. The folder belongs to the gateway's user alone: whoever can write
//! there can run code as that user anyway.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use wasmtime::Engine;
use wasmtime::component::Component;

use super::Digest;

/// Python components need 360 MB to compile.
const WORKER_MEMORY: u64 = 2 << 30;
/// They need 10 s of a slow processor, too.
const WORKER_SECONDS: u64 = 600;
/// Files of other engines, and of drivers that are no longer kept, stay until there are so many.
const FILES: usize = 100;
const CHECKSUM: usize = 32;

/// A folder of compiled components.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    folder: PathBuf,
    engine: String,
}

impl Cache {
    /// Opens or creates the folder.
    pub(super) fn open(folder: &Path, engine: &Engine) -> Result<Cache> {
        std::fs::create_dir_all(folder).with_context(|| format!("creating cache {}", folder.display()))?;
        let mut hasher = std::hash::DefaultHasher::new();
        std::hash::Hash::hash(&engine.precompile_compatibility_hash(), &mut hasher);
        let engine = format!("{:016x}", std::hash::Hasher::finish(&hasher));
        Ok(Cache { folder: folder.to_owned(), engine })
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(format!("{digest}-{}.cwasm", self.engine))
    }

    /// Loads a component whose code is here and whole.
    pub(super) fn find(&self, engine: &Engine, digest: &Digest) -> Option<Component> {
        let path = self.path(digest);
        let file = std::fs::read(&path).ok()?;
        let (checksum, code) = file.split_at_checked(CHECKSUM)?;
        if Digest::of(code).0 != checksum {
            tracing::warn!("cache file {} is damaged; compiling again", path.display());
            return None;
        }
        load_code(engine, code).inspect_err(|error| tracing::warn!("cache file {}: {error:#}", path.display())).ok()
    }

    /// Keeps code for the next start. A full disk costs time, not function.
    pub(super) fn keep(&self, digest: &Digest, code: &[u8]) {
        let path = self.path(digest);
        let write = || -> Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
            file.write_all(&Digest::of(code).0)?;
            file.write_all(code)?;
            file.persist(&path)?;
            Ok(())
        };
        if let Err(error) = write() {
            tracing::warn!("writing cache file {}: {error:#}", path.display());
        }
        crate::registry::remove_oldest(&self.folder, FILES, |_| false);
    }
}

/// Makes a component of code that this program's compiler has made.
pub(super) fn load_code(engine: &Engine, code: &[u8]) -> Result<Component> {
    // SAFETY: the bytes come from `precompile_component`, directly or through a
    // cache file that only this user can write and whose checksum was verified.
    #[allow(unsafe_code)]
    let component = unsafe { Component::deserialize(engine, code) };
    component.map_err(|error| anyhow!("loading compiled code: {error:#}"))
}

/// Compiles with `PROGRAM compile-worker`: a child that may use so much memory
/// and no more, and that leaves the processor to the gateway.
pub(super) fn compile_in_child(program: &Path, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut input = tempfile::NamedTempFile::new().context("creating a file for the compiler")?;
    input.write_all(bytes).context("writing a file for the compiler")?;
    let output = Command::new(program)
        .arg("compile-worker")
        .arg(input.path())
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {} compile-worker", program.display()))?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        let reason = reason.trim();
        let reason = if reason.is_empty() { "killed, out of memory or of time" } else { reason };
        bail!("compiling: {reason}");
    }
    Ok(output.stdout)
}

/// The child's side: reads a component and writes its code to standard output.
pub fn compile_worker(path: &Path) -> Result<()> {
    use rustix::process::{Resource, Rlimit, nice, setrlimit};
    let limit = Rlimit { current: Some(WORKER_MEMORY), maximum: Some(WORKER_MEMORY) };
    setrlimit(Resource::As, limit).context("limiting memory")?;
    let limit = Rlimit { current: Some(WORKER_SECONDS), maximum: Some(WORKER_SECONDS) };
    setrlimit(Resource::Cpu, limit).context("limiting time")?;
    // A refusal costs the gateway some pace, nothing else.
    let _ = nice(10);
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(super::MAX_COMPONENT).read_to_end(&mut bytes)?;
    let code = super::engine()?.precompile_component(&bytes).map_err(|error| anyhow!("{error:#}"))?;
    std::io::stdout().write_all(&code)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiled(engine: &Engine) -> (Digest, Vec<u8>) {
        let component = b"\0asm\x0d\0\x01\0";
        (Digest::of(component), engine.precompile_component(component).unwrap())
    }

    #[test]
    fn a_damaged_or_foreign_cache_file_is_never_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let engine = super::super::engine().unwrap();
        let cache = Cache::open(folder.path(), &engine).unwrap();
        let (digest, code) = compiled(&engine);
        assert!(cache.find(&engine, &digest).is_none());
        cache.keep(&digest, &code);
        assert!(cache.find(&engine, &digest).is_some());

        let path = cache.path(&digest);
        let whole = std::fs::read(&path).unwrap();
        for damaged in [whole[..whole.len() - 1].to_vec(), whole[..10].to_vec(), Vec::new(), {
            let mut flipped = whole.clone();
            flipped[100] ^= 1;
            flipped
        }] {
            std::fs::write(&path, damaged).unwrap();
            assert!(cache.find(&engine, &digest).is_none());
        }

        let mut other = wasmtime::Config::new();
        other.epoch_interruption(false);
        let other = Engine::new(&other).unwrap();
        let foreign = Cache::open(folder.path(), &other).unwrap();
        assert_ne!(foreign.path(&digest), cache.path(&digest));
        foreign.keep(&digest, &code);
        assert!(foreign.find(&other, &digest).is_none());
    }
}
