//! `sandgate run --check`: all that can be found out about a configuration
//! without the field and the cloud.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{Access, access};
use serde_json::{Value as Json, json};

use super::Outcome;
use crate::say::say;
use sandgate::config::{Bus, Config, ConfiguredUnits, Device, ModbusGrant};
use sandgate::manifest::Manifest;
use sandgate::message::SessionName;
use sandgate::network::Target;
use sandgate::registry::{Origin, Progress, Registry};
use sandgate::sandbox::{Compiler, Driver, Sandbox};
use sandgate::session::{Parts, check_tls};
use sandgate::state::StateFolder;

/// Something that was looked at.
struct Finding {
    /// Its key in the configuration.
    key: String,
    level: Level,
    text: String,
    /// What to write into the configuration.
    add: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Fine,
    /// It may be meant.
    Warning,
    /// It will not work.
    Problem,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Level::Fine => "ok",
            Level::Warning => "warning",
            Level::Problem => "problem",
        }
    }
}

/// All that was found, in the order in which it is told.
#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn tell(&mut self, key: &str, level: Level, text: impl Into<String>, add: Option<String>) {
        self.0.push(Finding { key: key.to_owned(), level, text: text.into(), add });
    }

    fn result(&mut self, key: &str, result: Result<()>) {
        match result {
            Ok(()) => self.tell(key, Level::Fine, "is fine", None),
            Err(error) => self.tell(key, Level::Problem, format!("{error:#}"), None),
        }
    }

    fn print(&self, json: bool) {
        if json {
            let finding = |finding: &Finding| {
                json!({"place": finding.key, "ok": finding.level != Level::Problem, "level": finding.level.name(),
                    "text": finding.text, "add": finding.add})
            };
            return say!("{}", Json::from(self.0.iter().map(finding).collect::<Vec<_>>()));
        }
        for Finding { key, level, text, add } in &self.0 {
            let level = if *level == Level::Fine { String::new() } else { format!("{}: ", level.name()) };
            say!("{key}: {level}{text}");
            for line in add.iter().flat_map(|add| add.lines()) {
                say!("    add: {line}");
            }
        }
    }
}

/// Looks at everything and prints what was found; failed when something will
/// not work.
pub(super) async fn run(config: &Config, json: bool) -> Result<Outcome> {
    let mut findings = Findings::default();
    findings.result("state", StateFolder::check(&config.state).with_context(|| config.state.display().to_string()));
    check_sessions(config, &mut findings);
    for (name, bus) in &config.buses {
        findings.result(&format!("buses.{name}"), check_bus(bus));
    }
    if config.devices.is_empty() {
        let add = "[devices.<id>]\ndriver = \"<file>.wasm\"".to_owned();
        findings.tell("devices", Level::Warning, "there are none", Some(add));
    }
    check_devices(config, &mut findings).await?;
    findings.print(json);
    let failed = findings.0.iter().any(|finding| finding.level == Level::Problem);
    Ok(if failed { Outcome::Failed } else { Outcome::Done })
}

fn check_sessions(config: &Config, findings: &mut Findings) {
    if config.sessions.is_empty() {
        let add = "[sessions.<name>.enapter]\ncommunication_config = { file = \"<file>\" }".to_owned();
        let text = "there are none: nothing is sent to a cloud, and no cloud can send commands";
        findings.tell("sessions", Level::Warning, text, Some(add));
    }
    let mut identities: BTreeMap<(String, u16, String), &str> = BTreeMap::new();
    for (name, session) in &config.sessions {
        let key = format!("sessions.{name}");
        let identity = Parts::new(&SessionName::new(name), session, &config.folder).and_then(identity);
        let other = identity.as_ref().ok().and_then(|identity| identities.insert(identity.clone(), name));
        let result = identity.map_err(|error| format!("{}: {error:#}", config.original.place(&["sessions", name])));
        let result = result.map_err(anyhow::Error::msg).and_then(|_| match other {
            Some(other) => bail!("it has the client id of sessions.{other}: the broker lets only one of them connect"),
            None => Ok(()),
        });
        findings.result(&key, result);
    }
}

/// What only one client of a broker can be.
fn identity(parts: Parts) -> Result<(String, u16, String)> {
    if let Some(tls) = &parts.broker.tls {
        check_tls(tls).context("TLS")?;
    }
    Ok((parts.broker.host, parts.broker.port, parts.client_id))
}

fn check_bus(bus: &Bus) -> Result<()> {
    let Bus::ModbusRtu(line) = bus else { return Ok(()) };
    let port = line.port.display();
    let there = line.port.metadata().with_context(|| format!("serial port {port}"))?;
    ensure!(there.file_type().is_char_device(), "{port}: expected a serial port, found something else");
    let user = "expected that this user may read and write it; on most systems the group `dialout` may";
    access(&line.port, Access::READ_OK | Access::WRITE_OK).with_context(|| format!("{port}: {user}"))
}

