//! The state folder: made or marked by Sandgate, used by one gateway at a time.
//!
//! Sandgate removes old files in its state folder, so it takes only one that
//! carries its mark: a new folder, an empty one, or one of an older version. It
//! never touches another.

use std::fs::{DirBuilder, File, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{Access, FlockOperation, access, flock};
use rustix::io::Errno;

use crate::files;

/// The file that marks a state folder; the running gateway holds its lock.
pub const MARK: &str = ".sandgate";
const MARK_TEXT: &str = "This folder belongs to Sandgate, which removes old files in it by itself.\n";
/// The address of a socket has no room for more.
const LONGEST_SOCKET: usize = 107;
/// What Sandgate puts into its folder; the first always.
const OURS: [&str; 11] = [
    "commands.jsonl",
    "swaps.jsonl",
    "devices.jsonl",
    "storage",
    "admin.sock",
    "cache",
    "drivers",
    "downloads",
    // Of older versions, which made no mark.
    "storage.redb",
    "storage.damaged",
    "running.json",
];

/// See the module documentation.
#[derive(Debug)]
pub struct StateFolder {
    path: PathBuf,
    /// Holds the lock for as long as the gateway runs.
    mark: Option<File>,
}

impl StateFolder {
    /// Makes the folder, or takes an earlier one, for this process alone.
    ///
    /// Fails when the folder is somebody else's or in use. A disk that is full
    /// or read-only is no failure: the folder is `incomplete` then, and what
    /// needs it goes without.
    pub fn open(path: &Path) -> Result<StateFolder> {
        let mut folder = StateFolder { path: std::path::absolute(path)?, mark: None };
        match folder.claim() {
            Err(error) if is_disk_trouble(&error) => {
                tracing::error!(
                    "state folder {}: {error:#}; running without what needs it: stored values, copies of drivers, \
                     commands from clouds, the admin socket",
                    path.display()
                );
                Ok(folder)
            }
            Err(error) => Err(error).with_context(|| format!("state folder {}", path.display())),
            Ok(()) => Ok(folder),
        }
    }

    /// Whether a gateway could use it. Changes nothing.
    pub fn check(path: &Path) -> Result<()> {
        let folder = StateFolder { path: std::path::absolute(path)?, mark: None };
        match folder.path.symlink_metadata() {
            Err(_) => {
                let parent = folder.path.ancestors().skip(1).find(|parent| parent.exists());
                let parent = parent.unwrap_or(Path::new("/"));
                if !parent.is_dir() {
                    bail!("{}: expected a folder, found something else", parent.display());
                }
                access(parent, Access::WRITE_OK | Access::EXEC_OK)
                    .with_context(|| format!("it cannot be made in {}", parent.display()))?;
            }
            Ok(_) => {
                folder.inspect()?;
                if !folder.path.join(MARK).exists() {
                    folder.adopt()?;
                }
                access(&folder.path, Access::WRITE_OK | Access::EXEC_OK).context("it cannot be written")?;
            }
        }
        let socket = folder.path.join("admin.sock");
        if socket.as_os_str().len() > LONGEST_SOCKET {
            bail!("the path of its socket, {}, has more than {LONGEST_SOCKET} bytes", socket.display());
        }
        Ok(())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the folder again if it was deleted, or could not be made before.
    pub fn repair(&mut self) -> Result<()> {
        if self.mark.as_ref().is_some_and(|mark| files::is_at(mark, &self.path.join(MARK))) {
            return Ok(());
        }
        self.mark = None;
        self.claim()
    }

    fn claim(&mut self) -> Result<()> {
        self.make()?;
        let mark = self.path.join(MARK);
        let file = match files::open(&mark) {
            Ok(Some(file)) => file,
            Ok(None) => {
                self.adopt()?;
                self.mark(&mark)?
            }
            // Nobody else gives anything this name.
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                files::set_aside(&mark).context("setting its mark aside")?;
                self.mark(&mark)?
            }
            Err(error) => return Err(error).context("opening its mark"),
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => bail!("another gateway uses it; name another folder under `state`"),
            Err(error) => return Err(std::io::Error::from(error)).context("locking its mark"),
        }
        self.mark = Some(file);
        // Whoever can write here can run code as this user.
        if self.path.metadata().is_ok_and(|there| there.mode() & 0o077 != 0) {
            std::fs::set_permissions(&self.path, Permissions::from_mode(0o700)).context("protecting it")?;
        }
        Ok(())
    }

    /// Makes the folder, or looks at the one that is there.
    fn make(&self) -> Result<()> {
        let parent = files::folder_of(&self.path);
        std::fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
        match DirBuilder::new().mode(0o700).create(&self.path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => self.inspect(),
            Err(error) => Err(error).context("creating it"),
        }
    }

    /// Whether what is there is a folder of this user's.
    fn inspect(&self) -> Result<()> {
        let Ok(there) = self.path.metadata() else { bail!("expected a folder, found a link that points nowhere") };
        if !there.is_dir() {
            bail!("expected a folder, found something else; remove it, or name another folder under `state`");
        }
        let me = rustix::process::geteuid().as_raw();
        if there.uid() != me {
            bail!(
                "it belongs to the user with the id {}, and this gateway runs as {me}; run it as that user, or name \
                 another folder under `state`",
                there.uid()
            );
        }
        Ok(())
    }

    /// Whether a folder without a mark may become this gateway's: it is empty,
    /// or holds what an older version or a lost mark has left.
    fn adopt(&self) -> Result<()> {
        let mut found: Vec<String> = std::fs::read_dir(&self.path)
            .context("looking into it")?
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| !name.starts_with('.') && !name.contains(".damaged-"))
            .collect();
        found.sort();
        let is_ours = found.iter().any(|name| name == OURS[0]) && found.iter().all(|name| OURS.contains(&&**name));
        if !found.is_empty() && !is_ours {
            let shown: Vec<&str> = found.iter().take(3).map(String::as_str).collect();
            let more = if found.len() > shown.len() { ", …" } else { "" };
            bail!(
                "expected a new or an empty folder, or one that Sandgate has made, found one with {}{more}; name \
                 another one under `state`, such as \"sandgate-state\"",
                shown.join(", ")
            );
        }
        Ok(())
    }

    fn mark(&self, mark: &Path) -> Result<File> {
        let mut part = files::part(mark).context("marking it")?;
        part.write_all(MARK_TEXT.as_bytes()).context("marking it")?;
        files::persist_durably(part, mark).context("marking it")
    }
}

