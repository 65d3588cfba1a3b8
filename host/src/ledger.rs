//! An append-only file of JSON lines, each with a checksum: what the gateway
//! must still know after a kill or a power cut.
//!
//! The owner keeps the live entries in memory and gives them again when the
//! file has to be written anew: it has grown, it was damaged, it or its folder
//! is gone. Of a damaged file the whole lines count; it is kept aside for a look,
//! and stands where it is until it is written anew. A ledger never fails to open:
//! without a disk it is empty, and each write tries again.
//!
//! Format: a header `{"sandgate":KIND,"format":1}`, then one JSON object a
//! line, all with a last member `"crc"`: the CRC-32 (IEEE, eight hexadecimal
//! digits) of the line without that member. Lines without it come from older
//! versions and count as they are.

mod place;

use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value as Json;

use crate::shortage;
use place::Place;

/// Longer lines are damage; the longest are results of commands and stored values.
const MAX_LINE: usize = 16 << 20;
/// What is behind that in a file was not written here, and is not read.
const MAX_FILE: u64 = 256 << 20;
/// Bytes that a file may hold beside twice what it had when it was written anew.
const SPARE: u64 = 256 << 10;
/// The member that ends each line, without its digits.
const CRC: &str = r#","crc":""#;

/// What a written entry survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Safety {
    /// The death of the process.
    Accepted,
    /// A power cut.
    Durable,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Ledger<P: Place = PathBuf> {
    place: P,
    kind: &'static str,
    /// Whether the file has all that it should; if not, the next write writes everything.
    is_whole: bool,
    /// What the machine had not enough of to read it.
    shortage: Option<io::Error>,
    /// Whether its name is on the disk: the process before may have died between
    /// giving it and that.
    is_name_synced: bool,
    /// The open file, between writes that come often.
    file: Option<P::File>,
    bytes: u64,
    /// Its size when it was written anew.
    fresh: u64,
}

impl Ledger {
    /// Opens a file and gives each of its entries, oldest first. An entry that
    /// `take` refuses counts as damaged.
    pub fn open(path: &Path, kind: &'static str, take: impl FnMut(Json) -> bool) -> Ledger {
        Ledger::open_in(path.to_owned(), kind, take)
    }
}

impl<P: Place> Ledger<P> {
    fn open_in(place: P, kind: &'static str, mut take: impl FnMut(Json) -> bool) -> Ledger<P> {
        let mut ledger = Ledger {
            place,
            kind,
            is_whole: false,
            shortage: None,
            is_name_synced: false,
            file: None,
            bytes: 0,
            fresh: 0,
        };
        let damage = match ledger.place.read() {
            Ok(None) => return ledger,
            Ok(Some((file, size))) => match ledger.read(file, size, &mut take) {
                Ok(0) => None,
                Ok(lines) => Some(format!("{lines} damaged lines")),
                Err(error) => Some(error.to_string()),
            },
            Err(error) if shortage::is_shortage(std::iter::once(&error as _)) => {
                ledger.shortage = Some(error);
                return ledger;
            }
            Err(error) => Some(error.to_string()),
        };
        let Some(damage) = damage else {
            ledger.is_whole = true;
            return ledger;
        };
        let name = ledger.place.name();
        match ledger.place.keep_aside() {
            Ok(aside) => tracing::error!("{name}: {damage}; kept aside as {}, what is whole counts", aside.display()),
            Err(error) => tracing::error!("{name}: {damage}; it cannot be kept aside: {error}"),
        }
        ledger
    }

    /// Why the file could not be read, while it may well be whole: nothing is
    /// written until it was opened again.
    pub fn shortage(&self) -> Option<&io::Error> {
        self.shortage.as_ref()
    }

