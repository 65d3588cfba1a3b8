//! Exploring: random faults, delays, commands, configurations and swaps on top of
//! the devices of a scenario, held against what must be so for every driver. What
//! is found is made shorter, and is a scenario.

mod invent;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use serde_json::json;

use super::Scenario;
use super::field::Fault;
use super::format::{self, Device, PlacedStep, Step};
use super::run::{Stage, in_paused_time};
use super::story::Window;
use crate::device::Phase;
use crate::message::{Alerts, Value};
use crate::sandbox::{Driver, Sandbox};

/// A driver may take so long until it tells that its device is lost.
const TOLD_WITHIN: Duration = Duration::from_secs(120);
/// It may take so long until it has recovered, and is looked at for so long then.
const RECOVERED_WITHIN: &str = "- advance: 5m";
const LOOKED_AT: &str = "- advance: 10m";
/// How often a finding is tried in a shorter form.
const TRIES: usize = 300;

/// What must be so for every driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// It neither traps nor uses up its memory, its CPU time or its patience.
    NoCrash,
    /// It writes nothing before a command has asked for something.
    NoWrite,
    /// That no device answers is told by an alert, by alerts that are unknown or
    /// by another status, within two minutes.
    LossIsTold,
    /// A warning stands in the log once, as long as nothing changes.
    ToldOnce,
    /// Five minutes after all is well again, so is the driver.
    Recovery,
    /// A swap to itself is accepted.
    Swap,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rule::NoCrash => "the driver does not crash and keeps its limits",
            Rule::NoWrite => "nothing is written before a command has asked for it",
            Rule::LossIsTold => "a device that is lost is told by an alert or a status within two minutes",
            Rule::ToldOnce => "a problem is told once in the log",
            Rule::Recovery => "the driver recovers by itself within five minutes",
            Rule::Swap => "a swap to the same driver is accepted",
        })
    }
}

/// A run in which a rule did not hold.
#[derive(Debug, Clone)]
pub struct Finding {
    /// The number of the run.
    pub run: u64,
    /// The rule.
    pub rule: Rule,
    /// What was found.
    pub found: String,
    /// The scenario whose `given` it began with.
    pub given_of: (PathBuf, String),
    /// The steps, as they are written in a file, with the expectation that fails.
    pub steps: Vec<String>,
    /// What had happened, newest last.
    pub timeline: Vec<String>,
}

/// What did not hold, and where.
struct Violation {
    rule: Rule,
    found: String,
    /// After how many steps.
    after: usize,
    timeline: Vec<String>,
}

/// How a driver is when all is well.
struct Usual {
    has_samples: bool,
    knows_alerts: bool,
}

/// Explores a driver in so many runs; `told` hears of each. Blocks, like `run`.
pub fn explore(
    sandbox: &Sandbox,
    driver: &Arc<Driver>,
    scenarios: &[Scenario],
    (runs, seed): (u64, u64),
    told: impl Fn(u64),
) -> Result<(), Box<Finding>> {
    let mut usual: HashMap<usize, Usual> = HashMap::new();
    for run in 0..runs {
        let mut random = Rng::with_seed(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(run));
        let place = random.usize(..scenarios.len().max(1));
        let Some(base) = scenarios.get(place) else { return Ok(()) };
        let explorer = Explorer { sandbox, driver, base, seed };
        let usual = usual.entry(place).or_insert_with(|| explorer.usual());
        let steps = invent::steps(&mut random, base, scenarios, &driver.manifest);
        if let Some(violation) = explorer.violation(&steps, usual) {
            return Err(Box::new(explorer.finding(run, steps, violation, usual)));
        }
        told(run + 1);
    }
    Ok(())
}

struct Explorer<'a> {
    sandbox: &'a Sandbox,
    driver: &'a Arc<Driver>,
    base: &'a Scenario,
    seed: u64,
}

