//! Machine code of components, kept on disk.
//!
//! A cache file is named by the component's digest and the engine, and starts
//! with a SHA-256 over both and the code, so a damaged file, or one of another
//! component or engine, is never run. The folder belongs to the gateway's user
//! alone: whoever can write there can run code as that user anyway.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use sha2::{Digest as _, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

use super::Digest;
use crate::files;

/// Files of other engines, and of drivers that are no longer kept, stay until there are so many.
const FILES: usize = 100;
/// Larger than any machine code that is taken.
const MAX_FILE: u64 = 128 << 20;
const CHECKSUM: usize = 32;

/// A folder of compiled components.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    folder: PathBuf,
    engine: String,
}

impl Cache {
    /// A cache in this folder, which is made when something is kept.
    pub(super) fn new(folder: &Path, engine: &Engine) -> Cache {
        let mut hasher = std::hash::DefaultHasher::new();
        std::hash::Hash::hash(&engine.precompile_compatibility_hash(), &mut hasher);
        let engine = format!("{:016x}", std::hash::Hasher::finish(&hasher));
        files::remove_parts(folder);
        Cache { folder: folder.to_owned(), engine }
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(format!("{digest}-{}.cwasm", self.engine))
    }

    /// Whether the code of a component is probably here.
    pub(super) fn holds(&self, digest: &Digest) -> bool {
        self.path(digest).exists()
    }

    /// Loads a component whose code is here and whole.
    pub(super) fn find(&self, engine: &Engine, digest: &Digest) -> Option<Component> {
        let path = self.path(digest);
        let found = match files::read(&path, MAX_FILE) {
            Ok(None) => return None,
            Ok(Some(file)) => match file.split_at_checked(CHECKSUM) {
                Some((checksum, code)) if self.checksum(digest, code) == checksum => load_code(engine, code),
                _ => Err(anyhow!("damaged")),
            },
            Err(error) => Err(error.into()),
        };
        let compiling = |error: &anyhow::Error| tracing::warn!("{}: {error:#}; compiling again", path.display());
        found.inspect_err(compiling).ok()
    }

    /// Keeps code for the next start. A full disk costs time, not function.
    pub(super) fn keep(&self, digest: &Digest, code: &[u8]) {
        let path = self.path(digest);
        let file = [&self.checksum(digest, code), code].concat();
        let kept = std::fs::create_dir_all(&self.folder).and_then(|()| files::replace(&path, &file));
        // Something else may stand there.
        if kept.is_err() && files::open(&path).is_err() {
            let _ = files::set_aside(&path);
        }
        if let Err(error) = kept {
            tracing::warn!("writing {}: {error}", path.display());
        }
        files::remove_oldest(&self.folder, FILES, is_ours);
    }

    fn checksum(&self, digest: &Digest, code: &[u8]) -> [u8; CHECKSUM] {
        Sha256::new().chain_update(&self.engine).chain_update(digest.0).chain_update(code).finalize().into()
    }
}

/// Whether a name is one of a cache file.
fn is_ours(name: &str) -> bool {
    let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let parts = name.strip_suffix(".cwasm").and_then(|name| name.split_once('-'));
    parts.is_some_and(|(digest, engine)| digest.len() == 64 && is_hex(digest) && is_hex(engine))
}

/// Makes a component of code that this program's compiler has made.
pub(super) fn load_code(engine: &Engine, code: &[u8]) -> Result<Component> {
    // SAFETY: the bytes come from `precompile_component`, directly or through a
    // cache file that only this user can write and whose checksum was verified.
    #[allow(unsafe_code)]
    let component = unsafe { Component::deserialize(engine, code) };
    component.map_err(|error| anyhow!("loading compiled code: {error:#}"))
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
        let engine = super::super::engine::engine(super::super::engine::Kind::Small).unwrap();
        let cache = Cache::new(folder.path(), &engine);
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

        // The whole code of another component under this one's name.
        let another = Digest::of(b"another");
        cache.keep(&another, &code);
        std::fs::rename(cache.path(&another), &path).unwrap();
        assert!(cache.find(&engine, &digest).is_none());

        let mut other = wasmtime::Config::new();
        other.epoch_interruption(false);
        let other = Engine::new(&other).unwrap();
        let foreign = Cache::new(folder.path(), &other);
        assert_ne!(foreign.path(&digest), cache.path(&digest));
        foreign.keep(&digest, &code);
        assert!(foreign.find(&other, &digest).is_none());
    }
}
