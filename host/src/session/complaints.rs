//! Messages from a cloud that cannot be used: all are counted, some are told.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::message::SessionName;
use crate::statistics::Counter;

/// Messages that are told of in a minute; the others are counted only.
const TOLD: u32 = 20;
const MINUTE: Duration = Duration::from_secs(60);

/// See the module documentation.
#[derive(Debug)]
pub struct Complaints {
    session: SessionName,
    counter: Arc<Counter>,
    /// When this minute began, and how many were told since.
    since: Option<Instant>,
    told: u32,
}

impl Complaints {
    /// Those of a session; the counter is shared with whoever shows it.
    pub fn new(session: &SessionName, counter: Arc<Counter>) -> Self {
        Complaints { session: session.clone(), counter, since: None, told: 0 }
    }

    /// Counts a message, and says what is wrong with it if not too many came.
    pub fn refused(&mut self, problem: &str) {
        self.counter.count();
        if self.since.is_none_or(|since| since.elapsed() > MINUTE) {
            (self.since, self.told) = (Some(Instant::now()), 0);
        }
        self.told += 1;
        match self.told {
            ..TOLD => tracing::warn!(session = self.session.as_str(), "refused {problem}"),
            TOLD => tracing::warn!(
                session = self.session.as_str(),
                "refused {problem}; more of this minute are counted only"
            ),
            _ => {}
        }
    }
}