impl Explorer<'_> {
    /// How the driver is when nothing happens to it.
    fn usual(&self) -> Usual {
        let look = async {
            let folder = tempfile::tempdir().ok()?;
            let mut stage = Stage::set(self.sandbox, self.driver, self.base, folder.path(), self.seed).await.ok()?;
            for text in [RECOVERED_WITHIN, LOOKED_AT] {
                stage.story.lock().window = Window::default();
                stage.step(&parsed(text)?).await.ok()?;
            }
            let story = stage.story.lock();
            Some(Usual { has_samples: story.window.samples > 0, knows_alerts: story.alerts != Alerts::Unknown })
        };
        in_paused_time(look).ok().flatten().unwrap_or(Usual { has_samples: false, knows_alerts: false })
    }

    fn violation(&self, steps: &[String], usual: &Usual) -> Option<Violation> {
        let live = async {
            let folder = tempfile::tempdir().ok()?;
            let stage = Stage::set(self.sandbox, self.driver, self.base, folder.path(), self.seed).await.ok()?;
            let mut watched = Watched::new(stage, &self.base.given.devices);
            let mut after = 0;
            let (rule, found) = 'lived: {
                for text in steps {
                    after += 1;
                    let Some(step) = parsed(text) else { continue };
                    if let Some(violation) = watched.step(&step).await {
                        break 'lived violation;
                    }
                }
                watched.end(usual).await?
            };
            let timeline = watched.stage.story.timeline();
            Some(Violation { rule, found, after, timeline })
        };
        in_paused_time(live).ok().flatten()
    }

    /// Leaves out what a violation does not need.
    fn finding(&self, run: u64, mut steps: Vec<String>, mut violation: Violation, usual: &Usual) -> Finding {
        steps.truncate(violation.after);
        let mut tries = 0;
        let mut size = steps.len().div_ceil(2);
        while size > 0 {
            let (mut from, mut is_shorter) = (0, false);
            while from < steps.len() && tries < TRIES {
                tries += 1;
                let mut fewer = steps.clone();
                fewer.drain(from..(from + size).min(steps.len()));
                match self.violation(&fewer, usual).filter(|other| other.rule == violation.rule) {
                    Some(other) => {
                        fewer.truncate(other.after);
                        (steps, violation, is_shorter) = (fewer, other, true);
                    }
                    None => from += size,
                }
            }
            if size == 1 && !is_shorter {
                break;
            }
            size = if size == 1 { 1 } else { size / 2 };
            if tries >= TRIES {
                break;
            }
        }
        let Violation { rule, found, timeline, .. } = violation;
        steps.extend(expectation(rule, &found));
        let given_of = (self.base.file.clone(), self.base.name.clone());
        Finding { run, rule, found, given_of, steps, timeline }
    }
}

/// The steps after which a scenario fails where a rule does not hold.
fn expectation(rule: Rule, found: &str) -> Vec<String> {
    let steps: &[&str] = match rule {
        Rule::NoCrash => &["- expect: { no_log: [\"error: *\"], phase: running }"],
        Rule::NoWrite => &["- expect: { writes: [] }"],
        Rule::LossIsTold => &["- expect: { alerts: unknown }"],
        Rule::ToldOnce => {
            let line = json!({"expect": {"log": [{"like": found.split(" (").next(), "times": 1}]}});
            return vec![format!("- {line}")];
        }
        Rule::Recovery => &[
            RECOVERED_WITHIN,
            "- expect: { phase: running }",
            LOOKED_AT,
            "- expect: { alerts: [], samples: { between: [1, 1000000] } }",
        ],
        // The step itself fails.
        Rule::Swap => &[],
    };
    steps.iter().map(|step| (*step).to_owned()).collect()
}

fn parsed(text: &str) -> Option<PlacedStep> {
    format::read_steps(text).ok()?.into_iter().next()
}

/// A driver under exploration, and what is known of its devices.
struct Watched<'a> {
    stage: Stage<'a>,
    /// Names of devices, and of those that give no answer.
    devices: BTreeSet<String>,
    broken: BTreeSet<String>,
    lost_since: Option<Duration>,
    /// The texts of its telemetry at the begin of the loss: a status is among them.
    texts: BTreeMap<String, String>,
    was_commanded: bool,
    /// Whether devices hold other values than at first.
    is_changed: bool,
}

