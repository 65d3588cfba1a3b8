//! What drivers ask a cloud and wait for. Each dialogue writes it in the
//! grammar of its cloud.

use bytes::Bytes;
use serde_json::{Map, Value as Json};
use tokio::sync::{mpsc, oneshot};

/// A query of a driver, on its way to a session.
#[derive(Debug)]
pub struct Question {
    /// The channel that asks.
    pub channel: String,
    /// What it asks.
    pub query: Query,
    /// Who waits.
    pub reply: oneshot::Sender<Result<Bytes, NoAnswer>>,
}

/// What a driver may ask; the answer is a JSON document.
#[derive(Debug)]
pub enum Query {
    /// The names of all metadata: an array of texts.
    MetadataKeys,
    /// Metadata by name, or all of it: an object.
    Metadata(Vec<String>),
    /// To replace all metadata; the answer means nothing.
    ReplaceMetadata(Map<String, Json>),
    /// To set some metadata; the answer means nothing.
    MergeMetadata(Map<String, Json>),
    /// To remove metadata by name; the answer means nothing.
    DeleteMetadata(Vec<String>),
    /// The right to upload files: an object with a text `token`.
    UploadToken,
}

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// There is no connection.
    #[error("there is no connection to the cloud")]
    Unavailable,
    /// It did not answer in time.
    #[error("the cloud did not answer in time")]
    TimedOut,
    /// It answered with an error.
    #[error("the cloud refused: {0} {1}")]
    Refused(u16, String),
}

/// Asks a cloud and waits for the answer.
pub async fn ask(questions: &mpsc::Sender<Question>, channel: &str, query: Query) -> Result<Bytes, NoAnswer> {
    let (reply, answer) = oneshot::channel();
    let question = Question { channel: channel.to_owned(), query, reply };
    questions.try_send(question).map_err(|_| NoAnswer::Unavailable)?;
    answer.await.unwrap_or(Err(NoAnswer::Unavailable))
}