/// Whether it is the disk that fails, and not the folder that is wrong.
fn is_disk_trouble(error: &anyhow::Error) -> bool {
    let cause = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>());
    let errno = cause.and_then(Errno::from_io_error);
    matches!(errno, Some(Errno::NOSPC | Errno::ROFS | Errno::IO | Errno::DQUOT | Errno::MFILE | Errno::NFILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(path: &Path) -> String {
        format!("{:#}", StateFolder::open(path).unwrap_err())
    }

    #[test]
    fn a_check_finds_what_opening_would_and_changes_nothing() {
        let root = tempfile::tempdir().unwrap();
        let check = |name: &str| StateFolder::check(&root.path().join(name)).map_err(|error| format!("{error:#}"));
        std::fs::create_dir(root.path().join("empty")).unwrap();
        assert_eq!((check("new"), check("new/deeper"), check("empty")), (Ok(()), Ok(()), Ok(())));
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
        std::fs::write(root.path().join("file"), "").unwrap();
        assert!(check("file").unwrap_err().starts_with("expected a folder"));
        std::fs::create_dir_all(root.path().join("site/drivers")).unwrap();
        assert!(check("site").unwrap_err().contains("found one with drivers"));
        assert!(check(&"x".repeat(100)).unwrap_err().contains("has more than 107 bytes"));
    }

    #[test]
    fn a_new_or_empty_folder_is_marked_and_protected() {
        let root = tempfile::tempdir().unwrap();
        for name in ["new", "empty"] {
            let path = root.path().join(name);
            if name == "empty" {
                std::fs::create_dir(&path).unwrap();
            }
            drop(StateFolder::open(&path).unwrap());
            assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o700);
            assert!(path.join(MARK).exists());
            std::fs::write(path.join("anything"), "").unwrap();
            drop(StateFolder::open(&path).unwrap());
            // Something else in the place of the mark.
            std::fs::remove_file(path.join(MARK)).unwrap();
            std::fs::create_dir(path.join(MARK)).unwrap();
            StateFolder::open(&path).unwrap();
        }
    }

    #[test]
    fn a_folder_of_somebody_else_is_refused_and_left_as_it_is() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("drivers")).unwrap();
        std::fs::write(root.path().join("drivers/meter.wasm"), "").unwrap();
        std::fs::write(root.path().join("gateway.toml"), "").unwrap();
        let mode = root.path().metadata().unwrap().mode();
        let text = problem(root.path());
        assert!(text.contains("found one with drivers, gateway.toml; name another one under `state`"), "{text}");
        assert_eq!(root.path().metadata().unwrap().mode(), mode);
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_folder_of_an_older_version_is_taken_and_one_with_more_in_it_is_not() {
        let root = tempfile::tempdir().unwrap();
        for name in ["commands.jsonl", "storage.redb"] {
            std::fs::write(root.path().join(name), "").unwrap();
        }
        std::fs::create_dir(root.path().join("drivers")).unwrap();
        StateFolder::open(root.path()).unwrap();
        std::fs::remove_file(root.path().join(MARK)).unwrap();
        drop(StateFolder::open(root.path()).unwrap());
        std::fs::remove_file(root.path().join(MARK)).unwrap();
        std::fs::write(root.path().join("notes.txt"), "").unwrap();
        assert!(problem(root.path()).contains("found one with commands.jsonl, drivers, notes.txt, …"));
    }

    #[test]
    fn what_is_no_folder_and_what_another_gateway_uses_are_named() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        std::fs::write(at("file"), "").unwrap();
        std::os::unix::fs::symlink(at("nowhere"), at("link")).unwrap();
        assert!(problem(&at("file")).contains("expected a folder, found something else"));
        assert!(problem(&at("link")).contains("expected a folder, found a link that points nowhere"));
        let first = StateFolder::open(&at("state")).unwrap();
        assert!(problem(&at("state")).contains("another gateway uses it"));
        drop(first);
        StateFolder::open(&at("state")).unwrap();
    }

    #[test]
    fn a_deleted_folder_is_made_again() {
        let root = tempfile::tempdir().unwrap();
        let mut folder = StateFolder::open(&root.path().join("state")).unwrap();
        std::fs::remove_dir_all(folder.path()).unwrap();
        folder.repair().unwrap();
        assert!(folder.path().join(MARK).exists());
        folder.repair().unwrap();
    }
}
