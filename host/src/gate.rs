//! The gate before a swap: both versions of a driver run on what the device has
//! done lately, and what they do is compared.
//!
//! The device's tape gives what the device answered, which commands came and
//! how it was configured. Each version runs alone on that, in a runtime whose
//! time is paused, so an hour takes a moment, and in a process of its own; nothing
//! reaches the device or a cloud. Comparing two such runs, and not a run with the
//! tape itself, leaves out what only the way of running changes.

mod child;
mod compare;
mod deeds;
mod field;
mod rehearsal;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub use child::{Allowed, Order, compare_in_child, gate_worker};
pub(crate) use deeds::Deeds;
pub(crate) use field::TapeField;
pub use rehearsal::Grounds;

use crate::receipt::Comparison;
use crate::sandbox::Driver;
use crate::tape::Tape;
use crate::text;
use rehearsal::rehearse;

/// How long both versions may take together.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why nothing can be compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Whether the new version is to blame.
    pub is_of_new: bool,
    /// What was wrong.
    pub text: String,
}

/// Runs both versions and compares. Blocks; to be called outside of a runtime.
pub fn compare(
    (old, new): (&Arc<Driver>, &Arc<Driver>),
    tape: &Tape,
    grounds: &Grounds,
) -> Result<Comparison, Problem> {
    let begin = Instant::now();
    let of_old = |text: String| Problem { is_of_new: false, text: format!("the old driver: {text}") };
    let before = rehearse(old, tape, grounds, begin + PATIENCE / 2).map_err(of_old)?;
    if before.lives > 1 {
        let problem = before.problem.unwrap_or_default();
        return Err(of_old(format!("it does not go through: {problem}")));
    }
    let (sent, again, equal) = compare::sent_again(tape, &before);
    if again * 2 < sent || equal * 2 < sent as u64 && !before.unknown.is_empty() {
        let unknown = text::list(before.unknown);
        return Err(of_old(format!("it sends {equal} of {sent} samples again; the tape has no answer to {unknown}")));
    }
    let of_new = |text: String| Problem { is_of_new: true, text };
    let after = rehearse(new, tape, grounds, begin + PATIENCE).map_err(of_new)?;
    Ok(compare::compare(tape, &before, &after))
}
