//! Files that travel in a driver, in its section `sandgate:files`.
//!
//! The section is a vector of files, each a name and its bytes, all with the
//! lengths of WebAssembly's own binary format (LEB128), sorted by name.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use wasm_encoder::Encode;
use wasmparser::BinaryReader;

use crate::text;

/// The custom section that holds them.
pub const FILES_SECTION: &str = "sandgate:files";

/// The largest of Enapter's blueprints has 25 files and 300 KiB.
const MAX_FILES: usize = 1000;
const MAX_BYTES: usize = 8 << 20;
const MAX_NAME: usize = 255;

/// Files by their names; `/` parts folders.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Files(BTreeMap<String, Vec<u8>>);

impl Files {
    /// Reads a section.
    pub fn read(section: &[u8]) -> Result<Files> {
        let mut files = Files::default();
        let mut reader = BinaryReader::new(section, 0);
        let mut read = || -> Result<()> {
            for _ in 0..reader.read_var_u32()? {
                let name = reader.read_string()?;
                let length = usize::try_from(reader.read_var_u32()?)?;
                files.insert(name.to_owned(), reader.read_bytes(length)?.to_vec())?;
            }
            ensure!(reader.eof(), "expected its end, found more bytes");
            Ok(())
        };
        read().with_context(|| format!("the section {FILES_SECTION}"))?;
        Ok(files)
    }

    /// Adds a file.
    pub fn insert(&mut self, name: String, bytes: Vec<u8>) -> Result<()> {
        let is_part = |part: &str| !part.is_empty() && part != "." && part != "..";
        let is_right = name.len() <= MAX_NAME && !name.contains(['\\', '\0']) && name.split('/').all(is_part);
        ensure!(is_right, "expected a relative path of a file, found {:?}", text::shortened(&name, 60));
        ensure!(!self.0.contains_key(&name), "the file {name} is there twice");
        ensure!(self.0.len() < MAX_FILES, "expected at most {MAX_FILES} files, found more");
        let all: usize = self.0.values().map(Vec::len).sum();
        ensure!(all + bytes.len() <= MAX_BYTES, "expected at most {} MiB of files, found more", MAX_BYTES >> 20);
        self.0.insert(name, bytes);
        Ok(())
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// A file's content.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.get(name).map(Vec::as_slice)
    }

    /// The content of the section.
    pub(crate) fn section(&self) -> Vec<u8> {
        let mut section = Vec::new();
        self.0.len().encode(&mut section);
        for (name, bytes) in &self.0 {
            name.as_str().encode(&mut section);
            bytes.as_slice().encode(&mut section);
        }
        section
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_survive_a_round_trip_and_rubbish_is_an_error_that_names_the_section() {
        let mut files = Files::default();
        files.insert("main.lua".into(), b"return 1".to_vec()).unwrap();
        files.insert("lib/b.lua".into(), vec![0, 255, 10]).unwrap();
        let section = files.section();
        assert_eq!(Files::read(&section).unwrap(), files);
        assert_eq!(files.names().collect::<Vec<_>>(), ["lib/b.lua", "main.lua"]);
        for end in 0..section.len() {
            let error = format!("{:#}", Files::read(&section[..end]).unwrap_err());
            assert!(error.starts_with("the section sandgate:files: "), "{error}");
        }
        assert!(Files::read(&[&section[..], b"x"].concat()).is_err());
    }

    #[test]
    fn names_stay_within_the_driver() {
        for name in ["", "/etc/passwd", "../x", "a/../b", "a//b", "./a", "a/", "a\\b", "a\0b"] {
            let error = Files::default().insert(name.into(), Vec::new()).unwrap_err().to_string();
            assert!(error.starts_with("expected a relative path of a file, found "), "{name}: {error}");
        }
        let mut files = Files::default();
        files.insert("a".into(), Vec::new()).unwrap();
        assert_eq!(files.insert("a".into(), Vec::new()).unwrap_err().to_string(), "the file a is there twice");
        let error = files.insert("b".into(), vec![0; MAX_BYTES + 1]).unwrap_err().to_string();
        assert_eq!(error, "expected at most 8 MiB of files, found more");
    }
}
