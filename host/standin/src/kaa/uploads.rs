//! Binary data (extension `bcx`): upload tokens and what was uploaded with them; and the
//! files that the stand-in serves for software offers.
//!
//! The service hands out tokens over MQTT, the HTTP side takes and serves the bytes.

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::Bytes;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::answer::Refusal;

/// Larger blobs and files are refused.
pub const MAX_BLOB: usize = 16 << 20;
/// Maximum bytes of all blobs and files together.
pub const MAX_BYTES: usize = 256 << 20;
/// Maximum blobs and files.
pub const MAX_BLOBS: usize = 10_000;
/// Maximum valid tokens; the oldest goes first.
pub const MAX_TOKENS: usize = 10_000;

/// Tokens, blobs and files.
#[derive(Debug, Default)]
pub struct Uploads {
    tokens: HashMap<String, Grant>,
    order: VecDeque<String>,
    blobs: BTreeMap<u64, Blob>,
    last_blob: u64,
    files: BTreeMap<(String, String), Bytes>,
    bytes: usize,
}

#[derive(Debug)]
struct Grant {
    endpoint: String,
    expires: u64,
}

/// Something that an endpoint uploaded.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Blob {
    /// Unique.
    pub id: u64,
    /// Whose.
    pub endpoint: String,
    /// The name that the endpoint gave it, if any.
    pub name: Option<String>,
    /// In bytes.
    pub size: usize,
    /// Of the bytes, in hexadecimal digits.
    pub sha256: String,
    /// When it came, in milliseconds since 1970.
    pub received: u64,
    /// The bytes.
    #[serde(skip)]
    pub bytes: Bytes,
}

impl Uploads {
    /// Makes a token for an endpoint. It is opaque; the real ones are signed.
    pub fn grant(&mut self, now: u64, endpoint: &str, lifetime: u64) -> String {
        self.tokens.retain(|_, grant| grant.expires > now);
        self.order.retain(|token| self.tokens.contains_key(token));
        if self.order.len() >= MAX_TOKENS
            && let Some(oldest) = self.order.pop_front()
        {
            self.tokens.remove(&oldest);
        }
        let token = format!("{:032x}{:032x}", fastrand::u128(..), fastrand::u128(..));
        let grant = Grant { endpoint: endpoint.to_owned(), expires: now.saturating_add(lifetime) };
        self.tokens.insert(token.clone(), grant);
        self.order.push_back(token.clone());
        token
    }

    /// Whose token it is.
    pub fn check(&self, now: u64, token: Option<&str>) -> Result<String, Refusal> {
        let token = token.ok_or_else(|| Refusal::forbidden("x-auth-token: missing"))?;
        match self.tokens.get(token) {
            None => Err(Refusal::forbidden("x-auth-token: not known")),
            Some(grant) if grant.expires <= now => Err(Refusal::forbidden("x-auth-token: expired")),
            Some(grant) => Ok(grant.endpoint.clone()),
        }
    }

    /// Takes the tokens of an endpoint away.
    pub fn revoke(&mut self, endpoint: &str) {
        self.tokens.retain(|_, grant| grant.endpoint != endpoint);
        self.order.retain(|token| self.tokens.contains_key(token));
    }

    /// Keeps a blob. With `replace` one of the same name goes.
    pub fn store(
        &mut self,
        now: u64,
        endpoint: &str,
        name: Option<String>,
        bytes: Bytes,
        replace: bool,
    ) -> Result<Blob, Refusal> {
        let same = |blob: &&Blob| replace && blob.endpoint == endpoint && blob.name == name;
        let old = self.blobs.values().find(same).map(|old| (old.id, old.size));
        self.check_room(bytes.len(), old.map_or(0, |(_, size)| size))?;
        if let Some((id, size)) = old {
            self.blobs.remove(&id);
            self.bytes -= size;
        }
        self.bytes += bytes.len();
        self.last_blob += 1;
        let (id, endpoint, size, sha256) = (self.last_blob, endpoint.to_owned(), bytes.len(), hex(&bytes));
        let blob = Blob { id, endpoint, name, size, sha256, received: now, bytes };
        self.blobs.insert(id, blob.clone());
        Ok(blob)
    }

