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
use super::fault::Fault;
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
    /// A swap to itself is accepted while nothing is wrong.
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
            Rule::Swap => "a swap to the same driver is accepted while nothing is wrong",
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
    /// What was done until then, as it is written.
    done: Vec<String>,
    timeline: Vec<String>,
}

/// How a driver is when all is well.
struct Usual {
    /// There is nothing to explore where it crashes all by itself.
    crashes: bool,
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
        if usual.crashes {
            told(run + 1);
            continue;
        }
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
            let mut stage =
                Stage::set(self.sandbox, self.driver, self.base, folder.path(), self.seed, false).await.ok()?;
            for text in [RECOVERED_WITHIN, LOOKED_AT] {
                stage.story.lock().window = Window::default();
                stage.step(&parsed(text)?).await.ok()?;
            }
            let story = stage.story.lock();
            let knows_alerts = story.alerts != Alerts::Unknown;
            Some(Usual { crashes: stage.crashes() > 0, has_samples: story.window.samples > 0, knows_alerts })
        };
        in_paused_time(look).ok().flatten().unwrap_or(Usual { crashes: true, has_samples: false, knows_alerts: false })
    }

    /// What does not hold when these steps are done, and all devices are well again
    /// at the end.
    fn violation(&self, steps: &[String], usual: &Usual) -> Option<Violation> {
        let live = async {
            let folder = tempfile::tempdir().ok()?;
            let stage = Stage::set(self.sandbox, self.driver, self.base, folder.path(), self.seed, false).await.ok()?;
            let mut watched = Watched::new(stage, &self.base.given.devices);
            let mut done: Vec<String> = Vec::new();
            let (rule, found) = 'lived: {
                if let Some(violation) = watched.look(false) {
                    break 'lived violation;
                }
                let end = watched.end();
                for text in steps.iter().chain(&end) {
                    let Some(step) = parsed(text) else { continue };
                    let (result, violation) = watched.step(&step).await;
                    done.push(if result { text.clone() } else { refused(text) });
                    if let Some(violation) = violation {
                        break 'lived violation;
                    }
                }
                watched.has_recovered(usual)?
            };
            let timeline = watched.stage.story.timeline();
            Some(Violation { rule, found, done, timeline })
        };
        in_paused_time(live).ok().flatten()
    }

    /// Leaves out what a violation does not need.
    fn finding(&self, run: u64, mut steps: Vec<String>, mut violation: Violation, usual: &Usual) -> Finding {
        let mut tries = 0;
        let mut size = steps.len().div_ceil(2);
        while size > 0 && tries < TRIES {
            let (mut from, mut is_shorter) = (0, false);
            while from < steps.len() && tries < TRIES {
                tries += 1;
                let mut fewer = steps.clone();
                fewer.drain(from..(from + size).min(steps.len()));
                match self.violation(&fewer, usual).filter(|other| other.rule == violation.rule) {
                    Some(other) => (steps, violation, is_shorter) = (fewer, other, true),
                    None => from += size,
                }
            }
            size = match size {
                1 if !is_shorter => 0,
                1 => 1,
                _ => size / 2,
            };
        }
        let Violation { rule, found, done: mut steps, timeline } = violation;
        steps.extend(expectation(rule, &found));
        let given_of = (self.base.file.clone(), self.base.name.clone());
        Finding { run, rule, found, given_of, steps, timeline }
    }
}

/// A step that was refused, so that it passes when it is refused again.
fn refused(text: &str) -> String {
    if text.contains("\"command\":") || text.starts_with("- command:") {
        let step = text.strip_prefix("- ").and_then(|step| serde_json::from_str::<serde_json::Value>(step).ok());
        if let Some(mut step) = step
            && let Some(command) = step.get_mut("command").and_then(serde_json::Value::as_object_mut)
        {
            command.insert("error".into(), "*".into());
            return format!("- {step}");
        }
    }
    match (text.starts_with("- configure:"), text.strip_suffix('}')) {
        (true, Some(begin)) if !text.contains('\n') => format!("{}, rejected: \"*\" }}", begin.trim_end()),
        (true, _) => format!("{text}\n    rejected: \"*\""),
        _ => text.to_owned(),
    }
}

/// The expectation that fails where a rule does not hold.
fn expectation(rule: Rule, found: &str) -> Option<String> {
    let step = match rule {
        Rule::NoCrash => "- expect: { no_log: [\"error: *\"] }",
        Rule::NoWrite => "- expect: { writes: [] }",
        Rule::LossIsTold => "- expect: { alerts: unknown }  # or an alert, or another status",
        Rule::ToldOnce => {
            let line = found.rsplit_once(" (").map_or(found, |(line, _)| line);
            return Some(format!("- {}", json!({"expect": {"log": [{"like": line, "times": 1}]}})));
        }
        Rule::Recovery => "- expect: { phase: running, alerts: [], samples: { between: [1, 1000000] } }",
        // The step itself fails.
        Rule::Swap => return None,
    };
    Some(step.to_owned())
}

