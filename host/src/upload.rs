//! Uploading files of devices: Kaa's binary data collection.
//!
//! A token comes over MQTT and is good for an hour; the file goes by HTTP.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use reqwest::{StatusCode, Url};
use serde_json::Value as Json;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::question::{NoAnswer, Query, Question, ask};
use crate::web;

/// Kaa's default is an hour; a token that is refused is replaced anyway.
const TOKEN_LIFE: Duration = Duration::from_secs(55 * 60);

/// The content type that the API asks for.
const BYTES: &str = "application/octet-stream";

/// See the module documentation.
pub struct BinaryData {
    url: Url,
    client: reqwest::Client,
    /// Content types that are known to be taken beside `BYTES`.
    types: Vec<String>,
    /// Upload tokens by channel, with the time when they end.
    tokens: Mutex<HashMap<String, (String, Instant)>>,
}

/// Why nothing was uploaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UploadError {
    /// No upload token.
    #[error(transparent)]
    NoToken(#[from] NoAnswer),
    /// The store of files refused.
    #[error("{0} {1}")]
    Refused(u16, String),
    /// No connection, broken TLS, a strange answer.
    #[error("{0}")]
    Failed(String),
}

impl BinaryData {
    /// Uploads to `<url>/bcx/api/v1/binary-data`.
    pub fn new(url: &str, types: &[String]) -> Result<BinaryData> {
        let url = Url::parse(&format!("{}/bcx/api/v1/binary-data", url.trim_end_matches('/')))?;
        Ok(BinaryData { url, client: web::client()?, types: types.to_vec(), tokens: Mutex::default() })
    }

    /// Uploads a file of a channel and returns where it is.
    pub async fn upload(
        &self,
        questions: &mpsc::Sender<Question>,
        channel: &str,
        file: File,
    ) -> Result<String, UploadError> {
        let cached = self.cached(channel);
        let is_cached = cached.is_some();
        let token = match cached {
            Some(token) => token,
            None => self.ask(questions, channel).await?,
        };
        match self.post(&token, &file).await {
            // It ended early, or was withdrawn: once more with a fresh one.
            Err(UploadError::Refused(403, _)) => {
                self.tokens.lock().unwrap_or_else(PoisonError::into_inner).remove(channel);
                tracing::debug!(is_cached, "an upload token was refused; asking for another one");
                let token = self.ask(questions, channel).await?;
                self.post(&token, &file).await
            }
            result => result,
        }
    }

    fn cached(&self, channel: &str) -> Option<String> {
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.get(channel).filter(|(_, end)| *end > Instant::now()).map(|(token, _)| token.clone())
    }

    async fn ask(&self, questions: &mpsc::Sender<Question>, channel: &str) -> Result<String, UploadError> {
        let answer = ask(questions, channel, Query::UploadToken).await?;
        let body: Json = serde_json::from_slice(&answer).unwrap_or_default();
        let token = body.get("token").and_then(Json::as_str).filter(|token| !token.is_empty()).map(str::to_owned);
        let token = token.ok_or_else(|| UploadError::Failed("the cloud's answer has no upload token".into()))?;
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.insert(channel.to_owned(), (token.clone(), Instant::now() + TOKEN_LIFE));
        Ok(token)
    }

    async fn post(&self, token: &str, file: &File) -> Result<String, UploadError> {
        let mut url = self.url.clone();
        url.query_pairs_mut().append_pair("name", &file.name);
        let known = self.types.iter().find(|known| known.eq_ignore_ascii_case(&file.content_type));
        let request = self
            .client
            .post(url)
            .header("x-auth-token", token)
            .header("content-type", known.map_or(BYTES, String::as_str))
            .body(file.bytes.clone());
        let response = request.send().await.map_err(|error| UploadError::Failed(web::describe(&error)))?;
        let status = response.status();
        if !status.is_success() {
            let reason = status.canonical_reason().unwrap_or("refused").to_owned();
            return Err(UploadError::Refused(status.as_u16(), reason));
        }
        let place = response.headers().get("location").and_then(|place| place.to_str().ok()).map(str::to_owned);
        match (place, status) {
            (Some(place), _) => Ok(place),
            // The newer store has no place to tell.
            (None, StatusCode::NO_CONTENT) => Ok(file.name.clone()),
            (None, _) => Err(UploadError::Failed("the store of files did not say where the file is".into())),
        }
    }
}

/// A file on its way.
pub struct File {
    /// Its name.
    pub name: String,
    /// Such as `image/png`.
    pub content_type: String,
    /// Its content.
    pub bytes: Bytes,
}
