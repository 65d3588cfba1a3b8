//! Watches files and says which ones changed, once they have come to rest. A
//! folder changes with the scripts in it.
//!
//! Watches the folders, not the files: an atomic rename replaces the file, and
//! a file may not exist yet. What the system's events miss (a link in the path
//! that points elsewhere, a folder that is replaced) is found by a look at the
//! files every few seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, interval, timeout_at};

use crate::blueprint;

/// A plain overwrite comes in many small writes.
const REST: Duration = Duration::from_millis(250);
/// A file that was moved here or closed by its writer is whole; others may follow.
const SHORT_REST: Duration = Duration::from_millis(20);
/// A file that never rests is reported all the same.
const LONGEST: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_secs(2);

/// The wanted files, each as it was at the last look; none when it was missing.
type Wanted = Arc<Mutex<BTreeMap<PathBuf, Option<Fingerprint>>>>;

/// Device, inode, modification time and size: another one is another file.
type Fingerprint = (u64, u64, i64, i64, u64);

/// Something happened to a wanted file.
struct Event {
    path: PathBuf,
    /// Whether nobody is writing it any more.
    is_whole: bool,
}

/// See the module documentation.
pub struct Watcher {
    inner: RecommendedWatcher,
    folders: BTreeSet<PathBuf>,
    wanted: Wanted,
}

impl Watcher {
    /// Starts watching nothing. Sets of changed files arrive at `changes`.
    pub fn start(changes: mpsc::Sender<BTreeSet<PathBuf>>) -> Result<Watcher> {
        let (raw, events) = mpsc::channel(1024);
        let wanted = Wanted::default();
        let filter = Arc::clone(&wanted);
        let inner = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let Ok(event) = event else { return };
            let is_whole = match event.kind {
                EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
                EventKind::Access(_) => return,
                EventKind::Modify(ModifyKind::Name(_)) => true,
                _ => false,
            };
            for path in event.paths {
                // A log beside the drivers is written all the time.
                if let Some(path) = wanted_by(&lock(&filter), &normal(&path)) {
                    // When the channel is full, the burst is seen by what is in it.
                    let _ = raw.try_send(Event { path, is_whole });
                }
            }
        })
        .context("starting the file watcher")?;
        tokio::spawn(settle(events, changes, Arc::clone(&wanted)));
        Ok(Watcher { inner, folders: BTreeSet::new(), wanted })
    }

    /// Watches exactly these files.
    pub fn watch<'a>(&mut self, files: impl Iterator<Item = &'a Path>) {
        let files: BTreeSet<PathBuf> = files.map(normal).collect();
        let parents = files.iter().filter_map(|file| Some(file.parent()?.to_owned()));
        let own = files.iter().filter(|file| file.is_dir()).flat_map(|folder| blueprint::folders(folder));
        let folders: BTreeSet<PathBuf> = parents.chain(own).collect();
        {
            let mut wanted = lock(&self.wanted);
            let known = std::mem::take(&mut *wanted);
            *wanted = files
                .into_iter()
                .map(|file| {
                    let seen = known.get(&file).copied().unwrap_or_else(|| fingerprint(&file));
                    (file, seen)
                })
                .collect();
        }
        for folder in self.folders.difference(&folders) {
            // A folder that is gone is no longer watched anyway.
            let _ = self.inner.unwatch(folder);
        }
        let mut watched: BTreeSet<PathBuf> = self.folders.intersection(&folders).cloned().collect();
        for folder in folders.difference(&self.folders) {
            match self.inner.watch(folder, RecursiveMode::NonRecursive) {
                Ok(()) => drop(watched.insert(folder.clone())),
                Err(error) => tracing::warn!("watching folder {}: {error}", folder.display()),
            }
        }
        self.folders = watched;
    }
}

fn lock(wanted: &Wanted) -> std::sync::MutexGuard<'_, BTreeMap<PathBuf, Option<Fingerprint>>> {
    wanted.lock().unwrap_or_else(PoisonError::into_inner)
}

fn fingerprint(path: &Path) -> Option<Fingerprint> {
    let of = |path: &Path| {
        let data = std::fs::metadata(path).ok()?;
        Some((data.dev(), data.ino(), data.mtime(), data.mtime_nsec(), data.size()))
    };
    let own = of(path)?;
    if !path.is_dir() {
        return Some(own);
    }
    let mut all = DefaultHasher::new();
    let files = blueprint::files(path);
    files.iter().for_each(|file| (file, of(file)).hash(&mut all));
    Some((own.0, own.1, 0, 0, all.finish()))
}

/// What is wanted of a file that has changed: itself, or a folder with scripts that it is in.
fn wanted_by(wanted: &BTreeMap<PathBuf, Option<Fingerprint>>, path: &Path) -> Option<PathBuf> {
    if wanted.contains_key(path) {
        // That a file was added to a folder says nothing of its scripts.
        return (!path.is_dir()).then(|| path.to_owned());
    }
    let is_script = path.file_name().and_then(|name| name.to_str()).is_some_and(blueprint::is_part);
    let folder = path.ancestors().skip(1).find(|folder| wanted.contains_key(*folder));
    folder.filter(|_| is_script).map(Path::to_owned)
}

