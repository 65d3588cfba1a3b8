//! The folder that a log lies in: numbered files that only grow. A trait, so
//! that tests can cut the power of a simulated disk at any moment.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fallocate};

use crate::files;

/// How a log's files end.
const ENDING: &str = ".log";
/// And those of damaged ones, which are kept for a look.
const ASIDE: &str = ".damaged";
/// And the marks of those whose sync has failed.
const DOUBTED: &str = ".doubted";

/// See the module documentation.
pub(super) trait Disk: Send {
    /// An open file.
    type File: Clone + Send;

    /// The numbers of all files, in order.
    fn list(&mut self) -> io::Result<Vec<u64>>;

    /// What is in a file, at most this many bytes, as far as it can be read, and
    /// whether that is all.
    fn read(&mut self, number: u64, limit: usize) -> (Vec<u8>, bool);

    /// Opens a file that is there, to sync it and to read from it.
    fn open(&mut self, number: u64) -> io::Result<Self::File>;

    /// Makes a new file with room for this many bytes, which are zero.
    fn create(&mut self, number: u64, size: u64) -> io::Result<Self::File>;

    /// Writes behind what was written before. The death of the process does not
    /// undo it, a power cut may.
    fn append(&mut self, file: &Self::File, bytes: &[u8]) -> io::Result<()>;

    /// Whether a file's name still leads to it.
    fn is_there(&self, number: u64, file: &Self::File) -> bool;

    /// Keeps what is in a file for a look, whatever becomes of the file.
    fn keep_aside(&mut self, number: u64) -> io::Result<()>;

    /// The numbers of marked files.
    fn doubted(&mut self) -> io::Result<Vec<u64>>;

    /// How to sync and remove, for a thread of its own.
    fn syncer(&self) -> Box<dyn Syncer<Self::File>>;
}

/// What takes long: not to be done while others wait.
pub(super) trait Syncer<F>: Send {
    /// Brings all that was written to a file to the disk.
    fn sync(&mut self, file: &F) -> io::Result<()>;

    /// Brings the names of new and removed files to the disk.
    fn sync_folder(&mut self) -> io::Result<()>;

    /// Marks a file whose sync has failed: what is read of it may not be on the
    /// disk, and a later sync will not say so. The mark outlives the process; it
    /// needs not outlive the power, which takes with it what is not on the disk.
    fn doubt(&mut self, number: u64) -> io::Result<()>;

    /// Removes a file, and its mark.
    fn remove(&mut self, number: u64) -> io::Result<()>;

    /// Reads this many bytes from there.
    fn read_at(&mut self, file: &F, at: u64, size: usize) -> io::Result<Vec<u8>>;
}

/// A folder of the file system.
#[derive(Debug, Clone)]
pub(super) struct Folder(PathBuf);

impl Folder {
    /// The folder, and the one that it lies in, are made when a file is.
    pub(super) fn new(path: &Path) -> Folder {
        Folder(path.to_owned())
    }

    fn path(&self, number: u64) -> PathBuf {
        self.0.join(format!("{number:016}{ENDING}"))
    }

    fn mark(&self, number: u64) -> PathBuf {
        self.0.join(format!("{number:016}{DOUBTED}"))
    }

    /// The numbers of all files that end so, in order.
    fn numbers(&self, ending: &str) -> io::Result<Vec<u64>> {
        let entries = match std::fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut numbers = Vec::new();
        for entry in entries {
            let name = entry?.file_name().to_string_lossy().into_owned();
            numbers.extend(name.strip_suffix(ending).and_then(|number| number.parse::<u64>().ok()));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }
}

impl Disk for Folder {
    type File = Arc<File>;

    fn list(&mut self) -> io::Result<Vec<u64>> {
        self.numbers(ENDING)
    }

    fn read(&mut self, number: u64, limit: usize) -> (Vec<u8>, bool) {
        let mut bytes = Vec::new();
        let read = match files::open(&self.path(number)) {
            Ok(Some(file)) => file.take(limit as u64).read_to_end(&mut bytes).is_ok(),
            Ok(None) | Err(_) => false,
        };
        (bytes, read)
    }

    fn open(&mut self, number: u64) -> io::Result<Arc<File>> {
        let file = files::open(&self.path(number))?;
        Ok(Arc::new(file.ok_or(io::ErrorKind::NotFound)?))
    }

    fn create(&mut self, number: u64, size: u64) -> io::Result<Arc<File>> {
        // Not the state folder itself: one that is gone is made again by who marks it.
        for folder in [self.0.parent(), Some(self.0.as_path())].into_iter().flatten() {
            match std::fs::create_dir(folder) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        let file = OpenOptions::new().create_new(true).read(true).write(true).mode(0o600).open(self.path(number))?;
        // Room that is there is not missing later. Where the file system cannot, it is found out at a write.
        match fallocate(&file, FallocateFlags::empty(), 0, size) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::INVAL) => Ok(Arc::new(file)),
            Err(error) => {
                let _ = std::fs::remove_file(self.path(number));
                Err(error.into())
            }
        }
    }

    fn append(&mut self, file: &Arc<File>, bytes: &[u8]) -> io::Result<()> {
        (&**file).write_all(bytes)
    }

    fn is_there(&self, number: u64, file: &Arc<File>) -> bool {
        files::is_at(file, &self.path(number))
    }

    fn keep_aside(&mut self, number: u64) -> io::Result<()> {
        let aside = self.0.join(format!("{number:016}{ASIDE}"));
        match std::fs::hard_link(self.path(number), &aside) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => result?,
        }
        files::remove_oldest(&self.0, KEPT_ASIDE, |name| name.ends_with(ASIDE));
        Ok(())
    }

    fn doubted(&mut self) -> io::Result<Vec<u64>> {
        self.numbers(DOUBTED)
    }

    fn syncer(&self) -> Box<dyn Syncer<Arc<File>>> {
        Box::new(self.clone())
    }
}

/// Damaged files that are kept for a look.
const KEPT_ASIDE: usize = 5;

impl Syncer<Arc<File>> for Folder {
    fn sync(&mut self, file: &Arc<File>) -> io::Result<()> {
        file.sync_data()
    }

    fn sync_folder(&mut self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()?;
        // The folder's own name, the first time.
        match self.0.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    }

    fn doubt(&mut self, number: u64) -> io::Result<()> {
        File::create(self.mark(number)).map(drop)
    }

    fn remove(&mut self, number: u64) -> io::Result<()> {
        for path in [self.path(number), self.mark(number)] {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn read_at(&mut self, file: &Arc<File>, at: u64, size: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; size];
        file.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }
}
