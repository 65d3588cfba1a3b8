//! The gateway's own files: bounded reads, replacement in one step, setting
//! aside what is not what it should be.
//!
//! Whatever stands in the place of a file, a pipe, a folder, a dangling link,
//! neither hangs nor ends the gateway: it is opened without waiting, and only a
//! regular file is read or written. All functions block for as long as the
//! disk does.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::OFlags;
use rustix::io::Errno;

/// What files are called while they are written; a kill leaves them behind.
const PART: &str = ".sandgate-part-";
/// What is set aside is kept for a look, the newest of each name.
const KEPT_ASIDE: usize = 5;
/// What the names of such get, before a number.
const ASIDE: &str = ".damaged-";

/// Opens a regular file for reading; none when nothing is there.
pub fn open(path: &Path) -> io::Result<Option<File>> {
    match opened(path, OpenOptions::new().read(true)) {
        Ok(file) => Ok(Some(file)),
        // A link that points nowhere stands in the place of a file.
        Err(error) if error.kind() == ErrorKind::NotFound && path.symlink_metadata().is_ok() => {
            Err(wrong("a link that points nowhere"))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads a regular file of at most `limit` bytes; none when nothing is there.
pub fn read(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let Some(file) = open(path)? else { return Ok(None) };
    let size = file.metadata()?.len();
    let too_large = |size: u64| wrong_size(limit, size);
    if size > limit {
        return Err(too_large(size));
    }
    // It may grow while it is read.
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(too_large(bytes.len() as u64));
    }
    Ok(Some(bytes))
}

/// Opens a regular file that is there for appending.
pub fn open_existing_to_append(path: &Path) -> io::Result<File> {
    opened(path, OpenOptions::new().append(true))
}

fn opened(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    // Opening a pipe waits for its other end unless told not to.
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = options.custom_flags(flags).open(path).map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::LOOP) => wrong("a link that leads to itself"),
        _ => error,
    })?;
    let kind = file.metadata()?.file_type();
    match () {
        () if kind.is_file() => Ok(file),
        () if kind.is_dir() => Err(wrong("a folder")),
        () => Err(wrong("a pipe or a device")),
    }
}

fn wrong(found: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, format!("expected a file, found {found}"))
}

fn wrong_size(limit: u64, size: u64) -> io::Error {
    let text = match limit >= 1 << 20 {
        true => format!("expected at most {} MiB, found {} MiB or more", limit >> 20, size >> 20),
        false => format!("expected at most {limit} bytes, found {size} or more"),
    };
    io::Error::new(ErrorKind::InvalidData, text)
}

/// Whether a path still leads to this open file.
pub fn is_at(file: &File, path: &Path) -> bool {
    matches!((file.metadata(), path.metadata()), (Ok(open), Ok(there)) if is_one(&open, &there))
}

fn is_one(first: &Metadata, second: &Metadata) -> bool {
    (first.dev(), first.ino()) == (second.dev(), second.ino())
}

/// A new file beside `path` that is to replace it.
pub fn part(path: &Path) -> io::Result<tempfile::NamedTempFile> {
    tempfile::Builder::new().prefix(PART).tempfile_in(folder_of(path))
}

/// Replaces a file in one step: whoever reads it finds the old or the new one.
/// A power cut may leave either.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut part = part(path)?;
    part.write_all(bytes)?;
    put(part, path)?;
    Ok(())
}

/// The same for a file that others may read as well, as this user's files are
/// otherwise.
pub fn replace_for_others(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let everyone = std::fs::Permissions::from_mode(0o666);
    let mut part = tempfile::Builder::new().prefix(PART).permissions(everyone).tempfile_in(folder_of(path))?;
    part.write_all(bytes)?;
    put(part, path)?;
    Ok(())
}

/// Puts a file in its place, also where a folder stands, which is set aside.
fn put(part: tempfile::NamedTempFile, path: &Path) -> io::Result<File> {
    match part.persist(path) {
        Err(error) if path.symlink_metadata().is_ok_and(|found| found.is_dir()) => {
            set_aside(path)?;
            Ok(error.file.persist(path)?)
        }
        result => Ok(result?),
    }
}

/// Replaces a file in one step with what was written to a `part` of it; it is
/// on the disk when this returns.
pub fn persist_durably(part: tempfile::NamedTempFile, path: &Path) -> io::Result<File> {
    part.as_file().sync_all()?;
    let file = put(part, path)?;
    sync_folder(path)?;
    Ok(file)
}