fn parsed(text: &str) -> Option<PlacedStep> {
    format::read_steps(text).ok()?.into_iter().next()
}

/// A driver under exploration, and what is known of its devices.
struct Watched<'a> {
    stage: Stage<'a>,
    /// Names of devices.
    devices: BTreeSet<String>,
    /// What is wrong with them, or with units of them.
    faults: BTreeMap<String, Fault>,
    lost_since: Option<Duration>,
    /// The texts of its telemetry when all was well: a status is among them.
    texts: Option<BTreeMap<String, String>>,
    was_commanded: bool,
    /// Whether devices hold other values than at first.
    is_changed: bool,
}

impl<'a> Watched<'a> {
    fn new(stage: Stage<'a>, devices: &format::Ordered<Device>) -> Watched<'a> {
        Watched {
            stage,
            devices: devices.0.iter().map(|(name, _)| name.clone()).collect(),
            faults: BTreeMap::new(),
            lost_since: None,
            texts: None,
            was_commanded: false,
            is_changed: false,
        }
    }

    /// Does a step: whether it was not refused, and the rule that does not hold.
    async fn step(&mut self, step: &PlacedStep) -> (bool, Option<(Rule, String)>) {
        self.stage.story.lock().window = Window::default();
        self.note(&step.step);
        let was_well = self.stage.phase() == Phase::Running && self.faults.is_empty();
        let result = self.stage.step(step).await;
        if let (Step::Swap(_), true, Err(problems)) = (&step.step, was_well, &result) {
            return (false, Some((Rule::Swap, problems.join("; "))));
        }
        let is_advance = matches!(step.step, Step::Advance(_));
        if is_advance && self.faults.is_empty() && self.texts.is_none() {
            self.texts = Some(self.stage.story.lock().texts());
        }
        (result.is_ok(), self.look(is_advance))
    }

    /// Notes what a step does to the devices.
    fn note(&mut self, step: &Step) {
        match step {
            Step::Break(faults) => {
                for (name, fault) in faults {
                    // What is wrong with a line is wrong with all its units.
                    self.faults.retain(|other, _| name.contains('/') || !other.starts_with(&format!("{name}/")));
                    self.faults.insert(name.clone(), *fault);
                }
            }
            Step::Repair(names) => {
                let is_of = |other: &str, name: &str| other == name || other.starts_with(&format!("{name}/"));
                self.faults.retain(|other, _| !names.0.iter().any(|name| is_of(other, name)));
            }
            Step::Command(_) => (self.was_commanded, self.is_changed) = (true, true),
            Step::Change(_) | Step::Configure(_) => self.is_changed = true,
            _ => {}
        }
        match (self.is_lost(), self.lost_since) {
            (true, None) => self.lost_since = Some(self.stage.story.time()),
            (false, _) => self.lost_since = None,
            _ => {}
        }
    }

    /// Whether no device gives an answer that is of use.
    fn is_lost(&self) -> bool {
        let is_mute = |fault: &Fault| match fault {
            Fault::Timeout | Fault::Closes | Fault::Refuses | Fault::Garbage | Fault::Exception(_) => true,
            Fault::Status(status) => *status >= 400,
            Fault::WrongCount | Fault::Slow(_) => false,
        };
        let unit = |name: &str| self.faults.keys().any(|other| other.starts_with(&format!("{name}/")));
        let is_mute = |name: &String| self.faults.get(name).is_some_and(is_mute) && !unit(name);
        !self.devices.is_empty() && self.devices.iter().all(is_mute)
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
            let mut lines: BTreeMap<&str, usize> = BTreeMap::new();
            // What a call returns as an error the gateway repeats once a minute.
            let is_own = |text: &str| !text.starts_with("on-timer: ");
            let loud = story.window.logs.iter().filter(|(level, _)| matches!(*level, "warning" | "error"));
            loud.filter(|(_, text)| is_own(text)).for_each(|(_, text)| *lines.entry(text).or_default() += 1);
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
            let is_other = self.texts.as_ref().is_none_or(|texts| *texts != story.texts());
            if !is_told && !is_other {
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

    /// The steps at the end: all is well again, for a while.
    fn end(&self) -> Vec<String> {
        let repairs = self.devices.iter().map(|name| format!("- repair: {}", json!(name)));
        repairs.chain([RECOVERED_WITHIN, LOOKED_AT].map(str::to_owned)).collect()
    }

    /// Whether the driver is as usual after that.
    fn has_recovered(&self, usual: &Usual) -> Option<(Rule, String)> {
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
