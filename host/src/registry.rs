//! Drivers by their digest: compiled once, shared by all devices that use them.
//!
//! A file that has not changed is read once. Keeps a copy of each driver's file
//! in the state folder, so that the last good one is still there when its file
//! is overwritten by a broken one.

use std::collections::HashMap;
use std::fmt;
use std::fs::Metadata;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use anyhow::{Result, bail, ensure};
use bytes::Bytes;
use tokio::sync::{OnceCell, Semaphore};

use crate::blueprint;
use crate::files;
use crate::manifest::Manifest;
use crate::sandbox::{Digest, Driver, MAX_COMPONENT, Sandbox, inspect, read_component};

/// Copies that nobody needs are kept up to this number, newest first.
const COPIES: usize = 20;
/// Files that are read at a time: each may be large.
const READERS: usize = 2;
/// A file that changed within this time may change again in the same tick of its clock.
const SETTLED: Duration = Duration::from_secs(2);

/// See the module documentation.
pub struct Registry {
    sandbox: Sandbox,
    copies: Option<PathBuf>,
    readers: Semaphore,
    files: Mutex<HashMap<PathBuf, (Fingerprint, Digest)>>,
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

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File(path) => path.display().fmt(f),
            Origin::Copy(digest) => write!(f, "copy {}", digest.get(..12).unwrap_or(digest)),
        }
    }
}

/// How far a driver is on its way; told while it is loaded.
#[derive(Debug, Default)]
pub struct Progress(AtomicU8);

/// A step of loading a driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It waits, or is read.
    Loading,
    /// It is compiled, or waits for the compiler.
    Compiling,
}

impl Progress {
    fn tell(&self, stage: Stage) {
        self.0.store(u8::from(stage == Stage::Compiling), Ordering::Relaxed);
    }

    /// How far it is now.
    pub fn stage(&self) -> Stage {
        if self.0.load(Ordering::Relaxed) == 1 { Stage::Compiling } else { Stage::Loading }
    }
}

/// Device, inode, size, times of modification and change: with another one, it
/// is another file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fingerprint {
    file: (u64, u64, u64),
    times: [(i64, i64); 2],
}

impl Fingerprint {
    /// That of a file, or of a folder with scripts, if it has not changed just now.
    fn of(path: &Path) -> Option<Fingerprint> {
        let data = path.metadata().ok()?;
        if data.is_dir() {
            return Fingerprint::of_folder(path, &data);
        }
        (data.is_file() && is_settled(&data)).then(|| Fingerprint {
            file: (data.dev(), data.ino(), data.size()),
            times: [(data.mtime(), data.mtime_nsec()), (data.ctime(), data.ctime_nsec())],
        })
    }

    fn of_folder(folder: &Path, data: &Metadata) -> Option<Fingerprint> {
        let mut all = DefaultHasher::new();
        for file in blueprint::files(folder) {
            let data = file.metadata().ok().filter(is_settled)?;
            let times = [(data.mtime(), data.mtime_nsec()), (data.ctime(), data.ctime_nsec())];
            (file, data.dev(), data.ino(), data.size(), times).hash(&mut all);
        }
        Some(Fingerprint { file: (data.dev(), data.ino(), all.finish()), times: [(0, 0); 2] })
    }
}

/// Whether a file has not changed just now.
fn is_settled(data: &Metadata) -> bool {
    let changed = u64::try_from(data.ctime()).map(|time| SystemTime::UNIX_EPOCH + Duration::from_secs(time));
    changed.is_ok_and(|changed| SystemTime::now().duration_since(changed).is_ok_and(|age| age > SETTLED))
}

impl Registry {
    /// A registry that keeps copies in a folder, if one is given.
    pub fn new(sandbox: Sandbox, copies: Option<&Path>) -> Registry {
        copies.into_iter().for_each(files::remove_parts);
        Registry {
            sandbox,
            copies: copies.map(Path::to_owned),
            readers: Semaphore::new(READERS),
            files: Mutex::default(),
            loading: Mutex::default(),
            known: Mutex::default(),
        }
    }

