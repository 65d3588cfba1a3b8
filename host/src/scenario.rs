//! Scenarios: tests of a driver that read like a story, with simulated devices
//! and a clock that jumps.
//!
//! The real component runs in the real sandbox under the real checks, as one
//! device without a gateway. All around it is simulated: the devices behind
//! what it requests (`field`), the clock, chance. Nothing sleeps: the runtime's
//! time is paused, and goes on when nobody has anything to do.

mod check;
mod expect;
mod explore;
mod fault;
mod field;
mod format;
mod from_tape;
mod playground;
mod registers;
mod run;
mod story;
mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::capture::{Capture, Exchange};
use crate::files;
use crate::manifest::Manifest;
use crate::tape::Tape;
use crate::text;

pub use explore::{Finding, Rule, explore};
pub use from_tape::scenario_of;
pub use playground::{Choice, Deed, Device, Playground, Wanted};
pub use run::run;

/// One scenario of a file.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Where it stands.
    pub file: PathBuf,
    /// What it is called there.
    pub name: String,
    given: format::Given,
    /// Where what is given stands.
    given_line: u64,
    steps: Vec<format::PlacedStep>,
    /// Devices that answer from a tape.
    tape: Option<Arc<Tape>>,
    /// Lines that answer as they were captured.
    captures: Captures,
}

/// What lines were asked and have answered, by their names.
type Captures = BTreeMap<String, Arc<Vec<Exchange>>>;

impl Scenario {
    /// Reads the scenarios of a file and holds them against a manifest. An error
    /// names the line, what was expected and what was found.
    pub fn load(path: &Path, manifest: &Manifest) -> Result<Vec<Scenario>, String> {
        let place = |problem: String| format!("{}:{problem}", path.display());
        let text = std::fs::read_to_string(path).map_err(|error| place(format!(" {error}")))?;
        let mut scenarios = format::read(&text, path).map_err(place)?;
        for scenario in &mut scenarios {
            scenario.load_recordings().map_err(place)?;
        }
        scenarios.iter().try_for_each(|scenario| scenario.check(manifest).map_err(place))?;
        Ok(scenarios)
    }
}

impl Scenario {
    /// Reads the tape and the captures that are given.
    fn load_recordings(&mut self) -> Result<(), String> {
        let beside = |name: &Path| self.file.parent().unwrap_or(Path::new(".")).join(name);
        let wrong = |place: &str, path: &Path, problem: String| {
            format!("{}: {}: given.{place}: {}: {problem}", self.given_line, self.name, path.display())
        };
        if let Some(path) = self.given.tape.as_deref().map(beside) {
            self.tape = Some(Arc::new(Tape::load(&path).map_err(|problem| wrong("tape", &path, problem))?));
        }
        for (name, device) in &self.given.devices.0 {
            let format::Device::Capture(capture) = device else { continue };
            let path = beside(&capture.file);
            let exchanges = captured(&path, capture.server.as_deref());
            let exchanges = exchanges.map_err(|problem| wrong(&format!("devices.{name}"), &path, problem))?;
            self.captures.insert(name.clone(), Arc::new(exchanges));
        }
        Ok(())
    }
}

/// Larger captures are for Wireshark to cut.
const LARGEST_CAPTURE: u64 = 256 << 20;

/// What the one device in a capture was asked, or that of an address.
fn captured(path: &Path, server: Option<&str>) -> Result<Vec<Exchange>, String> {
    let bytes = files::read(path, LARGEST_CAPTURE).map_err(|error| error.to_string())?;
    let mut devices = Capture::read(&bytes.ok_or("there is no such file")?)?.devices;
    let addresses = text::list(devices.keys());
    match server {
        Some(server) => devices.remove(server).ok_or(format!("expected a device {server:?}, found {addresses}")),
        None if devices.len() > 1 => Err(format!("name the device by `server`: there are {addresses}")),
        None => Ok(devices.into_values().next().unwrap_or_default()),
    }
}

/// How a scenario ended.
#[derive(Debug, Clone)]
pub struct Report {
    /// Where it stands.
    pub file: PathBuf,
    /// What it is called.
    pub name: String,
    /// What was not as expected; none when all was.
    pub failure: Option<Failure>,
    /// How long it took by its own clock, and by that of the machine.
    pub simulated: Duration,
    /// The same.
    pub took: Duration,
    /// What of the manifest was seen.
    pub seen: Seen,
    /// The last life of the driver, where it was to be recorded.
    pub tape: Option<Tape>,
}

/// The first thing in a scenario that was not as expected.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The line of its step.
    pub line: u64,
    /// What was expected and what was found, a line each.
    pub problems: Vec<String>,
    /// What had happened before, newest last.
    pub timeline: Vec<String>,
}

/// Names of a manifest that scenarios have touched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Telemetry that was sent.
    pub telemetry: BTreeSet<String>,
    /// Properties that were sent.
    pub properties: BTreeSet<String>,
    /// Alerts that were active.
    pub alerts: BTreeSet<String>,
    /// Commands that were run.
    pub commands: BTreeSet<String>,
    /// Parameters of the configuration that were set: `bucket.parameter`.
    pub parameters: BTreeSet<String>,
    /// Those that were changed while the driver ran.
    pub changed: BTreeSet<String>,
    /// Devices that were given.
    pub devices: BTreeSet<String>,
    /// Devices that were broken, as a whole or a unit of them, and repaired.
    pub lost: BTreeSet<String>,
    /// Whether the driver was swapped while it ran.
    pub is_swapped: bool,
    /// Whether it was made to crash.
    pub has_crashed: bool,
    /// What it used at most.
    pub used: Used,
}

/// What a driver has used at most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    /// Bytes of an instance.
    pub memory: u64,
    /// Processor time of a call.
    pub cpu: Duration,
}

impl Seen {
    /// Adds what others have seen.
    pub fn add(&mut self, other: Seen) {
        self.telemetry.extend(other.telemetry);
        self.properties.extend(other.properties);
        self.alerts.extend(other.alerts);
        self.commands.extend(other.commands);
        self.parameters.extend(other.parameters);
        self.changed.extend(other.changed);
        self.devices.extend(other.devices);
        self.lost.extend(other.lost);
        self.is_swapped |= other.is_swapped;
        self.has_crashed |= other.has_crashed;
        self.used.memory = self.used.memory.max(other.used.memory);
        self.used.cpu = self.used.cpu.max(other.used.cpu);
    }

    /// For each section of a manifest: its name, how many names it declares, and
    /// those of them that nothing has touched.
    pub fn coverage(&self, manifest: &Manifest) -> Vec<(&'static str, usize, Vec<String>)> {
        let blueprint = &manifest.blueprint;
        let parameters = blueprint.configuration.iter().flat_map(|(bucket, declared)| {
            declared.parameters.keys().map(move |parameter| format!("{bucket}.{parameter}"))
        });
        let sections: [(&str, Vec<String>, &BTreeSet<String>); 5] = [
            ("telemetry", blueprint.telemetry.keys().cloned().collect(), &self.telemetry),
            ("properties", blueprint.properties.keys().cloned().collect(), &self.properties),
            ("alerts", blueprint.alerts.keys().cloned().collect(), &self.alerts),
            ("commands", blueprint.commands.keys().cloned().collect(), &self.commands),
            ("configuration", parameters.collect(), &self.parameters),
        ];
        let declared = sections.into_iter().filter(|(_, names, _)| !names.is_empty());
        declared
            .map(|(section, names, seen)| {
                let number = names.len();
                (section, number, names.into_iter().filter(|name| !seen.contains(name)).collect())
            })
            .collect()
    }
}