impl<'a> Watched<'a> {
    fn new(stage: Stage<'a>, devices: &format::Ordered<Device>) -> Watched<'a> {
        Watched {
            stage,
            devices: devices.0.iter().map(|(name, _)| name.clone()).collect(),
            broken: BTreeSet::new(),
            lost_since: None,
            texts: BTreeMap::new(),
            was_commanded: false,
            is_changed: false,
        }
    }

    /// Does a step and looks whether all rules hold.
    async fn step(&mut self, step: &PlacedStep) -> Option<(Rule, String)> {
        self.stage.story.lock().window = Window::default();
        self.note(&step.step);
        let was_running = self.stage.phase() == Phase::Running;
        let result = self.stage.step(step).await;
        if let (Step::Swap(_), true, Err(problems)) = (&step.step, was_running, &result) {
            return Some((Rule::Swap, problems.join("; ")));
        }
        self.look(matches!(step.step, Step::Advance(_)))
    }

    /// Notes what a step does to the devices.
    fn note(&mut self, step: &Step) {
        match step {
            Step::Break(faults) => {
                for (name, fault) in faults {
                    let is_mute = match fault {
                        Fault::Timeout | Fault::Closes | Fault::Refuses | Fault::Garbage => true,
                        Fault::Exception(_) => true,
                        Fault::Status(status) => *status >= 400,
                        Fault::WrongCount | Fault::Slow(_) => false,
                    };
                    // A unit may do better than its line.
                    let device = name.split('/').next().unwrap_or_default();
                    self.broken.retain(|other| other != name && other != device);
                    self.broken.extend(is_mute.then(|| name.clone()));
                }
            }
            Step::Repair(names) => self.broken.retain(|name| !names.0.contains(name)),
            Step::Command(_) => (self.was_commanded, self.is_changed) = (true, true),
            Step::Change(_) | Step::Configure(_) => self.is_changed = true,
            _ => {}
        }
        let is_lost = !self.devices.is_empty() && self.devices.is_subset(&self.broken);
        match (is_lost, self.lost_since) {
            (true, None) => {
                self.lost_since = Some(self.stage.story.time());
                self.texts = self.stage.story.lock().texts();
            }
            (false, _) => self.lost_since = None,
            _ => {}
        }
    }

    fn look(&self, only_time_went: bool) -> Option<(Rule, String)> {
        if self.stage.crashes() > 0 {
            let problem = self.stage.problem().or_else(|| self.last_error()).unwrap_or_default();
            return Some((Rule::NoCrash, problem));
        }
        let story = self.stage.story.lock();
        if let Some(write) = story.window.writes.first().filter(|_| !self.was_commanded) {
            return Some((Rule::NoWrite, write.clone()));
        }
        if only_time_went {
            let mut lines: HashMap<&str, usize> = HashMap::new();
            let loud = story.window.logs.iter().filter(|(level, _)| matches!(*level, "warning" | "error"));
            loud.for_each(|(_, text)| *lines.entry(text).or_default() += 1);
            if let Some((line, times)) = lines.into_iter().find(|(_, times)| *times > 1) {
                return Some((Rule::ToldOnce, format!("{line} ({times} times)")));
            }
        }
        let lost_for = self.lost_since.map(|since| self.stage.story.time().saturating_sub(since));
        let is_running = self.stage.phase() == Phase::Running;
        if lost_for.is_some_and(|time| time >= TOLD_WITHIN) && is_running {
            let is_told = match &story.alerts {
                Alerts::Unknown => true,
                Alerts::Active(active) => !active.is_empty(),
                Alerts::None => false,
            };
            if !is_told && story.texts() == self.texts {
                return Some((Rule::LossIsTold, "no alert, and no text of its telemetry has changed".into()));
            }
        }
        None
    }

    /// What the log says of a crash that is over.
    fn last_error(&self) -> Option<String> {
        let story = self.stage.story.lock();
        let errors = story.window.logs.iter().filter(|(level, _)| *level == "error");
        errors.map(|(_, text)| text.clone()).next_back()
    }

    /// All is well again: so is the driver after a while.
    async fn end(&mut self, usual: &Usual) -> Option<(Rule, String)> {
        for name in self.devices.clone() {
            let repair = Step::Repair(format::Names(vec![name]));
            let violation = self.step(&PlacedStep { line: 0, step: repair, text: String::new() }).await;
            if violation.is_some() {
                return violation;
            }
        }
        for text in [RECOVERED_WITHIN, LOOKED_AT] {
            if let Some(violation) = self.step(&parsed(text)?).await {
                return Some(violation);
            }
        }
        let phase = self.stage.phase();
        if phase != Phase::Running {
            let problem = self.stage.problem().unwrap_or_default();
            return Some((Rule::Recovery, format!("it is {}: {problem}", phase.name())));
        }
        let story = self.stage.story.lock();
        if usual.has_samples && story.window.samples == 0 && !self.is_changed {
            return Some((Rule::Recovery, "no sample came in ten minutes".into()));
        }
        if usual.knows_alerts && story.alerts == Alerts::Unknown && !self.is_changed {
            return Some((Rule::Recovery, "its alerts stay unknown".into()));
        }
        None
    }
}

impl super::story::Inner {
    /// The last texts of the telemetry.
    fn texts(&self) -> BTreeMap<String, String> {
        let texts = self.last.iter().filter_map(|(name, value)| match value {
            Value::Text(text) => Some((name.clone(), text.clone())),
            Value::TextList(list) => Some((name.clone(), list.join(", "))),
            _ => None,
        });
        texts.collect()
    }
}