    /// Loads a driver. Whoever asks for the same one at the same time waits
    /// for the same compilation. Errors do not name the file: a cloud may see them.
    pub async fn load(&self, origin: &Origin, progress: &Progress) -> Result<Arc<Driver>> {
        progress.tell(Stage::Loading);
        let (path, expected) = match origin {
            Origin::File(path) => (path.clone(), None),
            Origin::Copy(digest) => (self.copy_path(digest)?, Some(digest)),
        };
        let file = self.read(&path).await?;
        if expected.is_some_and(|expected| *expected != file.digest.to_string()) {
            // So that it is kept anew when the driver is loaded from its file.
            let _ = files::set_aside(&path);
            bail!("the kept copy is damaged");
        }
        let digest = file.digest;
        if let Some(driver) = self.known(&digest) {
            self.keep_again(digest, &path, file.bytes).await;
            return Ok(driver);
        }
        let cell = self.cell(digest);
        let driver = cell.get_or_try_init(|| async {
            let bytes = match file.bytes {
                Some(bytes) => bytes,
                None => self.read_anew(&path).await?,
            };
            let compiles = || progress.tell(Stage::Compiling);
            let driver = self.sandbox.prepare_telling(bytes.clone(), compiles).await?;
            ensure!(driver.digest == digest, "the file changed while it was read");
            self.keep_copy(digest, bytes).await;
            Ok::<_, anyhow::Error>(Arc::new(driver))
        });
        let driver = driver.await?;
        lock(&self.known).insert(digest, Arc::downgrade(driver));
        Ok(Arc::clone(driver))
    }

    /// The digest of a file as it is now.
    pub async fn digest(&self, path: &Path) -> Result<Digest> {
        Ok(self.read(path).await?.digest)
    }

    /// Which driver a file holds and what it declares, without compiling it.
    pub async fn manifest(&self, path: &Path) -> Result<(Digest, Arc<Manifest>)> {
        let File { digest, bytes } = self.read(path).await?;
        if let Some(driver) = self.known(&digest) {
            return Ok((digest, Arc::clone(&driver.manifest)));
        }
        let bytes = match bytes {
            Some(bytes) => bytes,
            None => self.read_anew(path).await?,
        };
        let look = tokio::task::spawn_blocking(move || inspect(&bytes)?.manifest());
        Ok((digest, Arc::new(look.await??)))
    }

    fn known(&self, digest: &Digest) -> Option<Arc<Driver>> {
        lock(&self.known).get(digest).and_then(Weak::upgrade)
    }

    /// What is in a file: read, or known from before.
    async fn read(&self, path: &Path) -> Result<File> {
        if let Some(digest) = self.unchanged(path).await {
            return Ok(File { digest, bytes: None });
        }
        let _reader = self.readers.acquire().await?;
        // Another one may have read it while this one waited.
        if let Some(digest) = self.unchanged(path).await {
            return Ok(File { digest, bytes: None });
        }
        let before = fingerprint(path).await;
        let bytes = read_component(path).await?;
        let hashed = bytes.clone();
        let digest = tokio::task::spawn_blocking(move || Digest::of(&hashed)).await?;
        if let Some(before) = before
            && fingerprint(path).await == Some(before)
        {
            let mut files = lock(&self.files);
            if files.len().is_power_of_two() {
                files.retain(|path, _| path.exists());
            }
            files.insert(path.to_owned(), (before, digest));
        }
        Ok(File { digest, bytes: Some(bytes) })
    }

    async fn read_anew(&self, path: &Path) -> Result<Bytes> {
        let _reader = self.readers.acquire().await?;
        read_component(path).await
    }

