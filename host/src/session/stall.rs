//! Finds out that a broker answers pings, and nothing else that waits for it.

/// Answered pings without any other answer, after which the connection counts as stalled.
const STALLED: u32 = 2;

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Stall {
    /// Answers until the last ping.
    answers: u64,
    /// Pings that were answered in a row while nothing else was.
    pings: u32,
}

impl Stall {
    /// A ping was answered: whether it is found out by now.
    pub(super) fn pinged(&mut self, something_waits: bool, answers: u64) -> bool {
        self.pings = if something_waits && answers == self.answers { self.pings + 1 } else { 0 };
        self.answers = answers;
        self.pings >= STALLED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_that_answers_nothing_but_pings_is_found_and_one_that_is_idle_is_not() {
        let mut stall = Stall::default();
        for (something_waits, answers, found) in [
            (false, 0, false),
            (true, 0, false),
            (true, 1, false),
            (true, 1, false),
            (true, 1, true),
            (true, 2, false),
            (false, 2, false),
            (false, 2, false),
        ] {
            assert_eq!(stall.pinged(something_waits, answers), found, "{something_waits} {answers}");
        }
    }
}
