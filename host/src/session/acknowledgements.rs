//! The broker's messages that are not acknowledged yet: each is when what it
//! asks for is on the disk. MQTT wants that in the order in which they came.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use tokio::sync::Notify;

/// See the module documentation.
#[derive(Default)]
pub(super) struct Acknowledgements {
    open: VecDeque<(u16, Weak<Held>)>,
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
    pub(super) fn begin(&mut self, packet: u16) -> Receipt {
        let held = Arc::new(Held(Arc::clone(&self.changed)));
        if packet != 0 {
            self.open.push_back((packet, Arc::downgrade(&held)));
        }
        Receipt { _held: held }
    }

    /// The packet id of the next message to acknowledge, if it is time.
    pub(super) fn next(&mut self) -> Option<u16> {
        self.open.pop_front_if(|(_, held)| held.strong_count() == 0).map(|(packet, _)| packet)
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
        let (first, second) = (acknowledgements.begin(1), acknowledgements.begin(2));
        drop(acknowledgements.begin(0));
        let clone = first.clone();
        drop((first, second));
        assert_eq!(acknowledgements.next(), None);
        drop(clone);
        assert_eq!(
            [acknowledgements.next(), acknowledgements.next(), acknowledgements.next()],
            [Some(1), Some(2), None]
        );
    }
}