    /// Whether the file has all that it should. If not, the next entry writes
    /// everything anew; whoever has no next entry soon does it by `rewrite`.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Reads all lines; how many are damaged. A last line that was cut off by a
    /// kill is none.
    fn read(&mut self, file: Box<dyn BufRead>, size: u64, take: &mut impl FnMut(Json) -> bool) -> io::Result<usize> {
        self.bytes = size;
        let mut reader = file.take(MAX_FILE);
        let (mut damaged, mut first, mut ends_whole) = (usize::from(self.bytes > MAX_FILE), true, true);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = read_line(&mut reader, &mut line)?;
            if read == 0 {
                break;
            }
            ends_whole = line.ends_with(b"\n");
            let entry = verified(line.trim_ascii_end());
            let is_header = std::mem::replace(&mut first, false)
                && entry.as_ref().is_some_and(|entry| entry.get("sandgate").is_some());
            let good = match entry {
                Some(entry) if is_header => entry.get("sandgate").and_then(Json::as_str) == Some(self.kind),
                Some(entry) => take(entry),
                None => !ends_whole,
            };
            damaged += usize::from(!good);
        }
        // An empty file lost everything; one without a last line end would join the next line to it.
        let is_empty = first;
        if !ends_whole && damaged == 0 {
            self.bytes = u64::MAX;
        }
        Ok(damaged + usize::from(is_empty))
    }

    /// Writes entries: appends them, or writes all live entries anew, `all`
    /// with these among them. None at all and `Durable`: brings what was
    /// appended before to the disk.
    pub fn record<E: Serialize, I: Iterator<Item = E>>(
        &mut self,
        entries: &[E],
        safety: Safety,
        all: impl FnOnce() -> I,
    ) -> io::Result<()> {
        self.check_is_read()?;
        let has_grown = self.bytes > self.fresh.saturating_mul(2).saturating_add(SPARE);
        let Some(file) = self.open_whole().filter(|_| !has_grown) else { return self.rewrite(all()) };
        let text = entries.iter().map(line).collect::<io::Result<String>>()?;
        // After an error everything is written anew: nobody knows what the file holds then.
        self.is_whole = false;
        self.place.append(&file, text.as_bytes())?;
        if safety == Safety::Durable {
            self.place.sync(&file)?;
            if !self.is_name_synced {
                self.place.sync_name()?;
                self.is_name_synced = true;
            }
        }
        self.bytes += text.len() as u64;
        (self.is_whole, self.file) = (true, Some(file));
        Ok(())
    }

    /// What has not been read is not to be replaced by the little that is known.
    fn check_is_read(&self) -> io::Result<()> {
        match &self.shortage {
            Some(error) => Err(io::Error::new(error.kind(), format!("it could not be read at first: {error}"))),
            None => Ok(()),
        }
    }

    /// The file, if it is still there and whole.
    fn open_whole(&mut self) -> Option<P::File> {
        let file = self.file.take();
        if !self.is_whole {
            return None;
        }
        match file {
            Some(file) => Some(file).filter(|file| self.place.is_at(file)),
            None => self.place.open().ok(),
        }
    }

    /// Closes the file until the next write.
    pub fn close(&mut self) {
        self.file = None;
    }

    /// Writes all live entries anew; they are on the disk when this returns.
    pub fn rewrite<E: Serialize>(&mut self, all: impl Iterator<Item = E>) -> io::Result<()> {
        self.check_is_read()?;
        (self.is_whole, self.file) = (false, None);
        let (mut bytes, mut all) = (0, all);
        let header = serde_json::json!({"sandgate": self.kind, "format": 1});
        self.place.replace(&mut |part| {
            let mut write = |text: String| {
                bytes += text.len() as u64;
                part.write_all(text.as_bytes())
            };
            write(line(&header)?)?;
            all.by_ref().try_for_each(|entry| write(line(&entry)?))
        })?;
        (self.is_whole, self.is_name_synced, self.bytes, self.fresh) = (true, true, bytes, bytes);
        Ok(())
    }
}

/// Reads to the end of a line; of one that is too long the rest is passed over.
fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<usize> {
    let mut read = 0;
    loop {
        let available = reader.fill_buf()?;
        if available.is_empty() {
            return Ok(read);
        }
        let end = available.iter().position(|byte| *byte == b'\n').map(|place| place + 1);
        let used = end.unwrap_or(available.len());
        if line.len() + used <= MAX_LINE {
            line.extend(available.iter().take(used));
        } else {
            // Two line ends make no JSON, so this counts as damaged.
            line.truncate(0);
            line.extend_from_slice(b"?\n");
        }
        read += used;
        reader.consume(used);
        if end.is_some() {
            return Ok(read);
        }
    }
}

/// An entry with its checksum at the end.
fn line(entry: &impl Serialize) -> io::Result<String> {
    let text = serde_json::to_string(entry)?;
    let body = text.strip_suffix('}').ok_or(io::ErrorKind::InvalidInput)?;
    Ok(format!("{body}{CRC}{:08x}\"}}\n", crc32fast::hash(text.as_bytes())))
}

/// The entry of a line, if its checksum is right or it has none.
fn verified(line: &[u8]) -> Option<Json> {
    let text = std::str::from_utf8(line).ok()?;
    let split = text.len().checked_sub(CRC.len() + 10).and_then(|place| text.split_at_checked(place));
    if let Some((body, end)) = split
        && let Some(digits) = end.strip_prefix(CRC).and_then(|end| end.strip_suffix("\"}"))
    {
        let expected = u32::from_str_radix(digits, 16).ok()?;
        let body = format!("{body}}}");
        return (crc32fast::hash(body.as_bytes()) == expected).then(|| serde_json::from_str(&body).ok()).flatten();
    }
    serde_json::from_str(text).ok().filter(Json::is_object)
}

