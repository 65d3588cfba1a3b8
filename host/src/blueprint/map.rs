//! A register map as a driver: the section `map` of a manifest, held against the
//! rest of it.

use std::collections::BTreeSet;

use anyhow::{Result, anyhow};
use sandgate_map::{Command, Condition, Entry, Kind, Map, Plain, Setting, Table, Write, milliseconds};
use serde::Deserialize;

use super::{Blueprint, MANIFEST};
use crate::manifest::files::Files;
use crate::manifest::{Enum, Manifest, RequestKind, Type, yaml};
use crate::text;

/// What follows a map; `plugins/map/build` makes it.
const RUNTIME: &[u8] = include_bytes!("../../../plugins/map/map-runtime.wasm");
/// The map's name among the files.
const FILE: &str = "map.json";
/// What Modbus gives at once.
const MOST: u16 = 125;

/// What of a manifest is looked at here.
#[derive(Deserialize)]
struct Mapped {
    map: Map,
}

/// Makes a driver of a manifest with a map.
pub(super) fn driver(text: &str) -> Result<Blueprint> {
    let Mapped { map } = yaml::read(text).map_err(|error| anyhow!("{MANIFEST}:{error}"))?;
    let manifest = Manifest::parse(&without(text)).map_err(|error| anyhow!("{MANIFEST}:{error}"))?;
    check(&map, &manifest).map_err(|(place, problem)| anyhow!("{MANIFEST}: map.{place}: {problem}"))?;
    let mut files = Files::default();
    files.insert(FILE.to_owned(), serde_json::to_vec(&map)?)?;
    Ok(Blueprint { manifest, changes: Vec::new(), missing: Vec::new(), files, runtime: RUNTIME })
}

