//! Where a ledger lies: one file that grows, and is replaced as a whole. A
//! trait, so that tests can cut the power of a simulated disk at any moment.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::files;

/// See the module documentation.
pub trait Place {
    /// The file, open to be appended to.
    type File;

    /// What is in the file, and its size; none when nothing is there.
    fn read(&self) -> io::Result<Option<(Box<dyn BufRead>, u64)>>;

    /// Opens the file that is there.
    fn open(&self) -> io::Result<Self::File>;

    /// Whether the file is still the one that stands here.
    fn is_at(&self, file: &Self::File) -> bool;

    /// Writes at the end. The death of the process does not undo it, a power cut may.
    fn append(&self, file: &Self::File, bytes: &[u8]) -> io::Result<()>;

    /// Brings what was written to the disk.
    fn sync(&self, file: &Self::File) -> io::Result<()>;

    /// Brings its name to the disk.
    fn sync_name(&self) -> io::Result<()>;

    /// Replaces the file in one step with what is written; it is on the disk
    /// when this returns.
    fn replace(&self, write: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>) -> io::Result<()>;

    /// Keeps the file as it is for a look; says where.
    fn keep_aside(&self) -> io::Result<PathBuf>;

    /// How people name it.
    fn name(&self) -> String;
}

impl Place for PathBuf {
    type File = File;

    fn read(&self) -> io::Result<Option<(Box<dyn BufRead>, u64)>> {
        let Some(file) = files::open(self)? else { return Ok(None) };
        let size = file.metadata()?.len();
        Ok(Some((Box::new(BufReader::new(file)), size)))
    }

    fn open(&self) -> io::Result<File> {
        files::open_existing_to_append(self)
    }

    fn is_at(&self, file: &File) -> bool {
        files::is_at(file, self)
    }

    fn append(&self, mut file: &File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    fn sync_name(&self) -> io::Result<()> {
        files::sync_folder(self)
    }

    fn replace(&self, write: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        let mut part = BufWriter::new(files::part(self)?);
        write(&mut part)?;
        let part = part.into_inner().map_err(io::IntoInnerError::into_error)?;
        files::persist_durably(part, self).map(drop)
    }

    fn keep_aside(&self) -> io::Result<PathBuf> {
        files::keep_aside(self)
    }

    fn name(&self) -> String {
        Path::display(self).to_string()
    }
}
