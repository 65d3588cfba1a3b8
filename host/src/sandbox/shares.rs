//! Who may compute: drivers that need little at once, the others in turn.
//!
//! A device that has used no more than its share lately runs whenever it is
//! called. One that has used more waits for a turn before each slice of a few
//! milliseconds, behind all others like it, and there is a turn less than there
//! are processors: whatever drivers do, one processor is left for those that
//! need little, and for the gateway itself.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What a device may use at once after a quiet time.
const BURST: Duration = Duration::from_millis(20);
/// The part of all processors that is shared out evenly.
const SHARED: f64 = 0.5;
/// A device's part of a processor: at least, at most.
const LEAST: f64 = 0.002;
const MOST: f64 = 0.1;

/// The turns of all devices; clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Shares(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    turns: Arc<Semaphore>,
    processors: f64,
    devices: AtomicUsize,
}

/// What one device has left of its share.
pub(super) struct Share {
    shares: Shares,
    /// Seconds of a processor; negative: it has used more.
    left: f64,
    since: Instant,
    /// The turn that it waits for.
    waits: Option<Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send>>>,
}

impl Shares {
    pub(super) fn new() -> Shares {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let turns = Arc::new(Semaphore::new(processors.saturating_sub(1).max(1)));
        #[allow(clippy::cast_precision_loss)] // a few
        let processors = processors as f64;
        Shares(Arc::new(Inner { turns, processors, devices: AtomicUsize::new(0) }))
    }

    /// The share of one more device.
    pub(super) fn share(&self, now: Instant) -> Share {
        self.0.devices.fetch_add(1, Ordering::Relaxed);
        Share { shares: self.clone(), left: BURST.as_secs_f64(), since: now, waits: None }
    }

    /// Seconds of a processor that each device gets in a second.
    #[allow(clippy::cast_precision_loss)] // some thousands
    fn rate(&self) -> f64 {
        let devices = self.0.devices.load(Ordering::Relaxed).max(1) as f64;
        (SHARED * self.0.processors / devices).clamp(LEAST, MOST)
    }
}

impl Share {
    /// Waits for a turn, if the device has used up its share. The turn ends
    /// when what this gives is dropped.
    pub(super) fn poll_turn(&mut self, context: &mut Context<'_>) -> Poll<Option<OwnedSemaphorePermit>> {
        if self.waits.is_none() {
            if self.left > 0.0 || self.refill(Instant::now()) > 0.0 {
                return Poll::Ready(None);
            }
            let turns = Arc::clone(&self.shares.0.turns);
            self.waits = Some(Box::pin(async move { turns.acquire_owned().await.ok() }));
        }
        let turn = match &mut self.waits {
            Some(waits) => ready!(waits.as_mut().poll(context)),
            None => None,
        };
        self.waits = None;
        Poll::Ready(turn)
    }

    /// Counts what was used now.
    pub(super) fn used(&mut self, time: Duration) {
        self.left -= time.as_secs_f64();
    }

    /// Gives up waiting.
    pub(super) fn end(&mut self) {
        self.waits = None;
    }

    fn refill(&mut self, now: Instant) -> f64 {
        let gained = now.saturating_duration_since(self.since).as_secs_f64() * self.shares.rate();
        self.since = now;
        // What was used long ago is forgiven: nobody waits for more than a second of it.
        let burst = BURST.as_secs_f64();
        self.left = (self.left.max(-self.shares.rate()) + gained).min(burst);
        self.left
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shares.0.devices.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn a_device_with_a_share_left_never_waits_and_the_others_take_turns() {
        let shares = Shares(Arc::new(Inner {
            turns: Arc::new(Semaphore::new(1)),
            processors: 2.0,
            devices: AtomicUsize::new(0),
        }));
        let now = Instant::now();
        let (mut light, mut first, mut second) = (shares.share(now), shares.share(now), shares.share(now));
        first.used(Duration::from_secs(10));
        second.used(Duration::from_secs(10));
        let mut context = Context::from_waker(Waker::noop());
        assert!(matches!(light.poll_turn(&mut context), Poll::Ready(None)));
        let Poll::Ready(Some(turn)) = first.poll_turn(&mut context) else { panic!("the first has the turn") };
        assert!(second.poll_turn(&mut context).is_pending());
        assert!(matches!(light.poll_turn(&mut context), Poll::Ready(None)));
        drop(turn);
        assert!(matches!(second.poll_turn(&mut context), Poll::Ready(Some(_))));
        // Its debt is bounded: after two seconds it runs freely again.
        assert!(first.refill(now + Duration::from_secs(3)) > 0.0);
    }

    #[test]
    fn the_more_devices_there_are_the_less_each_may_use_freely() {
        let shares = Shares(Arc::new(Inner {
            turns: Arc::new(Semaphore::new(1)),
            processors: 2.0,
            devices: AtomicUsize::new(0),
        }));
        let one = shares.share(Instant::now());
        assert!((shares.rate() - MOST).abs() < 1e-9);
        let many: Vec<_> = (0..99).map(|_| shares.share(Instant::now())).collect();
        assert!((shares.rate() - 0.01).abs() < 1e-9);
        drop((one, many));
        assert_eq!(shares.0.devices.load(Ordering::Relaxed), 0);
    }
}