async fn check_devices(config: &Config, findings: &mut Findings) -> Result<()> {
    let registry = Registry::new(Sandbox::new(Compiler::InProcess, None)?, None);
    // A driver stays loaded as long as it is held.
    let mut drivers: HashMap<PathBuf, Result<Arc<Driver>, String>> = HashMap::new();
    let mut units: BTreeMap<(String, u8), &str> = BTreeMap::new();
    for (id, device) in &config.devices {
        let key = format!("devices.{id}");
        let path = config.driver_path(device);
        if !drivers.contains_key(&path) {
            let origin = Origin::File(path.clone());
            let loaded = registry.load(&origin, &Progress::default()).await;
            let loaded = loaded.with_context(|| path.display().to_string());
            drivers.insert(path.clone(), loaded.map_err(|error| format!("{error:#}")));
        }
        let Some(driver) = drivers.get(&path) else { continue };
        let before = findings.0.len();
        match driver {
            Err(error) => findings.tell(&key, Level::Problem, device.wrong(&["driver"], error), None),
            Ok(driver) => {
                check_device(config, device, &driver.manifest, findings);
                check_units(device, &driver.manifest, &mut units, findings);
            }
        }
        if let Ok(driver) = driver
            && findings.0.len() == before
        {
            findings.tell(&key, Level::Fine, format!("{} is fine", driver.manifest.label()), None);
        }
    }
    Ok(())
}

/// Holds what a device is given against what its driver asks for.
fn check_device(config: &Config, device: &Device, manifest: &Manifest, findings: &mut Findings) {
    let key = format!("devices.{}", device.id);
    let requests = &manifest.driver.requests;
    if let Err(problem) = device.check(manifest) {
        let missing = requests.needed_lines().find(|(kind, line)| !device.grants.has_line(*kind, line));
        let add = missing.map(|(kind, line)| {
            let bus = config.buses.iter().find(|(_, bus)| bus.kind() == kind).map_or("<bus>", |(name, _)| name);
            format!("grants.{}.{line} = \"{bus}\"", kind.key())
        });
        findings.tell(&key, Level::Problem, problem, add);
    }
    for (own, kind, requested) in requests.targets() {
        let granted = device.grants.targets(kind);
        let targets = granted.unwrap_or_default();
        for target in requested.iter().filter(|target| !targets.iter().any(|granted| granted.overlaps(target))) {
            // An empty list says that it is meant.
            if granted.is_some_and(<[_]>::is_empty) || requests.optional.contains(&own) {
                continue;
            }
            let text = format!(
                "the driver requests to reach {target} ({kind}), and nothing of that is granted; an empty list says \
                 that this is meant"
            );
            let mut grants: Vec<String> = targets.iter().map(ToString::to_string).collect();
            grants.push(suggestion(device, target));
            let add = format!("grants.{kind} = {grants:?}");
            findings.tell(&key, Level::Problem, device.wrong(&["grants", kind], &text), Some(add));
        }
        for target in targets.iter().filter(|target| !requested.iter().any(|request| request.overlaps(target))) {
            let text = format!("{target} is granted, and the driver requests no such thing");
            findings.tell(&key, Level::Warning, device.wrong(&["grants", kind], &text), None);
        }
    }
    for (kind, name, _) in device.grants.lines().filter(|(kind, name, _)| !requests.covers(*kind, name)) {
        let known = requests.lines().filter(|(own, _)| *own == kind).map(|(_, name)| name);
        let text = format!("the driver requests no such line; {}", sandgate::text::instead(name, known));
        findings.tell(&key, Level::Warning, device.wrong(&["grants", kind.key(), name], &text), None);
    }
}

/// What an operator probably wants to grant: the address in the device's
/// configuration, or the one that is requested.
fn suggestion(device: &Device, requested: &Target) -> String {
    let buckets = device.configuration.buckets();
    let values: Vec<&Json> = buckets.values().filter_map(Json::as_object).flat_map(|bucket| bucket.values()).collect();
    let ports = values.iter().filter_map(|value| value.as_i64()).map(|port| format!(":{port}"));
    let own_port = requested.port().map(|port| format!(":{port}"));
    let ends: Vec<String> = [String::new()].into_iter().chain(own_port).chain(ports).collect();
    for text in values.iter().filter_map(|value| value.as_str()) {
        // The host of a URL, or the whole text.
        let host = text.split_once("://").map_or(text, |(_, rest)| rest).split('/').next().unwrap_or(text);
        let targets = ends.iter().map(|end| format!("{host}{end}"));
        let fits = |text: &String| text.parse().is_ok_and(|it: Target| it.is_single() && it.overlaps(requested));
        if let Some(target) = targets.into_iter().find(fits) {
            return target;
        }
    }
    match requested.port() {
        // Everything is more than anybody means.
        _ if requested.is_single() => requested.to_string(),
        Some(port) => format!("<host>:{port}"),
        None => "<host>:<port>".to_owned(),
    }
}

/// Finds devices that have the same unit of a bus.
fn check_units<'a>(
    device: &'a Device,
    manifest: &Manifest,
    taken: &mut BTreeMap<(String, u8), &'a str>,
    findings: &mut Findings,
) {
    // With the defaults of the manifest.
    let Ok(checked) = manifest.check_configuration(device.configuration.buckets()) else { return };
    let units = ConfiguredUnits::of(manifest, &Json::Object(checked).to_string()).units;
    for ModbusGrant { bus, .. } in device.grants.modbus.values() {
        for unit in &units {
            if let Some(other) = taken.insert((bus.clone(), *unit), &device.id) {
                let text = format!("unit {unit} of bus {bus} is also the unit of device {other}");
                let problem = device.wrong(&["configuration"], &text);
                findings.tell(&format!("devices.{}", device.id), Level::Warning, problem, None);
            }
        }
    }
}
