//! How much may be on the way to the broker without a PUBACK: much when it
//! answers at once, little when the way to it is slow, so that what comes
//! next, the answer to a command say, does not queue behind it for long.

use std::time::Duration;

use tokio::time::Instant;

/// The most messages, at the highest level.
pub(super) const MOST: u16 = FEWEST << NEAREST;
/// Messages and bytes at the lowest level; each level doubles both.
const FEWEST: u16 = 16;
const LEAST: usize = 4 << 10;
/// Levels: at first, at most for a broker that is far, at most.
const FIRST: u8 = 2;
const FAR: u8 = 4;
const NEAREST: u8 = 7;
/// How soon a near broker answers.
const NEAR: Duration = Duration::from_millis(50);
/// How soon a message is answered when more may be on the way.
const PROMPT: Duration = Duration::from_secs(1);
/// How soon, when it should be less.
const SLOW: Duration = Duration::from_secs(2);

/// See the module documentation. One message at a time is timed.
#[derive(Debug)]
pub(super) struct Window {
    level: u8,
    timed: Option<(u16, Instant)>,
}

impl Window {
    pub(super) fn new() -> Self {
        Window { level: FIRST, timed: None }
    }

    /// Whether one more may go while these messages and bytes are on the way.
    pub(super) fn has_room(&self, messages: usize, bytes: usize) -> bool {
        messages < usize::from(FEWEST) << self.level && (bytes < LEAST << self.level || messages == 0)
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
        if time > SLOW {
            self.level = self.level.saturating_sub(1);
        } else if time <= NEAR {
            self.level = (self.level + 1).min(NEAREST);
        } else if time <= PROMPT {
            self.level = (self.level + 1).min(FAR);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_broker_gets_much_at_once_and_a_slow_way_little() {
        let mut window = Window::new();
        let levels = |window: &mut Window, millis: u64, times: usize| {
            let adapt = |_| {
                window.adapt(Duration::from_millis(millis));
                window.level
            };
            (0..times).map(adapt).collect::<Vec<_>>()
        };
        assert_eq!(levels(&mut window, 20, 6), [3, 4, 5, 6, 7, 7]);
        assert_eq!(levels(&mut window, 600, 2), [4, 4]);
        assert_eq!(levels(&mut window, 1500, 2), [4, 4]);
        assert_eq!(levels(&mut window, 5000, 5), [3, 2, 1, 0, 0]);
        assert_eq!(levels(&mut window, 600, 5), [1, 2, 3, 4, 4]);
    }

    #[test]
    fn messages_and_bytes_are_bounded_and_one_message_may_always_go() {
        let window = Window { level: 0, timed: None };
        assert!(window.has_room(15, 100) && !window.has_room(16, 100));
        assert!(window.has_room(1, LEAST - 1) && !window.has_room(1, LEAST));
        assert!(window.has_room(0, 1 << 20));
        assert!(Window { level: NEAREST, timed: None }.has_room(usize::from(MOST) - 1, 1000));
    }

    #[test]
    fn one_message_is_timed_and_another_ones_proof_does_not_end_that() {
        let mut window = Window::new();
        window.wrote(7);
        window.wrote(8);
        window.proved(8);
        assert_eq!(window.level, FIRST);
        window.proved(7);
        assert_eq!(window.level, FIRST + 1);
        assert!(window.timed.is_none());
    }
}
