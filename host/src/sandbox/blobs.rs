//! The import `blobs`: files for the cloud.

use std::time::Duration;

use super::contract::sandgate::driver::blobs::BlobError;
use super::state::State;
use crate::question::NoAnswer;
use crate::upload::{File, UploadError};

const MAX_NAME: usize = 256;
const MAX_FILE: usize = 4 << 20;
/// The device's own wall-clock limit usually ends a call before.
const PATIENCE: Duration = Duration::from_secs(300);

impl State {
    pub(super) async fn upload(
        &mut self,
        name: String,
        content_type: String,
        bytes: Vec<u8>,
    ) -> Result<String, BlobError> {
        let is_visible = |text: &str| !text.is_empty() && text.len() <= MAX_NAME && !text.chars().any(char::is_control);
        if !is_visible(&name) {
            return Err(BlobError::InvalidArgument(format!("name: expected 1 to {MAX_NAME} visible characters")));
        }
        if !is_visible(&content_type) || !content_type.is_ascii() || !content_type.contains('/') {
            return Err(BlobError::InvalidArgument("content type: expected one such as image/png".into()));
        }
        if bytes.len() > MAX_FILE {
            return Err(BlobError::TooLarge(u32::try_from(MAX_FILE).unwrap_or(u32::MAX)));
        }
        let mut routes = self.outlet.routes.iter();
        let route = routes
            .find_map(|route| Some((route.binary_data.clone()?, route.questions.clone()?, route.channel.name.clone())));
        let (store, questions, channel) = route.ok_or(BlobError::Unsupported)?;
        let file = File { name, content_type, bytes: bytes.into() };
        let upload = tokio::time::timeout(PATIENCE, store.upload(&questions, &channel, file)).await;
        upload.unwrap_or(Err(UploadError::NoToken(NoAnswer::TimedOut))).map_err(|error| match error {
            UploadError::NoToken(NoAnswer::Unavailable) => BlobError::Unavailable,
            UploadError::NoToken(NoAnswer::TimedOut) => BlobError::TimedOut,
            UploadError::NoToken(NoAnswer::Refused(code, reason)) | UploadError::Refused(code, reason) => {
                BlobError::Refused(format!("{code} {reason}"))
            }
            UploadError::Failed(text) => BlobError::Failed(text),
        })
    }
}