    /// The blobs of an endpoint, oldest first.
    pub fn blobs<'a>(&'a self, endpoint: &'a str) -> impl Iterator<Item = &'a Blob> {
        self.blobs.values().filter(move |blob| blob.endpoint == endpoint)
    }

    /// One blob.
    pub fn blob(&self, endpoint: &str, id: u64) -> Option<&Blob> {
        self.blobs.get(&id).filter(|blob| blob.endpoint == endpoint)
    }

    /// Keeps a file to serve and returns its SHA-256.
    pub fn store_file(&mut self, name: &str, bytes: Bytes) -> Result<String, Refusal> {
        let key = (hex(&bytes), name.to_owned());
        if !self.files.contains_key(&key) {
            self.check_room(bytes.len(), 0)?;
            self.bytes += bytes.len();
            self.files.insert(key.clone(), bytes);
        }
        Ok(key.0)
    }

    /// A file to serve.
    pub fn file(&self, sha256: &str, name: &str) -> Option<Bytes> {
        self.files.get(&(sha256.to_owned(), name.to_owned())).cloned()
    }

    fn check_room(&self, new: usize, old: usize) -> Result<(), Refusal> {
        if new > MAX_BLOB {
            return Err(Refusal::new(413, format!("{new} bytes: expected at most {MAX_BLOB}")));
        }
        if self.bytes - old + new > MAX_BYTES || self.blobs.len() + self.files.len() >= MAX_BLOBS {
            return Err(Refusal::full(format!("store: expected at most {MAX_BLOBS} blobs and {MAX_BYTES} bytes")));
        }
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_bound_to_its_endpoint_and_expires() {
        let mut uploads = Uploads::default();
        let (one, other) = (uploads.grant(0, "T", 100), uploads.grant(0, "U", 200));
        assert_eq!(uploads.check(99, Some(&one)).unwrap(), "T");
        assert_eq!(uploads.check(99, Some(&other)).unwrap(), "U");
        for (now, token) in [(100, Some(one.as_str())), (0, Some("x")), (0, None)] {
            assert_eq!(uploads.check(now, token).unwrap_err().status, 403);
        }
        uploads.revoke("U");
        assert_eq!(uploads.check(99, Some(&other)).unwrap_err().status, 403);
        let first = uploads.grant(0, "V", 100);
        for _ in 0..MAX_TOKENS {
            uploads.grant(0, "V", 100);
        }
        assert!(uploads.check(1, Some(&first)).is_err());
    }

    #[test]
    fn blobs_are_kept_replaced_and_bounded() {
        let mut uploads = Uploads::default();
        let name = || Some("a.bin".to_owned());
        let first = uploads.store(0, "T", name(), Bytes::from_static(b"one"), false).unwrap();
        let second = uploads.store(0, "T", name(), Bytes::from_static(b"two"), true).unwrap();
        assert!(uploads.blob("T", first.id).is_none());
        assert_eq!(uploads.blob("T", second.id).unwrap().bytes, "two");
        assert!(uploads.blob("U", second.id).is_none());
        let large = Bytes::from(vec![0; MAX_BLOB]);
        for _ in 0..MAX_BYTES / MAX_BLOB - 1 {
            uploads.store(0, "T", None, large.clone(), false).unwrap();
        }
        assert_eq!(uploads.store(0, "T", None, large.clone(), false).unwrap_err().status, 507);
        assert_eq!(uploads.store(0, "T", None, vec![0; MAX_BLOB + 1].into(), false).unwrap_err().status, 413);
        assert_eq!(uploads.blobs("T").count(), MAX_BYTES / MAX_BLOB);
        let sha = uploads.store_file("fw.bin", Bytes::from_static(b"fw")).unwrap();
        assert_eq!(uploads.file(&sha, "fw.bin").unwrap(), "fw");
        assert!(uploads.file(&sha, "other.bin").is_none());
    }
}
