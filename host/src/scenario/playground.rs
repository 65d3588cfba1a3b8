//! Devices to play with: simulated as scenarios give them, and changed by steps
//! that people type while a gateway runs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value as Json, json};

use super::fault::faults_of;
use super::field::Simulated;
use super::format::{self, Given, PlacedStep, Step, lay_over};
use super::story::Story;
use super::{Captures, Scenario};
use crate::bus::Simulation;
use crate::config::ConfiguredUnits;
use crate::gate::TapeField;
use crate::manifest::{Manifest, RequestKind};
use crate::tape::Tape;
use crate::text;

/// See the module documentation.
pub struct Playground {
    story: Arc<Story>,
    field: Simulated,
    inner: Mutex<Inner>,
}

struct Inner {
    /// What is given; it has no steps.
    scenario: Scenario,
    manifest: Manifest,
    source: Option<Source>,
    /// What was configured since.
    configured: Map<String, Json>,
}

/// Where what is given is from.
#[derive(PartialEq)]
struct Source {
    file: PathBuf,
    text: String,
    scenario: Option<String>,
}

impl Inner {
    /// What is given, with what was configured since laid over it.
    fn configuration(&self, configured: &Map<String, Json>) -> Map<String, Json> {
        let mut whole = self.scenario.given.configuration.clone();
        lay_over(&mut whole, configured.clone());
        whole
    }
}

/// Whose devices are wanted.
#[derive(Debug, Clone, Copy)]
pub enum Wanted<'a> {
    /// What a file gives for all its scenarios, or what the first one of it gives.
    First,
    /// Those of the scenario of this name.
    Called(&'a str),
}

/// A simulated device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The driver's name for its Modbus line, or `host:port`.
    pub name: String,
    /// `modbus`, `http`, `tcp`, `serial`, `can`, `output`, `input`, `analog` or `tape`.
    pub kind: &'static str,
    /// What is wrong with it, as it is written.
    pub faults: Vec<String>,
}

/// Something that can be done: its name for people, and the step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// For people.
    pub label: String,
    /// As it is written in a scenario.
    pub step: String,
    /// Whether there is something in the step to fill in.
    pub is_open: bool,
}

/// What a step asks of the gateway.
#[derive(Debug, Clone, PartialEq)]
pub enum Deed {
    /// Runs a command.
    Command {
        /// The command.
        name: String,
        /// Its arguments.
        arguments: Map<String, Json>,
    },
    /// The device's settings are others now.
    Configure,
    /// Starts the device afresh.
    Restart,
    /// Swaps the driver: for this file, or for its own again.
    Swap(Option<PathBuf>),
}

