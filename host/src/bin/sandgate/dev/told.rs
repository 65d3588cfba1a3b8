//! What there is to show: on a terminal, or as lines that are printed at once.

use std::collections::VecDeque;

use sandgate::logs::LogLine;
use sandgate::message::Time;
use sandgate::status::Status;
use sandgate::supervisor::Control;
use sandgate::text;

use super::work::Tested;
use crate::say::say;

/// Lines of the log that are kept, and things that were told.
const LINES: usize = 200;

/// What there is to show.
#[derive(Default)]
pub(super) struct Told {
    /// What happened, newest last.
    pub lines: VecDeque<String>,
    /// The gateway's log.
    pub log: VecDeque<LogLine>,
    /// How the scenarios went last.
    pub tested: Option<Tested>,
    /// Whether a save is being built.
    pub is_building: bool,
    /// Swaps that were told.
    seen: usize,
    /// Whether it is printed at once.
    pub plain: bool,
}

impl Told {
    /// Tells something, perhaps in several lines.
    pub(super) fn tell(&mut self, text: &str) {
        for line in text.lines() {
            if self.plain {
                say!("{line}");
            }
            self.lines.push_back(line.to_owned());
        }
        while self.lines.len() > LINES {
            self.lines.pop_front();
        }
    }

    /// Keeps a line of the log.
    pub(super) fn logged(&mut self, line: LogLine) {
        self.log.push_back(line);
        if self.log.len() > LINES {
            self.log.pop_front();
        }
    }

    /// Tells how the scenarios went.
    pub(super) fn tests(&mut self, tested: &Tested) {
        if let Some(problem) = &tested.problem {
            return self.tell(&format!("scenarios: {problem}"));
        }
        for scenario in &tested.scenarios {
            let Some(failure) = &scenario.failure else { continue };
            self.tell(&format!("FAILED {}", scenario.name));
            self.tell(&format!("  {}:{}:", scenario.file.display(), failure.line));
            failure.problems.iter().for_each(|problem| self.tell(&format!("    {problem}")));
        }
        let (failed, all) = (tested.failed(), tested.scenarios.len());
        let took = tested.took.as_secs_f64();
        self.tell(&match failed {
            0 => format!("{} passed in {took:.1} s", text::count(all, "scenario")),
            _ => format!("{} failed, {} passed in {took:.1} s", text::count(failed, "scenario"), all - failed),
        });
    }

    /// Tells the swaps that were not told yet.
    pub(super) fn receipts(&mut self, control: &Control, since: Time) {
        let receipts: Vec<_> = control.receipts().into_iter().filter(|receipt| receipt.time >= since).collect();
        for receipt in receipts.iter().skip(self.seen) {
            self.tell(&format!("{}: {receipt}", receipt.device));
        }
        self.seen = receipts.len();
    }

    /// Prints the last values.
    pub(super) fn values(&self, status: Option<&Status>) {
        let Some(device) = status.and_then(|status| status.devices.first()) else { return };
        let values = crate::draw::values(device).into_iter().take(6).collect::<Vec<_>>().join(" ");
        say!("{} {} {values}  alerts: {}", device.id, device.phase.name(), device.alerts_text());
    }
}