    /// The digest of a file that has not changed since it was read.
    async fn unchanged(&self, path: &Path) -> Option<Digest> {
        let (before, digest) = lock(&self.files).get(path).copied()?;
        (fingerprint(path).await == Some(before)).then_some(digest)
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
            Some(folder) if is_digest(digest) => Ok(folder.join(format!("{digest}.wasm"))),
            _ => bail!("no copy of driver {digest} is kept"),
        }
    }

    /// Keeps a copy of a driver that is loaded, when somebody has removed the one that was there.
    async fn keep_again(&self, digest: Digest, path: &Path, bytes: Option<Bytes>) {
        let Ok(copy) = self.copy_path(&digest.to_string()) else { return };
        if tokio::fs::try_exists(&copy).await.unwrap_or(true) {
            return;
        }
        let bytes = match bytes {
            Some(bytes) => Ok(bytes),
            None => self.read_anew(path).await,
        };
        if let Ok(bytes) = bytes
            && Digest::of(&bytes) == digest
        {
            self.keep_copy(digest, bytes).await;
        }
    }

    async fn keep_copy(&self, digest: Digest, bytes: Bytes) {
        let Some(folder) = self.copies.clone() else { return };
        let keep = move || {
            let path = folder.join(format!("{digest}.wasm"));
            if let Ok(Some(file)) = files::open(&path) {
                // The newest are kept, and this one is used now.
                return file.set_modified(SystemTime::now());
            }
            std::fs::create_dir_all(&folder)?;
            // Something else in its place is moved out of the way.
            if path.symlink_metadata().is_ok() {
                files::set_aside(&path)?;
            }
            let mut part = files::part(&path)?;
            std::io::Write::write_all(&mut part, &bytes)?;
            // It is what a device starts with after a power cut.
            files::persist_durably(part, &path).map(drop)
        };
        let kept = tokio::task::spawn_blocking(keep).await;
        if let Ok(Err(error)) = kept {
            tracing::warn!("keeping a copy of driver {}: {error}", digest.short());
        }
    }

    /// The kept copies of a driver, newest first.
    pub async fn kept(&self, driver: &str) -> Vec<Kept> {
        let (folder, driver) = (self.copies.clone(), driver.to_owned());
        let look = move || folder.map(|folder| kept(&folder, &driver)).unwrap_or_default();
        tokio::task::spawn_blocking(look).await.unwrap_or_default()
    }

    /// Removes old copies that nobody needs.
    pub fn prune(&self, needed: impl Fn(&str) -> bool) {
        if let Some(folder) = &self.copies {
            let is_spare = |name: &str| name.strip_suffix(".wasm").is_some_and(|name| is_digest(name) && !needed(name));
            files::remove_oldest(folder, COPIES, is_spare);
        }
    }
}

/// A kept copy of a driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The manifest's version.
    pub version: String,
    /// The SHA-256 of the component, in hexadecimal.
    pub digest: String,
}

impl Kept {
    /// Whether somebody means this one: by its version, or by the first digits of its digest.
    pub fn is(&self, named: &str) -> bool {
        self.version == named || named.len() >= 6 && self.digest.starts_with(named)
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.version, self.digest.get(..12).unwrap_or(&self.digest))
    }
}

/// The copies of a driver in a folder, newest first. What cannot be read is none.
fn kept(folder: &Path, driver: &str) -> Vec<Kept> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<(SystemTime, Kept)> = entries
        .filter_map(|entry| {
            let digest = entry.file_name().to_str()?.strip_suffix(".wasm").filter(|name| is_digest(name))?.to_owned();
            let bytes = files::read(&entry.path(), MAX_COMPONENT).ok()??;
            let manifest = inspect(&bytes).ok()?.manifest().ok()?;
            let changed = entry.metadata().ok()?.modified().ok()?;
            let version = manifest.driver.version.clone();
            (manifest.driver.name == driver).then_some((changed, Kept { version, digest }))
        })
        .collect();
    found.sort_by(|(one, _), (other, _)| other.cmp(one));
    found.into_iter().map(|(_, kept)| kept).collect()
}

