//! How many messages may be on the way to the broker without a PUBACK: many
//! when it answers at once, few when the way to it is slow, so that what comes
//! next, a command's result say, does not queue behind them for long.

use std::time::Duration;

use tokio::time::Instant;

/// Bounds of the number.
const FEWEST: usize = 16;
pub(super) const MOST: u16 = 2048;
/// At first, and at most for a broker that is not near.
const USUAL: usize = 256;
/// How soon a near broker answers.
const NEAR: Duration = Duration::from_millis(50);
/// How soon an answer comes that is not worth fewer messages.
const SLOW: Duration = Duration::from_secs(2);

/// See the module documentation. One message at a time is timed.
#[derive(Debug)]
pub(super) struct Window {
    size: usize,
    timed: Option<(u16, Instant)>,
}

impl Window {
    pub(super) fn new() -> Self {
        Window { size: USUAL, timed: None }
    }

    /// How many messages may be on the way.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// A message was written by this packet id.
    pub(super) fn wrote(&mut self, packet: u16) {
        if self.timed.is_none() {
            self.timed = Some((packet, Instant::now()));
        }
    }

    /// A PUBACK came for this packet id.
    pub(super) fn proved(&mut self, packet: u16) {
        if let Some((_, since)) = self.timed.take_if(|(timed, _)| *timed == packet) {
            self.adapt(since.elapsed());
        }
    }

    fn adapt(&mut self, time: Duration) {
        self.size = if time <= NEAR {
            (self.size * 2).min(usize::from(MOST))
        } else if time <= SLOW {
            (self.size * 2).min(USUAL)
        } else {
            (self.size / 2).max(FEWEST)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_broker_gets_many_at_once_and_a_slow_way_few() {
        let mut window = Window::new();
        let sizes = |window: &mut Window, millis: u64, times: usize| {
            let adapt = |_| {
                window.adapt(Duration::from_millis(millis));
                window.size()
            };
            (0..times).map(adapt).collect::<Vec<_>>()
        };
        assert_eq!(sizes(&mut window, 20, 4), [512, 1024, 2048, 2048]);
        assert_eq!(sizes(&mut window, 600, 2), [256, 256]);
        assert_eq!(sizes(&mut window, 5000, 5), [128, 64, 32, 16, 16]);
        assert_eq!(sizes(&mut window, 600, 5), [32, 64, 128, 256, 256]);
    }

    #[test]
    fn one_message_is_timed_and_another_ones_proof_does_not_end_that() {
        let mut window = Window::new();
        window.wrote(7);
        window.wrote(8);
        window.proved(8);
        assert_eq!(window.size(), USUAL);
        window.proved(7);
        assert_eq!(window.size(), 2 * USUAL);
        assert!(window.timed.is_none());
    }
}
