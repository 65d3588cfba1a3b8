//! What the gateway wants of a session: a look at the new picture, questions, the end.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::Picture;
use crate::question::{NoAnswer, Question};

/// See the module documentation.
pub(super) struct Wishes {
    pub picture: watch::Receiver<Arc<Picture>>,
    pub questions: mpsc::Receiver<Question>,
}

/// One of them.
pub(super) enum Wish {
    /// To stop: the gateway is gone.
    Stop,
    /// To look at the new picture.
    Look,
    /// To ask the cloud.
    Ask(Question),
}

impl Wishes {
    /// Waits for the next one. Questions wait until the connection stands.
    pub(super) async fn next(&mut self, may_ask: bool) -> Wish {
        tokio::select! {
            changed = self.picture.changed() => changed.map_or(Wish::Stop, |()| Wish::Look),
            Some(question) = self.questions.recv(), if may_ask => Wish::Ask(question),
        }
    }

    /// Refuses all questions until the gateway stops.
    pub(super) async fn refuse(&mut self) {
        loop {
            match self.next(true).await {
                Wish::Stop => return,
                Wish::Look => {}
                // Whoever asked may be gone.
                Wish::Ask(question) => drop(question.reply.send(Err(NoAnswer::Unavailable))),
            }
        }
    }
}
