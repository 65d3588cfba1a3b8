//! Whether a scenario can be played with a driver: all that it names is there.

use super::Scenario;
use super::fault::Fault;
use super::format::{ConfigureStep, Device, PlacedStep, Step, SwapStep, lay_over};
use super::registers::hex;
use crate::manifest::{Manifest, RequestKind, Requests};
use crate::network::Target;
use crate::text;

impl Scenario {
    /// Whether what is given can be. An error begins with a line.
    pub(super) fn check_given(&self, manifest: &Manifest) -> Result<(), String> {
        let at_begin = |problem: String| format!("{}: {}: {problem}", self.given_line, self.name);
        self.given.begin().map_err(at_begin)?;
        let requests = &manifest.driver.requests;
        for (name, device) in &self.given.devices.0 {
            self.check_device(name, device, requests).map_err(at_begin)?;
        }
        let mut needed = requests.needed_lines();
        if let Some((kind, line)) = needed.find(|(_, line)| self.kind_of(line).is_none() && self.tape.is_none()) {
            let text = format!("devices: expected a device for the driver's {} {line:?}", kind.noun());
            return Err(at_begin(text));
        }
        let checked = manifest.check_configuration(self.given.configuration.clone());
        checked.map(drop).map_err(|problem| at_begin(format!("given.configuration.{problem}")))
    }

    /// Whether all that it names is there. An error begins with a line.
    pub(super) fn check(&self, manifest: &Manifest) -> Result<(), String> {
        self.check_given(manifest)?;
        if self.steps.is_empty() {
            return Err(format!("{}: {}: expected at least one step", self.given_line, self.name));
        }
        let mut configuration = self.given.configuration.clone();
        let mut is_swapped = false;
        for PlacedStep { line, step, .. } in &self.steps {
            let wrong = |problem: String| format!("{line}: {}: {problem}", self.name);
            // What another driver declares is not known before it is loaded.
            is_swapped |= matches!(step, Step::Swap(SwapStep { driver: Some(_), rejected: None }));
            if is_swapped && matches!(step, Step::Expect(_) | Step::Command(_) | Step::Configure(_)) {
                continue;
            }
            self.check_step(step, manifest).map_err(wrong)?;
            if let Step::Configure(ConfigureStep { configuration: changes, rejected: None }) = step {
                lay_over(&mut configuration, changes.clone());
                let checked = manifest.check_configuration(configuration.clone());
                checked.map_err(|problem| wrong(format!("configuration.{problem}")))?;
            }
        }
        Ok(())
    }

    /// What a given device is.
    fn kind_of(&self, name: &str) -> Option<&'static str> {
        self.given.devices.0.iter().find(|(other, _)| other == name).map(|(_, device)| device.kind())
    }

    /// Whether a device can be what it is given as, and its words can be read.
    fn check_device(&self, name: &str, device: &Device, requests: &Requests) -> Result<(), String> {
        if let Some(kind) = self.kind_of(name).filter(|kind| *kind != device.kind()) {
            return Err(format!("devices.{name}: is given as {kind}, found {}", device.kind()));
        }
        match device {
            Device::Modbus(_) if name.parse::<Target>().is_ok_and(|target| target.is_single()) => {}
            Device::Modbus(_) | Device::Capture(_) => check_line(requests, RequestKind::Modbus, name)?,
            Device::Serial(_) => check_line(requests, RequestKind::Serial, name)?,
            Device::Can(_) => check_line(requests, RequestKind::Can, name)?,
            Device::Output(_) | Device::Input(_) | Device::Analog(_) => check_line(requests, RequestKind::Io, name)?,
            Device::Http(_) | Device::Tcp(_) if name.parse::<Target>().is_err() => {
                return Err(format!("devices.{name}: expected host:port"));
            }
            Device::Http(_) | Device::Tcp(_) if name.contains(char::is_uppercase) => {
                return Err(format!("devices.{name}: expected the host in lower case, as URLs have it"));
            }
            _ => {}
        }
        if let Device::Tcp(tcp) | Device::Serial(tcp) = device {
            let texts =
                tcp.answers.iter().flat_map(|(asked, answers)| answers.0.iter().chain([asked])).chain(&tcp.greeting);
            for text in texts {
                if text.strip_prefix("hex ").is_some_and(|digits| hex(digits).is_err()) {
                    return Err(format!("devices.{name}: expected pairs of hexadecimal digits, found {text:?}"));
                }
            }
            if tcp.answers.keys().any(|asked| asked.is_empty() || asked.trim() == "hex") {
                return Err(format!("devices.{name}: expected something that is said before each answer"));
            }
        }
        Ok(())
    }

    /// Whether a fault is one that a device can have.
    fn check_fault(&self, name: &str, fault: Option<Fault>) -> Result<(), String> {
        let (device, unit) = name.split_once('/').map_or((name, None), |(device, unit)| (device, Some(unit)));
        let names = self.given.devices.0.iter().map(|(name, _)| name.as_str());
        let Some(kind) = self.kind_of(device) else {
            // What is on the tape is known when it is played.
            if self.tape.is_some() {
                return Ok(());
            }
            return Err(format!("no device {name:?} is given; {}", text::instead(device, names)));
        };
        if let (Some(unit), "modbus") = (unit, kind) {
            let given = self.given.devices.0.iter().filter(|(other, _)| other == device);
            let mut units = given.flat_map(|(_, given)| match given {
                Device::Modbus(units) => units.keys().copied().collect(),
                _ => Vec::new(),
            });
            if !units.any(|given| unit.parse() == Ok(given)) {
                return Err(format!("{device} has no unit {unit:?}"));
            }
        }
        let is_possible = match fault {
            Some(Fault::Exception(_)) => kind == "modbus" || kind == "capture",
            Some(Fault::WrongCount) => kind == "modbus",
            Some(Fault::Status(_)) => kind == "http",
            _ => true,
        };
        if is_possible { Ok(()) } else { Err(format!("{name}: a device on {kind} cannot have this fault")) }
    }

    pub(super) fn check_step(&self, step: &Step, manifest: &Manifest) -> Result<(), String> {
        match step {
            Step::Given(_) => Err("`given` stands in the first place only".into()),
            Step::Expect(expect) => expect.check(manifest),
            // One that is refused may be what is looked for.
            Step::Command(command) if command.error.is_some() => Ok(()),
            Step::Command(command) => {
                let checked = manifest.check_command(&command.name, command.arguments.clone());
                checked.map(drop).map_err(|error| error.to_string())
            }
            Step::Change(changes) => changes.0.iter().try_for_each(|(name, change)| match self.kind_of(name) {
                Some(_) => self.check_device(name, change, &manifest.driver.requests),
                None if self.tape.is_some() => {
                    Err(format!("{name} answers from the tape, and cannot be changed; give a device of this name"))
                }
                None => self.check_fault(name.split('/').next().unwrap_or_default(), None),
            }),
            Step::Break(faults) => faults.iter().try_for_each(|(name, fault)| self.check_fault(name, Some(*fault))),
            Step::Repair(names) => names.0.iter().try_for_each(|name| self.check_fault(name, None)),
            _ => Ok(()),
        }
    }
}

/// Whether a driver asks for a line of this name.
fn check_line(requests: &Requests, kind: RequestKind, name: &str) -> Result<(), String> {
    if requests.covers(kind, name) {
        return Ok(());
    }
    let known = requests.lines().filter(|(own, _)| *own == kind).map(|(_, name)| name);
    let expected = text::instead(name, known);
    Err(format!("devices.{name}: the driver requests no {} of this name; {expected}", kind.noun()))
}
