//! What is kept of what a driver does: asked for, or after its death.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::handle::Recording;
use super::{Configuration, Device, prepare};
use crate::receipt::Outcome;
use crate::sandbox::{Driver, Instance};
use crate::tape::Tape;

/// What a tape that was asked for may hold.
const RECORDING: usize = 64 << 20;
/// How long it is kept until it is fetched.
const FETCHED_WITHIN: Duration = Duration::from_secs(60);

impl Device {
    /// What the driver has done in this life.
    pub(super) fn tape(&mut self, problem: Option<&str>) -> Option<Tape> {
        let mut header = self.driver.header(self.spec.id.as_str());
        header.problem = problem.map(str::to_owned);
        let instance = self.life.instance.as_mut()?;
        let tape = instance.tape(header);
        if let Some(tapes) = &self.spec.capabilities.tapes {
            // What was asked for may be over.
            instance.record(tapes, &self.life.configuration);
        }
        tape
    }

    /// Keeps what a driver has done that is dead now.
    pub(super) fn post_mortem(&mut self, problem: &str) {
        let tape = self.tape(Some(problem));
        if let (Some(tapes), Some(tape)) = (&self.spec.capabilities.tapes, tape) {
            tapes.keep(tape);
        }
    }

    /// Keeps what a driver has done that could not take over.
    pub(super) fn keep_tape(&self, driver: &Driver, instance: &mut Instance, problem: &str) {
        let mut header = driver.header(self.spec.id.as_str());
        header.problem = Some(problem.to_owned());
        if let (Some(tapes), Some(tape)) = (&self.spec.capabilities.tapes, instance.tape(header)) {
            tapes.keep(tape);
        }
    }

    /// Keeps all that the driver does for a time.
    pub(super) async fn record(&mut self, recording: Recording) -> Result<(), String> {
        let Some(tapes) = self.spec.capabilities.tapes.clone() else {
            return Err("nothing can be recorded here".into());
        };
        tapes.ask(RECORDING, Instant::now() + Duration::from_millis(recording.ms) + FETCHED_WITHIN);
        if recording.afresh {
            let given = serde_json::from_str(&self.life.configuration).unwrap_or_default();
            let prepared = prepare(&self.spec, Arc::clone(&self.driver), &Configuration::own(given)).await;
            let prepared = prepared.map_err(|error| error.to_string())?;
            if let Outcome::Rejected(reason) | Outcome::RolledBack(reason) = self.swap(prepared, "record").await.outcome
            {
                return Err(format!("the driver could not begin afresh: {reason}"));
            }
        }
        let configuration = Arc::clone(&self.life.configuration);
        let instance = self.life.instance.as_mut().ok_or("the driver does not run")?;
        instance.record(&tapes, &configuration);
        Ok(())
    }
}