/// Lets the names in a file's folder reach the disk.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

/// The folder of a file.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Moves whatever stands at a path out of the way, and says where it is now.
pub fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let aside = free_aside(path);
    std::fs::rename(path, &aside)?;
    remove_oldest(folder_of(path), KEPT_ASIDE, is_aside_of(path));
    Ok(aside)
}

/// Keeps a damaged file for a look, and says where; it also stays where it is,
/// unless it is no file, or the file system cannot.
pub fn keep_aside(path: &Path) -> io::Result<PathBuf> {
    let found = path.symlink_metadata()?;
    if !found.is_file() {
        return set_aside(path);
    }
    let is_ours = is_aside_of(path);
    let is_same = |other: &Path| other.symlink_metadata().is_ok_and(|other| is_one(&other, &found));
    let others =
        std::fs::read_dir(folder_of(path))?.flatten().filter(|entry| entry.file_name().to_str().is_some_and(&is_ours));
    if let Some(kept) = others.map(|entry| entry.path()).find(|other| is_same(other)) {
        return Ok(kept);
    }
    let aside = free_aside(path);
    if std::fs::hard_link(path, &aside).is_err() {
        return set_aside(path);
    }
    remove_oldest(folder_of(path), KEPT_ASIDE, is_ours);
    Ok(aside)
}

fn free_aside(path: &Path) -> PathBuf {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let place = |number: u64| path.with_file_name(format!("{}{ASIDE}{}", name_of(path), seconds + number));
    (0..1000).map(place).find(|place| place.symlink_metadata().is_err()).unwrap_or_else(|| place(1000))
}

fn is_aside_of(path: &Path) -> impl Fn(&str) -> bool {
    let begin = format!("{}{ASIDE}", name_of(path));
    move |other| other.starts_with(&begin)
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Removes the oldest regular files of a folder whose names are `ours`, but for
/// the `keep` newest ones. Nothing else is touched.
pub fn remove_oldest(folder: &Path, keep: usize, ours: impl Fn(&str) -> bool) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let mut spare: Vec<_> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(&ours))
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
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

/// Removes what a kill left half written in a folder.
pub fn remove_parts(folder: &Path) {
    remove_oldest(folder, 0, |name| name.starts_with(PART));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_is_named_and_nothing_waits_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        std::fs::create_dir(at("folder")).unwrap();
        std::os::unix::fs::symlink(at("nowhere"), at("link")).unwrap();
        std::fs::write(at("large"), [0; 11]).unwrap();
        for (name, expected) in [
            ("pipe", "expected a file, found a pipe or a device"),
            ("folder", "expected a file, found a folder"),
            ("link", "expected a file, found a link that points nowhere"),
            ("large", "expected at most 10 bytes, found 11 or more"),
        ] {
            assert_eq!(read(&at(name), 10).unwrap_err().to_string(), expected, "{name}");
        }
        assert!(read(&at("missing"), 10).unwrap().is_none());
        assert!(open_existing_to_append(&at("pipe")).is_err() && open_existing_to_append(&at("folder")).is_err());
        for name in ["pipe", "folder", "link", "large"] {
            let aside = set_aside(&at(name)).unwrap();
            assert!(aside.symlink_metadata().is_ok() && at(name).symlink_metadata().is_err(), "{name}");
        }
        std::os::unix::fs::symlink(at("circle"), at("circle")).unwrap();
        assert_eq!(open(&at("circle")).unwrap_err().to_string(), "expected a file, found a link that leads to itself");
        // A file takes the place of whatever stands there.
        std::fs::create_dir_all(at("folder/inside")).unwrap();
        for name in ["folder", "circle"] {
            replace(&at(name), b"new").unwrap();
            assert_eq!(read(&at(name), 10).unwrap().unwrap(), b"new");
        }
    }

    #[test]
    fn only_files_of_the_right_name_are_removed_and_the_newest_stay() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a1", "a2", "a3", "b1"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        std::fs::create_dir(folder.path().join("a0")).unwrap();
        let old = SystemTime::now() - std::time::Duration::from_secs(60);
        File::open(folder.path().join("a2")).unwrap().set_modified(old).unwrap();
        remove_oldest(folder.path(), 2, |name| name.starts_with('a'));
        let mut left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["a0", "a1", "a3", "b1"]);
    }
}
