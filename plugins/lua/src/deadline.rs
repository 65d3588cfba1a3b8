//! Ends a script in order before the host ends the driver with all its state.

use std::cell::Cell;
use std::rc::Rc;

use mlua::{HookTriggers, Lua, VmState};
use sandgate_driver::budget::{self, Remaining};

/// How often a script that computes is looked at, in instructions of Lua.
const INSTRUCTIONS: u32 = 10_000;
/// What stays of a limit when a script is ended.
const RESERVE: f64 = 0.1;
/// A transaction may wait this long for its line, whatever its time-out is.
const LINE_WAIT: f64 = 9_000.0;
/// The largest part of a call's time that is kept for that.
const MOST_LINE_WAIT: f64 = 0.3;

/// What is left when a script is ended, by what was left at the begin.
#[derive(Debug, Clone)]
pub struct Deadline(Rc<Cell<Remaining>>);

impl Deadline {
    /// Watches over all that runs in a Lua state.
    pub fn watch(lua: &Lua) -> mlua::Result<Deadline> {
        let deadline = Deadline(Rc::new(Cell::new(Remaining { call: 0.0, cpu: 0.0 })));
        let own = deadline.clone();
        let triggers = HookTriggers::new().every_nth_instruction(INSTRUCTIONS);
        lua.set_global_hook(triggers, move |_, _| match own.is_over() {
            Some(text) => Err(mlua::Error::runtime(text)),
            None => Ok(VmState::Continue),
        })?;
        Ok(deadline)
    }

    /// A call begins.
    pub fn begin(&self) {
        self.0.set(budget::left());
    }

    /// Why the script has to end, if it does.
    pub fn is_over(&self) -> Option<&'static str> {
        let (given, left) = (self.0.get(), budget::left());
        if left.cpu < given.cpu * RESERVE {
            return Some("the call has used up its CPU time (driver.limits.cpu)");
        }
        (left.call < given.call * RESERVE).then_some("the call has used up its time (driver.limits.call)")
    }

    /// The longest wait for a device; none when the time is over.
    pub fn longest_wait(&self) -> Option<f64> {
        let left = budget::left().call - self.0.get().call * RESERVE;
        (left >= 1.0).then_some(left)
    }

    /// The same for a transaction on a line that others share.
    pub fn longest_turn(&self) -> Option<f64> {
        let given = self.0.get().call;
        let left = budget::left().call - (given * MOST_LINE_WAIT).min(LINE_WAIT);
        (left >= 1.0).then_some(left)
    }
}
