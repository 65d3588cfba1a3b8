//! The broker's messages that are not acknowledged yet: each is when what it
//! asks for is on the disk. MQTT wants that in the order in which they came.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// A disk that takes longer must not hold up all that comes behind: by then the
/// command is refused.
const LONGEST: Duration = Duration::from_secs(6);

/// See the module documentation.
#[derive(Default)]
pub(super) struct Acknowledgements {
    open: VecDeque<(u16, Weak<Held>, Instant)>,
    changed: Arc<Notify>,
}

/// Holds an acknowledgement back until the last clone of it is dropped.
#[derive(Clone)]
pub(super) struct Receipt {
    _held: Arc<Held>,
}

struct Held(Arc<Notify>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl Acknowledgements {
    /// A message came, by this packet id; id 0 wants no acknowledgement.
    pub(super) fn begin(&mut self, packet: u16, now: Instant) -> Receipt {
        let held = Arc::new(Held(Arc::clone(&self.changed)));
        if packet != 0 {
            self.open.push_back((packet, Arc::downgrade(&held), now + LONGEST));
        }
        Receipt { _held: held }
    }

    /// The packet id of the next message to acknowledge, if it is time.
    pub(super) fn next(&mut self, now: Instant) -> Option<u16> {
        let is_time = |(_, held, end): &mut (u16, Weak<Held>, Instant)| held.strong_count() == 0 || *end <= now;
        self.open.pop_front_if(is_time).map(|(packet, ..)| packet)
    }

    /// When the oldest one is acknowledged whatever holds it back.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.open.front().map(|(.., end)| *end)
    }

    /// Waits until there may be one.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_acknowledged_in_order_each_when_nobody_holds_it_back() {
        let mut acknowledgements = Acknowledgements::default();
        let now = Instant::now();
        let (first, second) = (acknowledgements.begin(1, now), acknowledgements.begin(2, now));
        drop(acknowledgements.begin(0, now));
        let clone = first.clone();
        drop((first, second));
        assert_eq!(acknowledgements.next(now), None);
        drop(clone);
        assert_eq!([(); 3].map(|()| acknowledgements.next(now)), [Some(1), Some(2), None]);
        let _stuck = acknowledgements.begin(3, now);
        let end = acknowledgements.next_wake().unwrap();
        assert_eq!((acknowledgements.next(now), acknowledgements.next(end)), (None, Some(3)));
    }
}