/// Compares all wanted files with the last look.
fn look(wanted: &Wanted) -> BTreeSet<PathBuf> {
    let mut changed = BTreeSet::new();
    for (path, seen) in lock(wanted).iter_mut() {
        let now = fingerprint(path);
        if now != *seen {
            *seen = now;
            changed.insert(path.clone());
        }
    }
    changed
}

/// The form in which changed files are reported: absolute, links in the folder
/// resolved.
pub fn normal(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match (absolute.parent().and_then(|folder| folder.canonicalize().ok()), absolute.file_name()) {
        (Some(folder), Some(name)) => folder.join(name),
        _ => absolute,
    }
}

async fn settle(mut events: mpsc::Receiver<Event>, changes: mpsc::Sender<BTreeSet<PathBuf>>, wanted: Wanted) {
    let mut regular = interval(LOOK);
    loop {
        // Those that may still be written.
        let mut unfinished = BTreeSet::new();
        let mut changed = BTreeSet::new();
        let mut note = |Event { path, is_whole }, changed: &mut BTreeSet<PathBuf>| {
            let _ = if is_whole { unfinished.remove(&path) } else { unfinished.insert(path.clone()) };
            changed.insert(path);
            if unfinished.is_empty() { SHORT_REST } else { REST }
        };
        let mut rest = tokio::select! {
            event = events.recv() => match event {
                Some(event) => note(event, &mut changed),
                None => return,
            },
            _ = regular.tick() => {
                changed = look(&wanted);
                REST
            }
        };
        if changed.is_empty() {
            continue;
        }
        let end = Instant::now() + LONGEST;
        while let Ok(Some(event)) = timeout_at(end.min(Instant::now() + rest), events.recv()).await {
            rest = note(event, &mut changed);
        }
        // What was reported now is not found again at the next look.
        changed.append(&mut look(&wanted));
        if changes.send(changed).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long it takes until a set of files is reported, and which.
    async fn reported(changes: &mut mpsc::Receiver<BTreeSet<PathBuf>>) -> (Duration, Vec<PathBuf>) {
        let begin = Instant::now();
        let files = changes.recv().await.unwrap();
        (begin.elapsed(), files.into_iter().collect())
    }

    fn event(path: &str, is_whole: bool) -> Event {
        Event { path: path.into(), is_whole }
    }

    /// A watcher's inside, without any file to look at.
    fn settling() -> (mpsc::Sender<Event>, mpsc::Receiver<BTreeSet<PathBuf>>) {
        let (events, inside) = mpsc::channel(1024);
        let (change, changes) = mpsc::channel(16);
        tokio::spawn(settle(inside, change, Wanted::default()));
        (events, changes)
    }

    #[tokio::test(start_paused = true)]
    async fn whole_files_are_reported_soon_and_those_that_are_written_when_they_rest() {
        let (events, mut changes) = settling();
        events.send(event("/a", true)).await.unwrap();
        let (time, files) = reported(&mut changes).await;
        assert!((SHORT_REST..2 * SHORT_REST).contains(&time), "{time:?}");
        assert_eq!(files, [PathBuf::from("/a")]);
        events.send(event("/a", false)).await.unwrap();
        events.send(event("/b", true)).await.unwrap();
        let (time, files) = reported(&mut changes).await;
        assert!((REST..2 * REST).contains(&time), "{time:?}");
        assert_eq!(files.len(), 2);
        // Its writer closes it.
        events.send(event("/a", false)).await.unwrap();
        events.send(event("/a", true)).await.unwrap();
        assert!(reported(&mut changes).await.0 < 2 * SHORT_REST);
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_never_rests_is_reported_all_the_same() {
        let (events, mut changes) = settling();
        let writer = tokio::spawn(async move {
            while events.send(event("/a", false)).await.is_ok() {
                tokio::time::sleep(REST / 2).await;
            }
        });
        let (time, _) = reported(&mut changes).await;
        assert!((LONGEST..LONGEST + REST).contains(&time), "{time:?}");
        writer.abort();
    }

    #[test]
    fn a_folder_is_wanted_for_its_scripts() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().canonicalize().unwrap();
        std::fs::create_dir(own.join("lib")).unwrap();
        let script = own.join("lib/a.lua");
        std::fs::write(&script, "return 1").unwrap();
        let before = fingerprint(&own);
        let wanted = BTreeMap::from([(own.clone(), before)]);
        assert_eq!(wanted_by(&wanted, &script), Some(own.clone()));
        assert_eq!(wanted_by(&wanted, &own.join("driver.wasm")), None);
        assert_eq!(wanted_by(&wanted, &own), None);
        std::fs::write(own.join("driver.wasm"), "x").unwrap();
        assert_eq!(fingerprint(&own), before);
        std::fs::write(&script, "return 12").unwrap();
        assert_ne!(fingerprint(&own), before);
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_system_does_not_tell_is_found_by_a_look() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("driver.wasm");
        let wanted = Wanted::new(Mutex::new(BTreeMap::from([(path.clone(), fingerprint(&path))])));
        // The sender stays, so that the watcher goes on.
        let (_events, inside) = mpsc::channel(1);
        let (change, mut changes) = mpsc::channel(16);
        tokio::spawn(settle(inside, change, Arc::clone(&wanted)));
        tokio::time::sleep(LOOK).await;
        std::fs::write(&path, "new").unwrap();
        let (time, files) = reported(&mut changes).await;
        assert!(time <= LOOK + REST * 2, "{time:?}");
        assert_eq!(files, [path]);
    }
}
