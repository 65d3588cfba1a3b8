//! The gate before a swap: both versions of a driver run on what the device has
//! done lately, and what they do is compared.
//!
//! The device's tape gives what the device answered, which commands came and
//! how it was configured. Each version runs alone on that, in a runtime whose
//! time is paused, so an hour takes a moment; nothing reaches the device or a
//! cloud. Comparing two such runs, and not a run with the tape itself, leaves
//! out what only the way of running changes.

mod compare;
mod field;
mod rehearsal;

use std::sync::Arc;
use std::time::{Duration, Instant};

pub use rehearsal::Grounds;

use crate::receipt::Comparison;
use crate::sandbox::Driver;
use crate::tape::Tape;

/// How long both versions may take together.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs both versions and compares. Blocks; to be called outside of a runtime.
/// An error says why nothing can be compared.
pub fn compare((old, new): (&Arc<Driver>, &Arc<Driver>), tape: &Tape, grounds: &Grounds) -> Result<Comparison, String> {
    let until = Instant::now() + PATIENCE;
    let before =
        rehearsal::rehearse(old, tape, grounds, until).map_err(|problem| format!("the old driver: {problem}"))?;
    let after = rehearsal::rehearse(new, tape, grounds, until)?;
    Ok(compare::compare(&before, &after))
}
