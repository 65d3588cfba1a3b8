//! Downloading files that a cloud describes: by http or https, of bounded
//! size, with their checksum verified when one is given.
//!
//! Writes into a temporary file that vanishes with its handle.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use futures::StreamExt;
use md5::Md5;
use serde_json::Value as Json;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::files;
use crate::web;

/// What is to be downloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Where it is.
    pub link: reqwest::Url,
    /// What it must hash to, in lower-case hexadecimal digits.
    pub checksum: Option<Checksum>,
}

/// A checksum; its length tells which one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checksum {
    /// 32 digits; what Kaa's web page asks for.
    Md5(String),
    /// 40 digits.
    Sha1(String),
    /// 64 digits.
    Sha256(String),
}

/// Names under which a checksum is found; Kaa's own is not documented.
const CHECKSUMS: [&str; 5] = ["checksum", "hash", "sha256", "sha1", "md5"];

impl Image {
    /// Reads a software specification: an object with `link` and perhaps a
    /// checksum. The error says what was expected.
    pub fn from_specification(specification: &Json) -> Result<Image, String> {
        let link = specification.get("link").and_then(Json::as_str);
        let link = link.ok_or("expected an object with a text `link`")?;
        let link = reqwest::Url::parse(link).map_err(|error| format!("link: expected a URL: {error}"))?;
        if !matches!(link.scheme(), "http" | "https") {
            return Err(format!("link: expected http or https, found {}", link.scheme()));
        }
        let checksum = CHECKSUMS.into_iter().find_map(|name| Some((name, specification.get(name)?)));
        let checksum = match checksum {
            None | Some((_, Json::Null)) => None,
            Some((name, Json::String(text))) if text.is_empty() => {
                tracing::debug!("an empty {name} counts as none");
                None
            }
            Some((name, value)) => Some(Checksum::parse(name, value)?),
        };
        Ok(Image { link, checksum })
    }
}

impl Checksum {
    fn parse(name: &str, value: &Json) -> Result<Checksum, String> {
        let text = value.as_str().unwrap_or_default().trim();
        // Some write which one it is in front.
        let text = text.rsplit(':').next().unwrap_or_default().to_ascii_lowercase();
        let is_hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        match text.len() {
            32 if is_hex => Ok(Checksum::Md5(text)),
            40 if is_hex => Ok(Checksum::Sha1(text)),
            64 if is_hex => Ok(Checksum::Sha256(text)),
            _ => Err(format!("{name}: expected 32 (MD5), 40 (SHA-1) or 64 (SHA-256) hexadecimal digits")),
        }
    }
}

/// Hashes as it goes, whichever is asked for.
enum Hasher {
    None,
    Md5(Md5, String),
    Sha1(Sha1, String),
    Sha256(Sha256, String),
}

impl Hasher {
    fn new(checksum: Option<&Checksum>) -> Hasher {
        match checksum {
            None => Hasher::None,
            Some(Checksum::Md5(text)) => Hasher::Md5(Md5::new(), text.clone()),
            Some(Checksum::Sha1(text)) => Hasher::Sha1(Sha1::new(), text.clone()),
            Some(Checksum::Sha256(text)) => Hasher::Sha256(Sha256::new(), text.clone()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::None => {}
            Hasher::Md5(hasher, _) => hasher.update(bytes),
            Hasher::Sha1(hasher, _) => hasher.update(bytes),
            Hasher::Sha256(hasher, _) => hasher.update(bytes),
        }
    }

    fn verify(self) -> Result<()> {
        let (found, expected) = match self {
            Hasher::None => return Ok(()),
            Hasher::Md5(hasher, expected) => (hex(&hasher.finalize()), expected),
            Hasher::Sha1(hasher, expected) => (hex(&hasher.finalize()), expected),
            Hasher::Sha256(hasher, expected) => (hex(&hasher.finalize()), expected),
        };
        ensure!(found == expected, "the checksum is wrong: expected {expected}, found {found}");
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Downloads a file of at most `limit` bytes into a folder and verifies it.
/// Tells how many bytes are here and, if known, how many there will be.
pub async fn fetch(
    image: &Image,
    limit: u64,
    folder: &Path,
    mut progress: impl FnMut(u64, Option<u64>),
) -> Result<tempfile::TempPath> {
    let host = image.link.host_str().unwrap_or_default().to_owned();
    let request = web::client()?.get(image.link.clone());
    let response =
        request.send().await.map_err(|error| anyhow::anyhow!("downloading from {host}: {}", web::describe(&error)))?;
    let status = response.status();
    if !status.is_success() {
        bail!("downloading from {host}: the server answered {status}");
    }
    let whole = response.content_length();
    let too_large =
        |size: u64| format!("downloading from {host}: expected at most {limit} bytes, found {size} or more");
    ensure!(whole.is_none_or(|size| size <= limit), too_large(whole.unwrap_or_default()));
    std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let mut file = files::part(&folder.join("image")).context("creating a file for the download")?;
    let mut hasher = Hasher::new(image.checksum.as_ref());
    let mut done = 0;
    let mut parts = response.bytes_stream();
    while let Some(part) = parts.next().await {
        let part = part.map_err(|error| anyhow::anyhow!("downloading from {host}: {}", web::describe(&error)))?;
        done += part.len() as u64;
        ensure!(done <= limit, too_large(done));
        hasher.update(&part);
        // Parts are small; the disk's cache takes them at once.
        file.write_all(&part).context("writing the download")?;
        progress(done, whole);
    }
    hasher.verify()?;
    file.flush().context("writing the download")?;
    Ok(file.into_temp_path())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn specifications_name_their_faults() {
        for (specification, expected) in [
            (json!(null), "expected an object with a text `link`"),
            (json!({"link": 5}), "expected an object with a text `link`"),
            (json!({"link": "x"}), "link: expected a URL: relative URL without a base"),
            (json!({"link": "ftp://a/b"}), "link: expected http or https, found ftp"),
            (
                json!({"link": "http://a/b", "checksum": "abc"}),
                "checksum: expected 32 (MD5), 40 (SHA-1) or 64 (SHA-256) hexadecimal digits",
            ),
        ] {
            assert_eq!(Image::from_specification(&specification).unwrap_err(), expected, "{specification}");
        }
        let image =
            Image::from_specification(&json!({"link": "http://a/b", "checksum": "2136F2287235DB0F5D7E2A357539BBAC"}));
        assert_eq!(image.unwrap().checksum, Some(Checksum::Md5("2136f2287235db0f5d7e2a357539bbac".into())));
        assert_eq!(Image::from_specification(&json!({"link": "http://a/b", "checksum": ""})).unwrap().checksum, None);
    }

    #[test]
    fn each_checksum_is_verified() {
        for checksum in [
            Checksum::Md5("900150983cd24fb0d6963f7d28e17f72".into()),
            Checksum::Sha1("a9993e364706816aba3e25717850c26c9cd0d89d".into()),
            Checksum::Sha256("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".into()),
        ] {
            let mut hasher = Hasher::new(Some(&checksum));
            hasher.update(b"abc");
            hasher.verify().unwrap();
            let mut hasher = Hasher::new(Some(&checksum));
            hasher.update(b"abd");
            assert!(hasher.verify().unwrap_err().to_string().starts_with("the checksum is wrong: expected "));
        }
    }
}