impl Playground {
    /// Nothing but the driver's own.
    pub fn empty(manifest: &Manifest) -> Playground {
        let (story, scenario) = (Arc::new(Story::new()), nothing_given());
        let field = Simulated::new(&scenario.given.devices, &scenario.captures, &story);
        let inner = Inner { scenario, manifest: manifest.clone(), source: None, configured: Map::new() };
        Playground { story, field, inner: Mutex::new(inner) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what scenarios give. Where that has not changed, devices stay as they
    /// are; what was wrong with them stays so in any case. An error names the line.
    pub fn give(&self, files: &[PathBuf], wanted: Wanted<'_>, manifest: &Manifest) -> Result<(), String> {
        let mut problem = None;
        for file in files {
            // It may stand in another file.
            match self.give_file(file, wanted, manifest) {
                Ok(()) => return Ok(()),
                Err(text) => problem = problem.or(Some(format!("{}:{text}", file.display()))),
            }
        }
        Err(problem.unwrap_or_else(|| "there are no scenarios".into()))
    }

    fn give_file(&self, file: &Path, wanted: Wanted<'_>, manifest: &Manifest) -> Result<(), String> {
        let text = std::fs::read_to_string(file).map_err(|error| format!(" {error}"))?;
        let scenario = match wanted {
            Wanted::First => None,
            Wanted::Called(name) => Some(name.to_owned()),
        };
        let source = Source { file: file.to_owned(), text, scenario };
        if self.lock().source.as_ref() == Some(&source) {
            // What is recorded is not read again.
            return self.lock().scenario.check_given(manifest);
        }
        self.take(given_in(&source.text, file, wanted, manifest)?, manifest);
        self.lock().source = Some(source);
        Ok(())
    }

    /// Another version of the driver declares other things. What was configured and
    /// fits no longer is forgotten.
    pub fn know(&self, manifest: &Manifest) {
        let mut inner = self.lock();
        inner.manifest = manifest.clone();
        if manifest.check_configuration(inner.configuration(&inner.configured)).is_err() {
            inner.configured.clear();
        }
    }

    /// Lets all devices answer from a tape, under the configuration on it.
    pub fn give_tape(&self, tape: Tape, manifest: &Manifest) {
        let configuration = tape.header.configuration.as_object().cloned().unwrap_or_default();
        let given = Given { configuration, ..Given::default() };
        self.take(Scenario { given, tape: Some(Arc::new(tape)), ..nothing_given() }, manifest);
    }

    fn take(&self, scenario: Scenario, manifest: &Manifest) {
        self.field.reset(&scenario.given.devices, &scenario.captures);
        if let Some(tape) = &scenario.tape {
            let field = TapeField::new(tape, tape.extent().1);
            let names: Vec<String> =
                manifest.driver.requests.names().into_iter().flat_map(|(_, names)| names).cloned().collect();
            self.field.add_tape(&field, &names);
        }
        let mut inner = self.lock();
        (inner.scenario, inner.manifest) = (scenario, manifest.clone());
    }

    /// What stands in the place of a gateway's field.
    pub fn simulation(&self) -> Arc<dyn Simulation> {
        Arc::new(self.field.clone())
    }

    /// The device's table in the gateway's configuration, without its driver: the
    /// configuration, and grants for all that is given. A line is a bus of its name.
    pub fn settings(&self) -> Map<String, Json> {
        let (devices, modbus) = (self.field.devices(), self.lines(RequestKind::Modbus));
        let (serial, can) = (self.lines(RequestKind::Serial), self.lines(RequestKind::Can));
        let pins: Map<String, Json> = self.pins().into_keys().map(|name| (name.clone(), json!(name))).collect();
        let inner = self.lock();
        let given = &inner.scenario.given;
        let configuration = inner.configuration(&inner.configured);
        let of_kinds = |kinds: &[&str]| -> Vec<String> {
            let is_address = |name: &&String| name.contains(':');
            let names = devices.iter().filter(|(_, kind, _)| kinds.contains(kind)).map(|(name, ..)| name);
            names.filter(is_address).cloned().collect()
        };
        let requests = &inner.manifest.driver.requests;
        // A driver that knows its units by itself gets all.
        let knows_units = !ConfiguredUnits::of(&inner.manifest, "").is_declared;
        let grant = |line: &String| match knows_units {
            true => json!({ "bus": line, "units": ["0-255"] }),
            false => json!(line),
        };
        let modbus: Map<String, Json> = modbus.iter().map(|line| (line.clone(), grant(line))).collect();
        let mut grants = Map::new();
        if !modbus.is_empty() {
            grants.insert("modbus".into(), modbus.into());
        }
        if !pins.is_empty() {
            grants.insert("io".into(), pins.into());
        }
        if !can.is_empty() {
            let can: Map<String, Json> = can.iter().map(|bus| (bus.clone(), json!(bus))).collect();
            grants.insert("can".into(), can.into());
        }
        if !serial.is_empty() {
            let serial: Map<String, Json> = serial.iter().map(|port| (port.clone(), json!(port))).collect();
            grants.insert("serial".into(), serial.into());
        }
        let more = |targets: &[crate::network::Target]| targets.iter().map(ToString::to_string).collect::<Vec<_>>();
        if !requests.tcp.is_empty() {
            grants
                .insert("tcp".into(), json!([of_kinds(&["tcp", "tape", "modbus"]), more(&given.grants.tcp)].concat()));
        }
        if !requests.http.is_empty() {
            grants.insert("http".into(), json!([of_kinds(&["http", "tape"]), more(&given.grants.http)].concat()));
        }
        let mut settings = Map::new();
        settings.insert("configuration".into(), configuration.into());
        settings.insert("grants".into(), grants.into());
        if let Some(window) = given.health_window {
            settings.insert("health_window".into(), json!(window.to_string()));
        }
        settings
    }

    /// The buses of the gateway's configuration: the lines that the driver asks for.
    pub fn buses(&self) -> Map<String, Json> {
        let modbus = self.lines(RequestKind::Modbus).into_iter();
        let modbus = modbus.map(|line| (line, json!({ "modbus_tcp": { "address": "simulated:502" } })));
        let serial = self.lines(RequestKind::Serial).into_iter();
        let serial = serial.map(|port| (port, json!({ "serial": { "port": "simulated" } })));
        let pins = self.pins().into_iter().map(|(name, kind)| {
            let bus = match kind {
                "output" => json!({ "digital_output": { "chip": "simulated", "line": 0 } }),
                "input" => json!({ "digital_input": { "chip": "simulated", "line": 0 } }),
                _ => json!({ "analog_input": { "channel": "simulated" } }),
            };
            (name, bus)
        });
        let can = self.lines(RequestKind::Can).into_iter();
        let can = can.map(|bus| (bus, json!({ "can": { "interface": "simulated" } })));
        modbus.chain(serial).chain(can).chain(pins).collect()
    }

    /// The inputs and outputs that are given and asked for, with their kinds.
    fn pins(&self) -> BTreeMap<String, &'static str> {
        let devices = self.field.devices();
        let inner = self.lock();
        let requests = &inner.manifest.driver.requests;
        let pins = devices.into_iter().filter(|(_, kind, _)| ["output", "input", "analog"].contains(kind));
        pins.filter(|(name, ..)| requests.covers(RequestKind::Io, name)).map(|(name, kind, _)| (name, kind)).collect()
    }

    /// The names of the lines of a kind that the driver asks for.
    fn lines(&self, kind: RequestKind) -> Vec<String> {
        let devices = self.field.devices();
        let inner = self.lock();
        let requests = &inner.manifest.driver.requests;
        let given = devices.into_iter().filter(|(name, own, _)| *own == kind.key() && !name.contains(':'));
        let given = given.map(|(name, ..)| name).filter(|name| requests.covers(kind, name));
        let own = requests.lines().filter(|(own, _)| *own == kind).map(|(_, name)| name.clone());
        let lines: BTreeSet<String> = own.chain(given).collect();
        lines.into_iter().collect()
    }

    /// The devices.
    pub fn devices(&self) -> Vec<Device> {
        self.field.devices().into_iter().map(|(name, kind, faults)| Device { name, kind, faults }).collect()
    }

    /// What was asked of the devices lately, and when, newest last.
    pub fn requests(&self) -> Vec<String> {
        self.story.timeline()
    }

    /// What can be wrong with devices.
    pub fn faults(&self) -> Vec<Choice> {
        let choice = |name: &str, fault| {
            let step = format!("break: {{ {}: {fault} }}", json!(name));
            Choice { label: format!("{name}: {fault}"), step, is_open: false }
        };
        let devices = self.field.devices();
        devices
            .iter()
            .flat_map(|(name, kind, _)| faults_of(kind).into_iter().map(|fault| choice(name, fault)))
            .collect()
    }

    /// The commands that the driver declares.
    pub fn commands(&self) -> Vec<Choice> {
        let inner = self.lock();
        let commands = inner.manifest.blueprint.commands.iter().map(|(name, command)| {
            let arguments: Map<String, Json> = command
                .arguments
                .iter()
                .filter(|(_, parameter)| parameter.required || parameter.default.is_some())
                .map(|(argument, parameter)| (argument.clone(), parameter.default.clone().unwrap_or(Json::Null)))
                .collect();
            let is_open = !arguments.is_empty();
            let step = match is_open {
                true => format!("command: {{ name: {name}, arguments: {} }}", Json::Object(arguments)),
                false => format!("command: {{ name: {name} }}"),
            };
            Choice { label: format!("{name}: {}", command.display_name), step, is_open }
        });
        commands.collect()
    }

    /// Does what of steps concerns devices, and says what they ask of the gateway.
    /// An error says what was expected; then nothing is done.
    pub fn play(&self, text: &str) -> Result<Vec<Deed>, String> {
        let text = text.trim();
        let text = if text.starts_with('-') { text.to_owned() } else { format!("- {text}") };
        let steps = format::read_steps(&text)?;
        let mut inner = self.lock();
        let mut configured = inner.configured.clone();
        for PlacedStep { step, .. } in &steps {
            inner.scenario.check_step(step, &inner.manifest)?;
            match step {
                Step::Advance(_) | Step::Expect(_) => {
                    return Err(format!("expected one of {PLAYED}: time goes by itself here"));
                }
                Step::Given(_) | Step::Lose(_) | Step::Trap => {
                    return Err(format!("expected one of {PLAYED}: this step is for scenarios only"));
                }
                Step::Configure(changes) => {
                    lay_over(&mut configured, changes.configuration.clone());
                    let checked = inner.manifest.check_configuration(inner.configuration(&configured));
                    checked.map_err(|problem| format!("configuration.{problem}"))?;
                }
                _ => {}
            }
        }
        inner.configured = configured;
        drop(inner);
        Ok(steps.into_iter().filter_map(|step| self.act(step.step)).collect())
    }

    fn act(&self, step: Step) -> Option<Deed> {
        match step {
            Step::Change(changes) => changes.0.iter().for_each(|(name, change)| self.field.change(name, change)),
            Step::Break(faults) => faults.iter().for_each(|(name, fault)| self.field.set_fault(name, Some(*fault))),
            Step::Repair(names) => names.0.iter().for_each(|name| self.field.set_fault(name, None)),
            Step::Command(command) => {
                return Some(Deed::Command { name: command.name, arguments: command.arguments });
            }
            Step::Configure(_) => return Some(Deed::Configure),
            Step::Restart => return Some(Deed::Restart),
            Step::Swap(swap) => {
                let beside = |name: PathBuf| match &self.lock().scenario.file.parent() {
                    Some(folder) => folder.join(name),
                    None => name,
                };
                return Some(Deed::Swap(swap.driver.map(beside)));
            }
            Step::Advance(_) | Step::Expect(_) | Step::Given(_) | Step::Lose(_) | Step::Trap => {}
        }
        None
    }
}

/// The steps that make sense where time goes by itself.
const PLAYED: &str = "break, repair, change, command, configure, swap, restart";

/// What a file gives.
fn given_in(text: &str, file: &Path, wanted: Wanted<'_>, manifest: &Manifest) -> Result<Scenario, String> {
    let checked = |given: Given| {
        let mut scenario = Scenario { file: file.to_owned(), given, ..nothing_given() };
        scenario.load_recordings()?;
        scenario.check_given(manifest)?;
        Ok::<_, String>(scenario)
    };
    match wanted {
        Wanted::First => checked(format::read_given(text)?).or_else(|problem| {
            // Each may bring its own devices.
            let scenarios = format::read(text, file)?.into_iter();
            scenarios.map(|scenario| checked(scenario.given)).find_map(Result::ok).ok_or(problem)
        }),
        Wanted::Called(name) => {
            let scenarios = format::read(text, file)?;
            let names: Vec<String> = scenarios.iter().map(|scenario| scenario.name.clone()).collect();
            let found = scenarios.into_iter().find(|scenario| scenario.name == name);
            let unknown = || format!(" no scenario is called {name:?}; {}", text::instead(name, &names));
            checked(found.ok_or_else(unknown)?.given)
        }
    }
}

fn nothing_given() -> Scenario {
    Scenario {
        file: PathBuf::new(),
        name: "given".into(),
        given: Given::default(),
        given_line: 1,
        steps: Vec::new(),
        tape: None,
        captures: Captures::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = "blueprint_spec: device/3.0\ndisplay_name: Relay\nruntime: {type: embedded}\n\
        command_groups: {main: {display_name: Main}}\n\
        commands:\n  on: {group: main, display_name: On}\n  dim: {group: main, display_name: Dim, arguments: \
        {level: {type: integer, display_name: Level, default: 5}}}\n\
        configuration:\n  c: {display_name: C, parameters: {ms: {type: integer, display_name: Ms}}}\n\
        driver: {name: relay, version: 1.0.0, requests: {http: ['*:80'], modbus: [line]}}\n";
    const FILE: &str = "given:\n  configuration: {c: {ms: 5}}\n  devices:\n    '10.0.0.5:80': {http: {routes: \
        {'GET /': {text: hi}}}}\n    line: {modbus: {1: {holding: {100: 7}}}}\nscenarios:\n  one:\n    - given: \
        {configuration: {c: {ms: 9}}}\n    - advance: 1s\n";

    fn playground() -> Playground {
        let manifest = Manifest::parse(MANIFEST).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.test.yml");
        std::fs::write(&file, FILE).unwrap();
        let playground = Playground::empty(&manifest);
        playground.give(&[file], Wanted::First, &manifest).unwrap();
        playground
    }

    #[test]
    fn a_gateway_gets_the_configuration_and_grants_for_all_that_is_given() {
        let playground = playground();
        let expected = json!({"configuration": {"c": {"ms": 5}},
            "grants": {"http": ["10.0.0.5:80"], "modbus": {"line": {"bus": "line", "units": ["0-255"]}}}});
        assert_eq!(Json::Object(playground.settings()), expected);
        assert_eq!(playground.play("configure: { configuration: { c: { ms: 7 } } }"), Ok(vec![Deed::Configure]));
        assert_eq!(playground.settings()["configuration"], json!({"c": {"ms": 7}}));
    }

    #[test]
    fn typed_steps_change_devices_and_say_what_the_gateway_is_to_do() {
        let playground = playground();
        assert_eq!(playground.play("break: { line/1: exception 4, '10.0.0.5:80': timeout }"), Ok(Vec::new()));
        let faults: Vec<_> = playground.devices().into_iter().map(|device| device.faults).collect();
        assert_eq!(faults, [vec!["timeout".to_owned()], vec!["exception 4 of 1".to_owned()]]);
        assert_eq!(playground.play("repair: [line, '10.0.0.5:80']\n- restart"), Ok(vec![Deed::Restart]));
        assert!(playground.devices().iter().all(|device| device.faults.is_empty()));
        for choice in playground.faults().into_iter().chain(playground.commands()) {
            assert!(playground.play(&choice.step).is_ok(), "{choice:?}");
        }
        for (text, expected) in [
            ("advance: 5s", "time goes by itself"),
            ("brake: { line: timeout }", "unknown word \"brake\""),
            ("break: { lane: timeout }", "no device \"lane\" is given"),
            ("command: { name: off }", "off"),
            ("configure: { configuration: { c: { ms: fast } } }", "configuration.c.ms"),
        ] {
            let problem = playground.play(text).unwrap_err();
            assert!(problem.contains(expected), "{text}: {problem}");
        }
        assert_eq!(playground.settings()["configuration"], json!({"c": {"ms": 5}}));
    }

    #[test]
    fn what_is_wrong_stays_so_when_a_file_changes() {
        let playground = playground();
        playground.play("break: { line: closes }").unwrap();
        let manifest = Manifest::parse(MANIFEST).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.test.yml");
        std::fs::write(&file, FILE).unwrap();
        playground.play("change: { line: { modbus: { 1: { holding: { 100: 8 } } } } }").unwrap();
        let files = [file];
        playground.give(&files, Wanted::Called("one"), &manifest).unwrap();
        assert_eq!(playground.settings()["configuration"], json!({"c": {"ms": 9}}));
        let broken: Vec<_> = playground.devices().into_iter().flat_map(|device| device.faults).collect();
        assert_eq!(broken, ["closes"]);
        assert!(
            playground
                .give(&files, Wanted::Called("two"), &manifest)
                .unwrap_err()
                .contains("no scenario is called \"two\"")
        );
    }
}