#[cfg(test)]
pub(crate) mod power_cuts;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn read(path: &Path) -> (Ledger, Vec<u64>) {
        let mut found = Vec::new();
        let ledger = Ledger::open(path, "test", |entry| {
            entry.get("n").and_then(Json::as_u64).map(|number| found.push(number)).is_some()
        });
        (ledger, found)
    }

    fn record(ledger: &mut Ledger, number: u64, all: &[u64]) {
        let entry = |number: u64| json!({"n": number, "text": "x".repeat(50)});
        ledger.record(&[entry(number)], Safety::Durable, || all.iter().map(|number| entry(*number))).unwrap();
    }

    #[test]
    fn entries_survive_reopening_and_a_folder_that_comes_and_goes() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("state/log");
        let (mut ledger, _) = read(&path);
        let entry = json!({"n": 1});
        assert!(ledger.record(std::slice::from_ref(&entry), Safety::Accepted, || [entry.clone()].into_iter()).is_err());
        std::fs::create_dir(root.path().join("state")).unwrap();
        record(&mut ledger, 2, &[1, 2]);
        record(&mut ledger, 3, &[]);
        assert_eq!(read(&path).1, [1, 2, 3]);
        std::fs::remove_dir_all(root.path().join("state")).unwrap();
        std::fs::create_dir(root.path().join("state")).unwrap();
        record(&mut ledger, 4, &[1, 2, 3, 4]);
        assert_eq!(read(&path).1, [1, 2, 3, 4]);
    }

    #[test]
    fn what_could_not_be_read_for_want_of_descriptors_is_not_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        record(&mut read(&path).0, 1, &[1]);
        let mut ledger = read(&path).0;
        ledger.shortage = Some(rustix::io::Errno::MFILE.into());
        let entry = json!({"n": 2});
        let all = || [entry.clone()].into_iter();
        assert!(ledger.record(std::slice::from_ref(&entry), Safety::Durable, all).is_err());
        assert!(ledger.rewrite([&entry].into_iter()).is_err());
        assert_eq!(read(&path).1, [1]);
    }

    #[test]
    fn a_file_that_grows_is_written_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let (mut ledger, _) = read(&path);
        (0..20_000).for_each(|number| record(&mut ledger, number, &[number]));
        assert!(path.metadata().unwrap().len() < 2 * SPARE);
        assert_eq!(read(&path).1.last(), Some(&19_999));
    }

    #[test]
    fn a_cut_last_line_is_no_damage_and_an_empty_or_foreign_file_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let aside = || std::fs::read_dir(folder.path()).unwrap().count() - usize::from(path.exists());
        let (mut ledger, _) = read(&path);
        record(&mut ledger, 1, &[1]);
        record(&mut ledger, 2, &[]);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 5]).unwrap();
        let (mut ledger, found) = read(&path);
        assert_eq!((found, aside()), (vec![1], 0));
        record(&mut ledger, 3, &[1, 3]);
        assert_eq!(read(&path).1, [1, 3]);
        // Lines of older versions have no checksum.
        std::fs::write(&path, "{\"n\":7}\n{\"n\":8}\n").unwrap();
        assert_eq!((read(&path).1, aside()), (vec![7, 8], 0));
        for (number, damage) in [&b""[..], b"nonsense\n", b"{\"sandgate\":\"other\",\"format\":1}\n"].iter().enumerate()
        {
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, damage).unwrap();
            assert_eq!((read(&path).1, aside()), (vec![], number + 1));
            // It stands there still, and is not kept a second time.
            assert_eq!((read(&path).1, aside()), (vec![], number + 1));
        }
    }

    proptest! {
        /// Whatever byte is wrong: every other line counts, and nothing wrong does.
        #[test]
        fn a_wrong_byte_costs_its_line_only(place in 0.0..1.0_f64, byte: u8) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("log");
            let (mut ledger, _) = read(&path);
            (0..10).for_each(|number| record(&mut ledger, number, &(0..=number).collect::<Vec<_>>()));
            let mut bytes = std::fs::read(&path).unwrap();
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
            let place = (place * bytes.len() as f64) as usize;
            bytes[place] = byte;
            std::fs::write(&path, &bytes).unwrap();
            let found = read(&path).1;
            prop_assert!(found.len() >= 8 && found.is_sorted(), "{:?}", found);
            prop_assert!(found.iter().all(|number| *number < 10));
        }
    }
}
