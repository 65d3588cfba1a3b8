//! One cloud connection, as the supervisor sees it.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::FLUSH;
use crate::cloud::Cloud;
use crate::message::SessionName;
use crate::outbox::Outbox;
use crate::question::Question;
use crate::router::Route;
use crate::session::{Picture, SessionStatus};
use crate::statistics::Counter;
use crate::upload::BinaryData;

/// See the module documentation.
pub(super) struct SessionEntry {
    pub cloud: Arc<dyn Cloud>,
    pub outbox: Arc<Outbox>,
    pub address: String,
    pub picture: watch::Sender<Arc<Picture>>,
    pub status: watch::Receiver<SessionStatus>,
    pub refused: Arc<Counter>,
    /// Where questions to the cloud go, if it answers any.
    pub questions: Option<mpsc::Sender<Question>>,
    /// Where files go, if the cloud takes any.
    pub binary_data: Option<Arc<BinaryData>>,
    /// The largest software that is taken.
    pub max_software: u64,
    /// The session itself, until the first picture is complete.
    pub waiting: Option<crate::session::Session>,
    /// The session's task after that.
    pub running: Option<JoinHandle<()>>,
}

impl SessionEntry {
    /// The way of one channel.
    pub(super) fn route(&self, name: &SessionName, channel: crate::cloud::Channel) -> Route {
        Route {
            session: name.clone(),
            channel,
            outbox: Arc::clone(&self.outbox),
            questions: self.questions.clone(),
            binary_data: self.binary_data.clone(),
        }
    }
}

/// Brings what a session has not delivered to the disk, and says what is left.
/// False where that does not work.
pub(super) async fn keep_for_the_next_start(session: &SessionName, outbox: Arc<Outbox>) -> bool {
    let waiting = outbox.stats().waiting;
    let flushed = tokio::time::timeout(FLUSH, outbox.flush()).await;
    let messages = crate::text::count(waiting, "message");
    match &flushed {
        _ if waiting == 0 => {}
        Ok(Ok(())) => tracing::info!(%session, "{messages} wait in the outbox; the next start sends them"),
        Ok(Err(problem)) => tracing::error!(%session, "{messages} may be lost: {problem}"),
        Err(_) => {
            tracing::warn!(%session, "{messages} wait in the outbox, and the disk is busy: a power cut now loses some")
        }
    }
    matches!(flushed, Ok(Ok(())))
}
