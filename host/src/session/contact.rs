//! When the broker was heard last, over restarts. It keeps messages for a
//! gateway that was away; among them may be commands, and nobody says how old
//! they are. So what it keeps is taken only after a short absence, measured by
//! the machine's steady clock: over a restart of the machine nobody knows.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::clock::{Moment, boot};
use crate::files;
use crate::scribe::Scribe;

/// How often it is written down.
const EVERY: Duration = Duration::from_secs(5);

/// See the module documentation.
pub struct Contact(Option<Kept>);

struct Kept {
    path: PathBuf,
    /// The longest absence after which messages are taken.
    longest: Duration,
    last: Option<Moment>,
    written: Option<Instant>,
    is_writing: Arc<AtomicBool>,
    scribe: Scribe,
    /// Whether the broker has refused to connect so, an odd number of times.
    is_refused: bool,
    /// How often in a row it closed the connection before it had answered.
    closed_early: u32,
}

/// Of so many connects that it closes early in a row, one asks for nothing.
const OTHERWISE: u32 = 4;

impl Contact {
    /// With a broker that is to keep nothing.
    pub fn none() -> Contact {
        Contact(None)
    }

    /// What an earlier life has written to the file; the scribe writes there.
    pub fn open(path: PathBuf, longest: Duration, scribe: Scribe) -> Contact {
        let text = files::read(&path, 100).ok().flatten().and_then(|bytes| String::from_utf8(bytes).ok());
        let last = text.and_then(|text| {
            let (steady, of) = text.trim().split_once(' ')?;
            let is_this_boot = of.parse() == Ok(boot());
            let steady = steady.parse().ok().filter(|steady| is_this_boot && *steady <= Moment::now().steady)?;
            Some(Moment { wall: 0, steady })
        });
        let is_writing = Arc::default();
        Contact(Some(Kept {
            path,
            longest,
            last,
            written: None,
            is_writing,
            scribe,
            is_refused: false,
            closed_early: 0,
        }))
    }

    /// Whether the next connect asks the broker to keep messages. One that may
    /// not want to is asked for less now and then.
    pub(super) fn asks_to_keep(&self) -> bool {
        let Some(kept) = &self.0 else { return false };
        !kept.is_refused && kept.closed_early % OTHERWISE != OTHERWISE - 1
    }

    /// The broker refused a client like this.
    pub(super) fn refused(&mut self) {
        self.0.iter_mut().for_each(|kept| kept.is_refused = !kept.is_refused);
    }

    /// It closed the connection before it had answered the CONNECT.
    pub(super) fn closed_early(&mut self) {
        self.0.iter_mut().for_each(|kept| kept.closed_early = kept.closed_early.wrapping_add(1));
    }

    /// It has taken a CONNECT.
    pub(super) fn stands(&mut self) {
        self.0.iter_mut().for_each(|kept| kept.closed_early = 0);
    }

    /// Whether what it has kept may be too old.
    pub(super) fn is_stale(&self) -> bool {
        let Some(kept) = &self.0 else { return false };
        kept.last.is_none_or(|last| Moment::now().since(last) > kept.longest)
    }

    /// Something came from the broker.
    pub(super) fn heard(&mut self) {
        let Some(kept) = &mut self.0 else { return };
        if kept.written.is_some_and(|written| written.elapsed() < EVERY) {
            return;
        }
        let now = Moment::now();
        (kept.last, kept.written) = (Some(now), Some(Instant::now()));
        if kept.is_writing.swap(true, Ordering::AcqRel) {
            return;
        }
        let (path, is_writing) = (kept.path.clone(), Arc::clone(&kept.is_writing));
        kept.scribe.write(move || {
            // Not the state folder itself: one that is gone is made again by who marks it.
            let _ = std::fs::create_dir(files::folder_of(&path));
            // Without it the broker is asked to forget at the next start; no more is lost.
            let _ = files::replace(&path, format!("{} {}", now.steady, boot()).as_bytes());
            is_writing.store(false, Ordering::Release);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_broker_keeps_is_taken_after_a_short_absence_that_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("outbox/contact");
        let scribe = Scribe::start().unwrap();
        let open = |longest| Contact::open(path.clone(), Duration::from_secs(longest), scribe.clone());
        let mut contact = open(60);
        assert!(contact.is_stale() && contact.asks_to_keep());
        contact.heard();
        assert!(!contact.is_stale());
        scribe.flush().await;
        assert!(!open(60).is_stale());
        let (boot, minutes_ago) = (boot(), Moment::now().steady - 120_000);
        let others = [format!("{minutes_ago} {boot}"), String::new(), format!("99999999999999999 {boot}")];
        for text in others.into_iter().chain([format!("{} 7", Moment::now().steady)]) {
            std::fs::write(&path, &text).unwrap();
            assert!(open(60).is_stale(), "{text}");
        }
        std::fs::write(&path, format!("{minutes_ago} {boot}")).unwrap();
        assert!(!open(600).is_stale());
        assert!(!Contact::none().is_stale());
    }

    #[tokio::test]
    async fn a_broker_that_does_not_want_to_keep_anything_is_asked_for_less() {
        let folder = tempfile::tempdir().unwrap();
        let scribe = Scribe::start().unwrap();
        let mut contact = Contact::open(folder.path().join("contact"), Duration::from_secs(60), scribe);
        let asked: Vec<bool> = (0..8)
            .map(|_| {
                let asks = contact.asks_to_keep();
                contact.closed_early();
                asks
            })
            .collect();
        assert_eq!(asked, [true, true, true, false, true, true, true, false]);
        contact.stands();
        contact.refused();
        assert!(!contact.asks_to_keep());
        assert!(!Contact::none().asks_to_keep());
    }
}