/// A manifest without the section, so that each line stays where it is.
fn without(text: &str) -> String {
    let mut is_inside = false;
    let lines = text.lines().map(|line| {
        if !line.is_empty() && !line.starts_with([' ', '\t', '#', '-']) {
            is_inside = line.split(':').next() == Some("map");
        }
        if is_inside { "" } else { line }
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Where in the map something is wrong, and what.
type Wrong = (String, String);

fn wrong<T>(place: impl Into<String>, problem: impl Into<String>) -> Result<T, Wrong> {
    Err((place.into(), problem.into()))
}

fn check(map: &Map, manifest: &Manifest) -> Result<(), Wrong> {
    let requests = &manifest.driver.requests;
    if !requests.covers(RequestKind::Modbus, &map.line) {
        return wrong("line", format!("expected {:?} under driver.requests.modbus", map.line));
    }
    if !(1..=MOST).contains(&map.most) {
        return wrong("most", format!("expected 1 to {MOST} registers, found {}", map.most));
    }
    check_setting("unit", &map.unit, false, manifest)?;
    let times = [("every", Some(&map.every)), ("properties_every", Some(&map.properties_every))];
    for (name, time) in times.into_iter().chain([("timeout", map.timeout.as_ref()), ("pause", map.pause.as_ref())]) {
        if let Some(time) = time {
            check_setting(name, time, true, manifest)?;
        }
    }
    let blueprint = &manifest.blueprint;
    for (section, entries, declared) in
        [("telemetry", &map.telemetry, &blueprint.telemetry), ("properties", &map.properties, &blueprint.properties)]
    {
        for (name, entry) in entries {
            let place = format!("{section}.{name}");
            let Some(field) = declared.get(name) else {
                let instead = text::instead(name, declared.keys());
                return wrong(place, format!("the manifest declares no such {section}; {instead}"));
            };
            check_entry(&place, entry, map, manifest)?;
            check_type(&place, entry, field.kind, field.allowed.as_ref())?;
        }
        if let Some(name) = declared.keys().find(|name| !entries.contains_key(*name)) {
            return wrong(format!("{section}.{name}"), "the manifest declares it, and the map says nothing of it");
        }
    }
    if let Some((name, _)) = map.properties.iter().find(|(_, entry)| entry.every.is_some()) {
        return wrong(format!("properties.{name}.every"), "expected `properties_every` of the map");
    }
    for (id, condition) in &map.alerts {
        let place = format!("alerts.{id}");
        if !blueprint.alerts.contains_key(id) {
            let instead = text::instead(id, blueprint.alerts.keys());
            return wrong(place, format!("the manifest declares no such alert; {instead}"));
        }
        check_condition(&place, condition, map, manifest)?;
    }
    for (name, command) in &map.commands {
        check_command(&format!("commands.{name}"), name, command, map, manifest)?;
    }
    if let Some(name) = blueprint.commands.keys().find(|name| !map.commands.contains_key(*name)) {
        return wrong(format!("commands.{name}"), "the manifest declares it, and the map says nothing of it");
    }
    Ok(())
}

/// The type of a parameter, by `bucket.parameter`.
fn parameter(manifest: &Manifest, path: &str) -> Option<Type> {
    let (bucket, name) = path.split_once('.')?;
    Some(manifest.blueprint.configuration.get(bucket)?.parameters.get(name)?.kind)
}

fn check_setting(place: &str, setting: &Setting, is_time: bool, manifest: &Manifest) -> Result<(), Wrong> {
    match setting {
        Setting::Number(number) if is_time => wrong(place, format!("expected a time such as 1s, found {number}")),
        Setting::Text(text) if is_time && milliseconds(text).is_some() => Ok(()),
        Setting::Text(path) => match parameter(manifest, path) {
            Some(Type::Integer | Type::Float) => Ok(()),
            Some(_) => wrong(place, format!("expected a parameter that is a number, found {path}")),
            None => {
                let what = if is_time { "a time such as 1s" } else { "a number" };
                let problem = format!("expected {what}, or a parameter such as connection.unit, found {path:?}");
                wrong(place, problem)
            }
        },
        Setting::Number(_) => Ok(()),
    }
}

fn check_entry(place: &str, entry: &Entry, map: &Map, manifest: &Manifest) -> Result<(), Wrong> {
    let registers = [entry.holding, entry.input].into_iter().flatten().count();
    let bits = [entry.coil, entry.discrete].into_iter().flatten().count();
    let told =
        usize::from(entry.text.is_some()) + usize::from(entry.ok.is_some()) + usize::from(entry.alerts.is_some());
    if registers + bits + told != 1 {
        return wrong(place, "expected one of holding, input, coil, discrete, text, ok with lost, alerts");
    }
    if entry.ok.is_some() != entry.lost.is_some() {
        return wrong(place, "expected `ok` and `lost` together");
    }
    let unknown = |id: &&String| !map.alerts.contains_key(*id);
    if let Some(id) = entry.alerts.iter().flatten().find(unknown) {
        return wrong(place, format!("no alert {id:?} in the map; {}", text::instead(id, map.alerts.keys())));
    }
    if let Some(every) = &entry.every
        && !milliseconds(every).is_some_and(|time| time >= 1.0)
    {
        return wrong(format!("{place}.every"), format!("expected a time such as 10s, found {every:?}"));
    }
    if let Some(scale) = &entry.scale {
        check_setting(&format!("{place}.scale"), scale, false, manifest)?;
    }
    if let Some(path) = &entry.scale_if
        && parameter(manifest, path) != Some(Type::Boolean)
    {
        return wrong(format!("{place}.scale_if"), format!("expected a parameter that is a boolean, found {path:?}"));
    }
    match entry.place() {
        Some((Table::Holding | Table::Input, address)) => {
            let length = entry.length();
            if (entry.kind == Kind::Text) != entry.registers.is_some() {
                return wrong(place, "expected `registers` with type text, and there alone");
            }
            if length == 0 || length > map.most {
                return wrong(place, format!("expected 1 to {} registers, found {length}", map.most));
            }
            if address.checked_add(length - 1).is_none() {
                return wrong(place, "expected addresses up to 65535");
            }
            check_meaning(place, entry)
        }
        Some(_) if is_plain(entry) => Ok(()),
        Some(_) => wrong(place, "a coil or a discrete input is true or false; expected nothing else of it"),
        None => Ok(()),
    }
}

/// Whether nothing is said of what a value means.
fn is_plain(entry: &Entry) -> bool {
    let Entry { bit, bits, scale, offset, names, flags, absent, as_text, registers, .. } = entry;
    let is_changed = scale.is_some() || offset.is_some() || *as_text || registers.is_some();
    bit.is_none() && bits.is_none() && names.is_empty() && flags.is_empty() && absent.is_empty() && !is_changed
}

fn check_meaning(place: &str, entry: &Entry) -> Result<(), Wrong> {
    let width = entry.kind.registers() * 16;
    let meanings = [
        entry.bit.is_some(),
        !entry.flags.is_empty(),
        !entry.names.is_empty(),
        entry.scale.is_some() || entry.offset.is_some(),
    ];
    if meanings.into_iter().filter(|it| *it).count() > 1 {
        return wrong(place, "expected one of bit, flags, enum, scale and offset");
    }
    let of_bits = entry.bit.is_some() || entry.bits.is_some() || !entry.flags.is_empty() || !entry.names.is_empty();
    if of_bits && !entry.kind.is_whole() {
        return wrong(place, "bits and enums are of whole numbers; expected a type such as u16");
    }
    let highest = entry.flags.keys().copied().chain(entry.bit).max().map(u16::from);
    if highest.is_some_and(|bit| bit >= width) {
        return wrong(place, format!("expected bits from 0 to {}", width.saturating_sub(1)));
    }
    if let Some((first, count)) = entry.bits
        && (count == 0 || u16::from(first) + u16::from(count) > width)
    {
        return wrong(format!("{place}.bits"), format!("expected [lowest, how many] within {width} bits"));
    }
    Ok(())
}

/// Whether what an entry says is of the type that the manifest declares.
fn check_type(place: &str, entry: &Entry, kind: Type, values: Option<&Enum>) -> Result<(), Wrong> {
    let is_number = entry.names.is_empty() && entry.flags.is_empty() && entry.bit.is_none() && !entry.as_text;
    let (found, fits) = match entry.place() {
        Some((Table::Coils | Table::Discrete, _)) => ("a boolean", kind == Type::Boolean),
        Some(_) if !entry.flags.is_empty() => ("a list of texts", matches!(kind, Type::ArrayOfStrings | Type::Alerts)),
        Some(_) if entry.bit.is_some() => ("a boolean", kind == Type::Boolean),
        Some(_) if entry.kind == Kind::Text || !is_number => ("a text", kind == Type::String),
        Some(_) if !entry.kind.is_whole() || entry.scale.is_some() || entry.offset.is_some() => {
            ("a float", kind == Type::Float)
        }
        Some(_) => ("an integer", matches!(kind, Type::Integer | Type::Float)),
        None if entry.alerts.is_some() => ("a list of alerts", matches!(kind, Type::ArrayOfStrings | Type::Alerts)),
        None => ("a text", kind == Type::String),
    };
    if !fits {
        return wrong(place, format!("the registers give {found}, and the manifest declares another type"));
    }
    let texts = entry.names.values().chain(&entry.text).chain(&entry.ok).chain(&entry.lost);
    if let Some(values) = values
        && let Some(text) =
            texts.into_iter().find(|text| !values.values(Type::String).iter().any(|value| value == text.as_str()))
    {
        return wrong(place, format!("expected a text of its enum, found {text:?}"));
    }
    Ok(())
}

fn check_condition(place: &str, condition: &Condition, map: &Map, manifest: &Manifest) -> Result<(), Wrong> {
    let Condition { lost, of, at, is, is_not, above, below } = condition;
    if usize::from(*lost) + usize::from(of.is_some()) + usize::from(at.is_some()) != 1 {
        return wrong(place, "expected one of `lost: true`, `of: ATTRIBUTE`, `at: { holding: ADDRESS }`");
    }
    if *lost && (is.is_some() || is_not.is_some() || above.is_some() || below.is_some()) {
        return wrong(place, "expected nothing beside `lost`");
    }
    if let Some(name) = of {
        let read = || map.telemetry.iter().filter(|(_, entry)| entry.place().is_some()).map(|(name, _)| name);
        if !read().any(|known| known == name) {
            return wrong(format!("{place}.of"), format!("no such value is read; {}", text::instead(name, read())));
        }
    }
    let Some(entry) = at else { return Ok(()) };
    if entry.place().is_none() || entry.every.is_some() {
        return wrong(format!("{place}.at"), "expected a place such as holding, which is read in each poll");
    }
    check_entry(&format!("{place}.at"), entry, map, manifest)
}

fn check_command(place: &str, name: &str, command: &Command, map: &Map, manifest: &Manifest) -> Result<(), Wrong> {
    let Some(declared) = manifest.blueprint.commands.get(name) else {
        let instead = text::instead(name, manifest.blueprint.commands.keys());
        return wrong(place, format!("the manifest declares no such command; {instead}"));
    };
    if command.writes.is_empty() && command.returns.is_empty() {
        return wrong(place, "expected `writes` or `returns`");
    }
    let mut used = BTreeSet::new();
    for (number, write) in command.writes.iter().enumerate() {
        let place = format!("{place}.writes[{number}]");
        check_write(&place, write)?;
        if let Some(argument) = &write.argument {
            let Some(parameter) = declared.arguments.get(argument) else {
                let instead = text::instead(argument, declared.arguments.keys());
                return wrong(place, format!("the command has no argument {argument:?}; {instead}"));
            };
            let is_text = parameter.kind == Type::String;
            if is_text == write.names.is_empty() {
                let problem = "expected `enum` for an argument that is a text, and for no other";
                return wrong(place, problem);
            }
            used.insert(argument);
        }
    }
    if let Some(argument) = declared.arguments.keys().find(|name| !used.contains(name)) {
        return wrong(place, format!("its argument {argument:?} is written nowhere"));
    }
    for (name, entry) in &command.returns {
        check_entry(&format!("{place}.returns.{name}"), entry, map, manifest)?;
    }
    Ok(())
}

fn check_write(place: &str, write: &Write) -> Result<(), Wrong> {
    if write.holding.is_some() == write.coil.is_some() {
        return wrong(place, "expected one of holding, coil");
    }
    if write.value.is_some() == write.argument.is_some() {
        return wrong(place, "expected one of value, argument");
    }
    if write.kind == Kind::Text {
        return wrong(place, "a text cannot be written; expected a type such as u16");
    }
    if write.coil.is_some() && (write.kind != Kind::U16 || write.scale.is_some() || write.offset.is_some()) {
        return wrong(place, "a coil is true or false; expected no type, scale or offset");
    }
    if write.scale == Some(0.0) {
        return wrong(format!("{place}.scale"), "expected another number than 0");
    }
    if let Some(Plain::Text(text)) = &write.value
        && !write.names.values().any(|name| name == text)
    {
        return wrong(place, format!("expected a number, true, false, or a text of `enum`, found {text:?}"));
    }
    let length = write.kind.registers().saturating_sub(1);
    if write.holding.is_some_and(|address| address.checked_add(length).is_none()) {
        return wrong(place, "expected addresses up to 65535");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = "\
blueprint_spec: device/3.0
display_name: Heater
runtime: { type: embedded }
configuration:
  connection:
    display_name: Connection
    parameters:
      unit: { type: integer, display_name: Unit, required: true }
telemetry:
  power: { type: float, unit: watt, display_name: Power }
  mode: { type: string, enum: [eco, full], display_name: Mode }
alerts:
  hot: { severity: error, display_name: Hot }
command_groups:
  main: { display_name: Main }
commands:
  set_mode:
    display_name: Mode
    group: main
    arguments:
      mode: { type: string, enum: [eco, full], display_name: Mode, required: true }
map:
  unit: connection.unit
  telemetry:
    power: { holding: 10, type: i16, scale: 0.1 }
    mode: { input: 3, enum: { 0: eco, 1: full } }
  alerts:
    hot: { of: power, above: 80 }
  commands:
    set_mode: { writes: [{ holding: 3, argument: mode, enum: { 0: eco, 1: full } }] }
driver:
  name: heater
  version: 1.0.0
  requests: { modbus: [line] }
";

    #[test]
    fn a_map_becomes_a_driver_and_lines_stay_where_they_are() {
        let driver = driver(MANIFEST).unwrap();
        assert_eq!(driver.manifest.driver.name, "heater");
        assert_eq!(driver.files.names().collect::<Vec<_>>(), [FILE]);
        let map: Map = serde_json::from_slice(driver.files.get(FILE).unwrap()).unwrap();
        assert_eq!(map.telemetry["mode"].names[&1], "full");
        let text = without(MANIFEST);
        assert!(!text.contains("map:") && text.contains("requests:"));
        assert_eq!(
            text.lines().position(|line| line == "driver:"),
            MANIFEST.lines().position(|line| line == "driver:")
        );
    }

    #[test]
    fn the_map_in_the_readme_can_be_read() {
        let readme = include_str!("../../../README.md");
        let begin = readme.find("```yaml\nmap:\n").unwrap() + "```yaml\n".len();
        let text = readme[begin..].split("```").next().unwrap();
        let Mapped { map } = yaml::read(text).unwrap();
        assert_eq!((map.telemetry.len(), map.alerts.len(), map.gap), (5, 3, 4));
    }

    #[test]
    fn what_does_not_fit_the_manifest_is_refused_with_its_place() {
        for (from, to, expected) in [
            (
                "  unit: connection.unit",
                "  unit: connection.unitx",
                "map.unit: expected a number, or a parameter such as",
            ),
            (
                "    power: { holding",
                "    pover: { holding",
                "map.telemetry.pover: the manifest declares no such telemetry; did you mean \"power\"?",
            ),
            ("holding: 10,", "holding: 10, coil: 3,", "map.telemetry.power: expected one of holding, input, coil"),
            ("type: i16, scale: 0.1", "type: text", "map.telemetry.power: expected `registers` with type text"),
            ("type: i16, scale: 0.1", "bit: 3", "map.telemetry.power: the registers give a boolean"),
            ("type: i16, scale: 0.1", "type: u16, bit: 16", "map.telemetry.power: expected bits from 0 to 15"),
            (
                "type: i16, scale: 0.1",
                "type: u16, bits: [10, 7]",
                "map.telemetry.power.bits: expected [lowest, how many]",
            ),
            (
                "{ input: 3, enum: { 0: eco",
                "{ input: 3, enum: { 0: echo",
                "map.telemetry.mode: expected a text of its enum, found \"echo\"",
            ),
            ("    mode: { input", "    # mode: { input", "map.telemetry.mode: the manifest declares it"),
            (
                "hot: { of: power",
                "hot: { of: powr",
                "map.alerts.hot.of: no such value is read; did you mean \"power\"?",
            ),
            ("hot: { of: power, ", "cold: { of: power, ", "map.alerts.cold: the manifest declares no such alert"),
            (
                "argument: mode, enum: { 0: eco, 1: full } }",
                "argument: mode }",
                "map.commands.set_mode.writes[0]: expected `enum`",
            ),
            (
                "argument: mode, enum",
                "argument: mod, enum",
                "the command has no argument \"mod\"; did you mean \"mode\"?",
            ),
            ("{ holding: 10, type: i16", "{ holding: 10, typ: i16", "manifest.yml:25:"),
            ("modbus: [line]", "modbus: [other]", "map.line: expected \"line\" under driver.requests.modbus"),
            ("  name: heater", "  title: heater", "manifest.yml:3"),
        ] {
            assert!(MANIFEST.contains(from), "{from}");
            let error = driver(&MANIFEST.replace(from, to)).unwrap_err();
            let error = format!("{error:#}");
            assert!(error.contains(expected), "{to}: {error}");
        }
    }
}
