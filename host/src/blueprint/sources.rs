//! The files of a blueprint: of a folder or of a zip.

use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::files;

/// Enough for every blueprint; a folder with more is another one.
const MAX_FILES: usize = 2000;
const MAX_BYTES: u64 = 8 << 20;
const MAX_FOLDERS: usize = 200;

/// Folders that hold tests and tools.
const LEFT_OUT: [&str; 4] = ["spec", "test", "tests", "node_modules"];

/// Files by their paths in the blueprint.
#[derive(Debug, Clone, Default)]
pub struct Sources(BTreeMap<String, Vec<u8>>);

impl FromIterator<(String, Vec<u8>)> for Sources {
    fn from_iter<T: IntoIterator<Item = (String, Vec<u8>)>>(files: T) -> Self {
        Sources(files.into_iter().collect())
    }
}

impl Sources {
    /// Reads a folder; links are not followed.
    pub fn of_folder(folder: &Path) -> Result<Sources> {
        let mut sources = Sources::default();
        let (files, _) = search(folder).with_context(|| format!("reading {}", folder.display()))?;
        for file in files {
            let Some(path) = file.strip_prefix(folder).ok().and_then(Path::to_str) else { continue };
            let bytes = files::read(&file, MAX_BYTES).with_context(|| format!("reading {path}"))?;
            sources.add(path.to_owned(), bytes.unwrap_or_default())?;
        }
        Ok(sources)
    }

    /// Reads a zip, which may have the blueprint in a folder of its own.
    pub fn of_zip(bytes: &[u8]) -> Result<Sources> {
        let mut archive = zip::ZipArchive::new(Cursor::new(bytes)).context("expected a zip of a blueprint")?;
        ensure!(archive.len() <= MAX_FILES, "expected at most {MAX_FILES} files in the zip, found more");
        let mut sources = Sources::default();
        for place in 0..archive.len() {
            let mut file = archive.by_index(place).context("reading the zip")?;
            let Some(path) = file.enclosed_name().and_then(|path| path.to_str().map(str::to_owned)) else {
                bail!("the zip has a file outside of itself: {:?}", file.name());
            };
            let mut parts = path.rsplit('/');
            let is_wanted = parts.next().is_some_and(is_part) && parts.all(is_searched);
            if file.is_dir() || !is_wanted {
                continue;
            }
            let mut bytes = Vec::new();
            (&mut file).take(MAX_BYTES + 1).read_to_end(&mut bytes).with_context(|| format!("reading {path}"))?;
            sources.add(path, bytes)?;
        }
        Ok(sources.without_outer_folder())
    }

    fn add(&mut self, path: String, bytes: Vec<u8>) -> Result<()> {
        ensure!(self.0.len() < MAX_FILES, "expected at most {MAX_FILES} files, found more");
        let all: u64 = self.0.values().map(|bytes| bytes.len() as u64).sum();
        ensure!(all + bytes.len() as u64 <= MAX_BYTES, "expected at most {} MiB of files, found more", MAX_BYTES >> 20);
        self.0.insert(path, bytes);
        Ok(())
    }

    /// The folder of the manifest becomes the outermost one.
    fn without_outer_folder(self) -> Sources {
        let manifests = self.0.keys().filter(|path| path.rsplit('/').next() == Some(super::MANIFEST));
        let Some(outer) = manifests.min_by_key(|path| path.len()).and_then(|path| path.strip_suffix(super::MANIFEST))
        else {
            return self;
        };
        let outer = outer.to_owned();
        let inner = |(path, bytes): (String, Vec<u8>)| Some((path.strip_prefix(&outer)?.to_owned(), bytes));
        self.0.into_iter().filter_map(inner).collect()
    }

    /// A file that people have written.
    pub(super) fn text(&self, path: &str) -> Result<Option<String>> {
        let bytes = self.0.get(path).cloned();
        bytes.map(|bytes| String::from_utf8(bytes).map_err(|_| anyhow!("{path}: expected UTF-8"))).transpose()
    }

    /// All that goes into the driver.
    pub(super) fn scripts(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let scripts = self.0.iter().filter(|(path, _)| path.ends_with(".lua"));
        scripts.map(|(path, bytes)| (path.as_str(), bytes.as_slice()))
    }

    pub(super) fn has(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }

    /// The script that is run first.
    pub(super) fn main(&self, script: &super::manifest::Script) -> Result<String> {
        use super::manifest::Script;
        let path = match script {
            Script::File(file) => file.trim_start_matches("./").to_owned(),
            Script::Folder(folder) => format!("{}/main.lua", folder.trim_start_matches("./").trim_end_matches('/')),
        };
        ensure!(self.has(&path), "expected the script {path}, which is not in the blueprint");
        Ok(path)
    }
}

/// The files that belong to a blueprint's folder, and all folders that they may be in.
fn search(folder: &Path) -> std::io::Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    let mut next = 0;
    while let Some(folder) = folders.get(next).cloned() {
        next += 1;
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let kind = entry.file_type()?;
            if kind.is_dir() && folders.len() < MAX_FOLDERS && is_searched(&name) {
                folders.push(entry.path());
            } else if kind.is_file() && files.len() < MAX_FILES && is_part(&name) {
                files.push(entry.path());
            }
        }
    }
    files.sort_unstable();
    Ok((files, folders))
}

/// The files of a blueprint's folder, as far as it can be read.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    search(folder).unwrap_or_default().0
}

/// A blueprint's folder and the folders in it that may hold scripts.
pub fn folders(folder: &Path) -> Vec<PathBuf> {
    search(folder).unwrap_or_default().1
}

/// Whether a file is a script, or says something of scripts.
pub fn is_part(name: &str) -> bool {
    name == super::MANIFEST || name == super::OVERRIDES || (name.ends_with(".lua") && !name.starts_with('.'))
}

fn is_searched(name: &str) -> bool {
    !name.starts_with('.') && !LEFT_OUT.contains(&name)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_folder_and_a_zip_of_it_are_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let files = [
            ("manifest.yml", "a"),
            ("src/main.lua", "b"),
            ("README.md", "c"),
            ("spec/x.lua", "d"),
            (".git/y.lua", "e"),
        ];
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        for (path, text) in files {
            let own = folder.path().join(path);
            std::fs::create_dir_all(own.parent().unwrap()).unwrap();
            std::fs::write(own, text).unwrap();
            zip.start_file(format!("thermometer/{path}"), zip::write::SimpleFileOptions::default()).unwrap();
            zip.write_all(text.as_bytes()).unwrap();
        }
        let of_folder = Sources::of_folder(folder.path()).unwrap();
        assert_eq!(of_folder.0.keys().collect::<Vec<_>>(), ["manifest.yml", "src/main.lua"]);
        let of_zip = Sources::of_zip(&zip.finish().unwrap().into_inner()).unwrap();
        assert_eq!(of_zip.0, of_folder.0);
        assert!(Sources::of_zip(b"no zip").is_err());
    }
}
