//! When something that could not be opened is tried again.

use std::time::Duration;

use tokio::time::Instant;

/// How long it is left alone: at first, and at most.
const SHORTEST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(30);

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Retry {
    failures: u32,
    at: Option<Instant>,
}

impl Retry {
    /// Whether it is left alone now.
    pub fn rests(&self) -> bool {
        self.at.is_some_and(|time| Instant::now() < time)
    }

    /// When it is tried again.
    pub fn at(&self) -> Option<Instant> {
        self.at
    }

    /// It could not be opened; true when it could before.
    pub fn failed(&mut self) -> bool {
        self.at = Some(Instant::now() + super::doubled(SHORTEST, self.failures, LONGEST));
        self.failures = self.failures.saturating_add(1);
        self.failures == 1
    }

    /// It is open; true when it was not before.
    pub fn succeeded(&mut self) -> bool {
        self.at = None;
        std::mem::take(&mut self.failures) > 0
    }
}
