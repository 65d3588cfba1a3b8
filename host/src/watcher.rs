//! Watches files and says which ones changed, once they have come to rest.
//!
//! Watches the folders, not the files: an atomic rename replaces the file, and
//! a file may not exist yet.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// A plain overwrite comes in many small writes.
const REST: Duration = Duration::from_millis(250);

/// See the module documentation.
pub struct Watcher {
    inner: RecommendedWatcher,
    folders: BTreeSet<PathBuf>,
}

impl Watcher {
    /// Starts watching nothing. Sets of changed files arrive at `changes`.
    pub fn start(changes: mpsc::Sender<BTreeSet<PathBuf>>) -> Result<Watcher> {
        let (raw, events) = mpsc::channel(1024);
        let inner = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let Ok(event) = event else { return };
            if matches!(event.kind, EventKind::Access(_)) {
                return;
            }
            for path in event.paths {
                // When the channel is full, the burst is seen by what is in it.
                let _ = raw.try_send(path);
            }
        })
        .context("starting the file watcher")?;
        tokio::spawn(settle(events, changes));
        Ok(Watcher { inner, folders: BTreeSet::new() })
    }

    /// Watches exactly the folders of these files.
    pub fn watch<'a>(&mut self, files: impl Iterator<Item = &'a Path>) {
        let folders: BTreeSet<PathBuf> = files.filter_map(|file| Some(normal(file).parent()?.to_owned())).collect();
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

/// The form in which changed files are reported: absolute, links in the folder
/// resolved.
pub fn normal(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match (absolute.parent().and_then(|folder| folder.canonicalize().ok()), absolute.file_name()) {
        (Some(folder), Some(name)) => folder.join(name),
        _ => absolute,
    }
}

async fn settle(mut events: mpsc::Receiver<PathBuf>, changes: mpsc::Sender<BTreeSet<PathBuf>>) {
    while let Some(first) = events.recv().await {
        let mut changed = BTreeSet::from([normal(&first)]);
        while let Ok(Some(path)) = timeout(REST, events.recv()).await {
            changed.insert(normal(&path));
        }
        if changes.send(changed).await.is_err() {
            return;
        }
    }
}
