//! Whose turn it is to start: devices are made ready a few at a time, in the
//! order in which they were asked for.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Devices that are made ready at a time: each takes a processor and memory.
const AT_ONCE: usize = 4;

/// See the module documentation.
pub(super) struct Starts {
    waiting: VecDeque<String>,
    turns: Arc<Semaphore>,
    last: u64,
}

impl Starts {
    pub(super) fn new() -> Starts {
        Starts { waiting: VecDeque::new(), turns: Arc::new(Semaphore::new(AT_ONCE)), last: 0 }
    }

    /// A number that no start or end of a device had before.
    pub(super) fn next_number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Lets a device wait for its turn.
    pub(super) fn queue(&mut self, device: &str) {
        self.waiting.push_back(device.to_owned());
    }

    /// Waits until it is a device's turn; its turn ends with the permit. Nothing
    /// is lost when the wait is given up.
    pub(super) async fn next(&mut self) -> (String, OwnedSemaphorePermit) {
        let turn = match self.waiting.is_empty() {
            false => Arc::clone(&self.turns).acquire_owned().await.ok(),
            true => None,
        };
        match turn.and_then(|turn| Some((self.waiting.pop_front()?, turn))) {
            Some(next) => next,
            // Nobody waits; the semaphore is never closed.
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_few_start_at_a_time_and_the_others_in_order() {
        let mut starts = Starts::new();
        assert!(starts.next().now_or_never().is_none());
        (0..6).for_each(|number| starts.queue(&number.to_string()));
        let mut running: Vec<_> = std::iter::from_fn(|| starts.next().now_or_never()).collect();
        assert_eq!(running.iter().map(|(device, _)| device.as_str()).collect::<Vec<_>>(), ["0", "1", "2", "3"]);
        drop(running.remove(1));
        running.extend(starts.next().now_or_never());
        assert_eq!(running.last().map(|(device, _)| device.as_str()), Some("4"));
        assert!(starts.next().now_or_never().is_none());
        drop(running);
        assert_eq!(starts.next().now_or_never().map(|(device, _)| device), Some("5".to_owned()));
        assert!(starts.next().now_or_never().is_none());
        assert_ne!(starts.next_number(), starts.next_number());
    }
}
