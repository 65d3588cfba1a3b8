//! Drivers by their digest: compiled once, shared by all devices that use them.
//!
//! Keeps a copy of each driver's file in the state folder, so that the last
//! good one is still there when its file is overwritten by a broken one.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use anyhow::{Context, Result, bail};
use tokio::sync::OnceCell;

use crate::sandbox::{Digest, Driver, Sandbox, read_component};

/// Copies that no pin needs are kept up to this number, newest first.
const COPIES: usize = 20;

/// See the module documentation.
pub struct Registry {
    sandbox: Sandbox,
    copies: Option<PathBuf>,
    loading: Mutex<HashMap<Digest, Weak<OnceCell<Arc<Driver>>>>>,
    known: Mutex<HashMap<Digest, Weak<Driver>>>,
}

/// Where a driver comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A component file.
    File(PathBuf),
    /// A kept copy.
    Copy(String),
}

impl Registry {
    /// A registry that keeps copies in a folder, if one is given.
    pub fn open(sandbox: Sandbox, copies: Option<&Path>) -> Result<Registry> {
        if let Some(folder) = copies {
            std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        }
        let copies = copies.map(Path::to_owned);
        Ok(Registry { sandbox, copies, loading: Mutex::default(), known: Mutex::default() })
    }

    /// Loads a driver. Whoever asks for the same one at the same time waits
    /// for the same compilation.
    pub async fn load(&self, origin: &Origin) -> Result<Arc<Driver>> {
        let (path, expected) = match origin {
            Origin::File(path) => (path.clone(), None),
            Origin::Copy(digest) => (self.copy_path(digest)?, Some(digest)),
        };
        let bytes = read_component(&path).await.with_context(|| format!("reading driver {}", path.display()))?;
        let digest = Digest::of(&bytes);
        if expected.is_some_and(|expected| *expected != digest.to_string()) {
            bail!("the kept copy {} is damaged", path.display());
        }
        if let Some(driver) = lock(&self.known).get(&digest).and_then(Weak::upgrade) {
            return Ok(driver);
        }
        let cell = self.cell(digest);
        let driver = cell
            .get_or_try_init(|| async {
                let driver = self.sandbox.prepare(bytes.clone()).await;
                driver.with_context(|| format!("loading driver {}", path.display())).map(Arc::new)
            })
            .await?;
        lock(&self.known).insert(digest, Arc::downgrade(driver));
        self.keep_copy(&digest, &bytes);
        Ok(Arc::clone(driver))
    }

    /// The digest of a file as it is now.
    pub async fn digest(&self, path: &Path) -> Result<Digest> {
        Ok(Digest::of(&read_component(path).await?))
    }

    fn cell(&self, digest: Digest) -> Arc<OnceCell<Arc<Driver>>> {
        let mut loading = lock(&self.loading);
        loading.retain(|_, cell| cell.strong_count() > 0);
        if let Some(cell) = loading.get(&digest).and_then(Weak::upgrade) {
            return cell;
        }
        let cell = Arc::new(OnceCell::new());
        loading.insert(digest, Arc::downgrade(&cell));
        cell
    }

    fn copy_path(&self, digest: &str) -> Result<PathBuf> {
        match &self.copies {
            Some(folder) if digest.chars().all(|c| c.is_ascii_hexdigit()) => Ok(folder.join(format!("{digest}.wasm"))),
            _ => bail!("no copy of driver {digest} is kept"),
        }
    }

    fn keep_copy(&self, digest: &Digest, bytes: &[u8]) {
        let Some(folder) = &self.copies else { return };
        let path = folder.join(format!("{digest}.wasm"));
        if path.exists() {
            return;
        }
        let write = || -> std::io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            std::io::Write::write_all(&mut file, bytes)?;
            file.persist(&path)?;
            Ok(())
        };
        if let Err(error) = write() {
            tracing::warn!("keeping a copy of driver {}: {error}", digest.short());
        }
    }

    /// Removes old copies that nobody needs.
    pub fn prune(&self, needed: impl Fn(&str) -> bool) {
        if let Some(folder) = &self.copies {
            remove_oldest(folder, COPIES, needed);
        }
    }
}

/// Removes the oldest files of a folder, but for so many and for those whose
/// names, without extension, are needed.
pub(crate) fn remove_oldest(folder: &Path, keep: usize, needed: impl Fn(&str) -> bool) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let mut spare: Vec<_> = entries
        .flatten()
        .filter(|entry| !entry.path().file_stem().is_some_and(|name| needed(&name.to_string_lossy())))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    spare.sort();
    let surplus = spare.len().saturating_sub(keep);
    for (_, path) in spare.iter().take(surplus) {
        if let Err(error) = std::fs::remove_file(path) {
            tracing::warn!("removing {}: {error}", path.display());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