/// A file's digest, and its bytes if it was read for it.
struct File {
    digest: Digest,
    bytes: Option<Bytes>,
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

async fn fingerprint(path: &Path) -> Option<Fingerprint> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || Fingerprint::of(&path)).await.ok().flatten()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::Compiler;

    /// A driver as it was built once.
    const ECHO: &[u8] = include_bytes!("../../tests/fixtures/kept/echo-0.1.0.wasm");

    fn registry(folder: &Path) -> Registry {
        Registry::new(Sandbox::new(Compiler::InProcess, None).unwrap(), Some(&folder.join("copies")))
    }

    #[tokio::test]
    async fn one_driver_in_many_files_is_compiled_once_and_kept_as_a_copy() {
        let folder = tempfile::tempdir().unwrap();
        let registry = registry(folder.path());
        let files = ["a.wasm", "b.wasm"].map(|name| folder.path().join(name));
        files.iter().for_each(|file| std::fs::write(file, ECHO).unwrap());
        let progress = Progress::default();
        let file = Origin::File(files[0].clone());
        let [one, other] = files.map(Origin::File);
        let (one, other) = tokio::join!(registry.load(&one, &progress), registry.load(&other, &progress));
        let (one, other) = (one.unwrap(), other.unwrap());
        assert!(Arc::ptr_eq(&one, &other));
        assert_eq!(one.digest, Digest::of(ECHO));
        let copy = Origin::Copy(one.digest.to_string());
        assert!(Arc::ptr_eq(&one, &registry.load(&copy, &progress).await.unwrap()));
        let path = registry.copy_path(&one.digest.to_string()).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), ECHO);
        std::fs::write(&path, [ECHO, b"x"].concat()).unwrap();
        let error = registry.load(&copy, &progress).await.unwrap_err();
        assert_eq!(error.to_string(), "the kept copy is damaged");
        // The damaged one was set aside, and there is a whole one again with the next load of the file.
        assert!(!path.exists());
        assert!(Arc::ptr_eq(&one, &registry.load(&file, &progress).await.unwrap()));
        assert_eq!(std::fs::read(&path).unwrap(), ECHO);
    }

    #[tokio::test]
    async fn what_a_file_declares_is_read_without_compiling_and_what_is_no_driver_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let registry = registry(folder.path());
        let path = folder.path().join("a.wasm");
        std::fs::write(&path, ECHO).unwrap();
        let (digest, manifest) = registry.manifest(&path).await.unwrap();
        assert_eq!((digest, manifest.driver.name.as_str()), (Digest::of(ECHO), "echo"));
        assert!(registry.known(&digest).is_none());
        std::fs::write(&path, "something else").unwrap();
        assert_eq!(registry.digest(&path).await.unwrap(), Digest::of(b"something else"));
        assert!(registry.manifest(&path).await.is_err());
        for digest in ["../../etc/passwd", "abc", &"g".repeat(64)] {
            assert!(registry.copy_path(digest).is_err(), "{digest}");
        }
    }

    #[test]
    fn only_the_newest_of_the_copies_that_nobody_needs_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let registry = registry(folder.path());
        let copies = folder.path().join("copies");
        std::fs::create_dir(&copies).unwrap();
        let begin = SystemTime::UNIX_EPOCH;
        for number in 0..COPIES + 5 {
            let file = std::fs::File::create(copies.join(format!("{number:064x}.wasm"))).unwrap();
            file.set_modified(begin + Duration::from_secs(number as u64)).unwrap();
        }
        std::fs::write(copies.join("notes.txt"), "mine").unwrap();
        let oldest = format!("{:064x}", 0);
        registry.prune(|digest| digest == oldest);
        let there = |number: usize| copies.join(format!("{number:064x}.wasm")).exists();
        assert!(there(0) && there(COPIES + 4) && copies.join("notes.txt").exists());
        assert!(!there(1) && !there(4) && there(5));
    }
}
