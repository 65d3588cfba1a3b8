//! Strict parsing of `manifest.yml`: YAML to types, then the rules that types
//! cannot say. Each error has a line, the key and what was expected.

use crate::text;
use serde::Deserialize;
use serde_json::{Map, Value as Json};

use super::yaml;
use super::{Blueprint, DriverSection, Enum, Field, Manifest, Parameter, Type};

/// A manifest is hand-written; more than this is a mistake or an attack.
const MAX_BYTES: usize = 1 << 20;

/// Keys of the older blueprint specification, with what replaces them.
const REMOVED_IN_3: [(&str, &str); 3] = [
    ("vendor", "was removed in device/3.0; use the properties"),
    ("verification_level", "was removed in device/3.0"),
    ("communication_module", "belongs to device/1.0; use runtime"),
];

pub(super) fn parse(text: &str) -> Result<Manifest, String> {
    if text.len() > MAX_BYTES {
        return Err(format!("expected at most {MAX_BYTES} bytes, found {}", text.len()));
    }
    let mut tree: Map<String, Json> = match yaml::read::<Json>(text)? {
        Json::Object(tree) => tree,
        _ => return Err("1:1: expected a mapping with blueprint_spec, display_name and driver".into()),
    };
    // Keys such as `.cloud` are for user interfaces and may hold anything.
    remove_dot_keys(&mut tree);
    let spec = tree.get("blueprint_spec").and_then(Json::as_str);
    if spec != Some("device/3.0") {
        let found = tree.get("blueprint_spec").map_or("nothing".into(), Json::to_string);
        return Err(at(text, &["blueprint_spec"], &format!("expected \"device/3.0\", found {found}")));
    }
    for (key, hint) in REMOVED_IN_3 {
        if tree.contains_key(key) {
            return Err(at(text, &[key], hint));
        }
    }
    let Some(driver) = tree.remove("driver") else {
        return Err("1:1: expected a section `driver` with name and version".into());
    };
    let driver = driver_section(driver, text)?;
    let blueprint = blueprint(tree, text)?;
    let manifest = Manifest { blueprint, driver, text: text.to_owned() };
    check(&manifest).map_err(|(place, problem)| {
        let place: Vec<&str> = place.iter().map(String::as_str).collect();
        at(text, &place, &problem)
    })?;
    Ok(manifest)
}

/// Deserializes the driver's section, so that an error can name the key.
fn driver_section(driver: Json, text: &str) -> Result<DriverSection, String> {
    if let Json::Object(section) = &driver {
        for inner in ["requests", "limits"] {
            if let Some(Json::Object(keys)) = section.get(inner) {
                let place = ["driver", inner];
                match inner {
                    "requests" => blame::<super::Requests>(keys, &[], &place, text)?,
                    _ => blame::<super::RequestedLimits>(keys, &[], &place, text)?,
                }
            }
        }
        if let Some(Json::Object(commands)) = section.get("commands") {
            for (name, terms) in commands {
                if let Json::Object(terms) = terms {
                    blame::<super::CommandTerms>(terms, &[], &["driver", "commands", name], text)?;
                }
            }
        }
        let required = [("name", Json::from("x")), ("version", Json::from("1.0.0"))];
        blame::<DriverSection>(section, &required, &["driver"], text)?;
    }
    typed(driver, text, "driver")
}

/// Tries each key alone beside the required ones and names the first that does
/// not parse: an error of the whole would not say which it was.
fn blame<T: for<'de> Deserialize<'de>>(
    keys: &Map<String, Json>,
    required: &[(&str, Json)],
    place: &[&str],
    text: &str,
) -> Result<(), String> {
    for (key, value) in keys {
        let mut alone: Map<String, Json> =
            required.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        alone.insert(key.clone(), value.clone());
        if let Err(error) = T::deserialize(&Json::Object(alone)) {
            let place: Vec<&str> = place.iter().copied().chain([key.as_str()]).collect();
            return Err(at(text, &place, &error.to_string()));
        }
    }
    Ok(())
}

/// Deserializes the sections one by one, so that an error can name the entry.
fn blueprint(tree: Map<String, Json>, text: &str) -> Result<Blueprint, String> {
    /// Fails on the first entry of a section that does not parse.
    fn entries<T: for<'de> Deserialize<'de>>(
        tree: &Map<String, Json>,
        section: &str,
        text: &str,
    ) -> Result<(), String> {
        let Some(Json::Object(entries)) = tree.get(section) else { return Ok(()) };
        for (name, entry) in entries {
            if let Err(error) = T::deserialize(entry) {
                return Err(at(text, &[section, name], &error.to_string()));
            }
        }
        Ok(())
    }
    entries::<super::Field>(&tree, "properties", text)?;
    entries::<super::Field>(&tree, "telemetry", text)?;
    entries::<super::Alert>(&tree, "alerts", text)?;
    entries::<super::CommandGroup>(&tree, "command_groups", text)?;
    entries::<super::Unit>(&tree, "units", text)?;
    for (section, inner) in [("commands", "arguments"), ("configuration", "parameters")] {
        let Some(Json::Object(outer)) = tree.get(section) else { continue };
        for (name, entry) in outer {
            let Some(Json::Object(parameters)) = entry.get(inner) else { continue };
            for (parameter, value) in parameters {
                if let Err(error) = Parameter::deserialize(value) {
                    return Err(at(text, &[section, name, inner, parameter], &error.to_string()));
                }
            }
        }
    }
    entries::<super::Command>(&tree, "commands", text)?;
    entries::<super::Bucket>(&tree, "configuration", text)?;
    let required = [("blueprint_spec", Json::from("device/3.0")), ("display_name", Json::from("x"))];
    blame::<Blueprint>(&tree, &required, &[], text)?;
    typed(Json::Object(tree), text, "")
}

fn typed<T: for<'de> Deserialize<'de>>(value: Json, text: &str, place: &str) -> Result<T, String> {
    let place: Vec<&str> = [place].into_iter().filter(|key| !key.is_empty()).collect();
    T::deserialize(value).map_err(|error| at(text, &place, &error.to_string()))
}

fn remove_dot_keys(tree: &mut Map<String, Json>) {
    tree.retain(|key, _| !key.starts_with('.'));
    for value in tree.values_mut() {
        if let Json::Object(inner) = value {
            remove_dot_keys(inner);
        }
    }
}

/// Prefixes a problem with its line and key path. The line is that of the key
/// as found by indentation; a manifest in flow style gets the nearest one.
fn at(text: &str, place: &[&str], problem: &str) -> String {
    let mut found = (1, 1);
    let mut parent: Option<usize> = None;
    let mut rest = place.iter().peekable();
    for (number, line) in text.lines().enumerate() {
        let Some(key) = rest.peek() else { break };
        let content = line.trim_start();
        let indent = line.len() - content.len();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        if parent.is_some_and(|parent| indent <= parent) {
            break;
        }
        let name = content.split(':').next().unwrap_or_default().trim_matches(['"', '\'']);
        if name == **key {
            found = (number + 1, indent + 1);
            parent = Some(indent);
            rest.next();
        }
    }
    let keys = if place.is_empty() { String::new() } else { format!("{}: ", place.join(".")) };
    format!("{}:{}: {keys}{problem}", found.0, found.1)
}

type Problem = (Vec<String>, String);

/// Whether a text can be a driver's name: lower-case words joined by `-`.
pub fn is_driver_name(name: &str) -> bool {
    let is_word = |word: &str| !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    name.len() <= 64 && name.starts_with(|c: char| c.is_ascii_lowercase()) && name.split('-').all(is_word)
}

fn check(manifest: &Manifest) -> Result<(), Problem> {
    let place = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
    let driver = &manifest.driver;
    if !is_driver_name(&driver.name) {
        let text = format!("expected lower-case words joined by - such as \"power-meter\", found {:?}", driver.name);
        return Err((place(&["driver", "name"]), text));
    }
    if semantic_version(&driver.version).is_none() {
        let text = format!("expected a semantic version such as \"1.2.0\", found {:?}", driver.version);
        return Err((place(&["driver", "version"]), text));
    }
    let blueprint = &manifest.blueprint;
    for (section, fields) in [("properties", &blueprint.properties), ("telemetry", &blueprint.telemetry)] {
        for (name, field) in fields {
            check_field(section, name, field).map_err(|text| (place(&[section, name]), text))?;
        }
    }
    for id in blueprint.alerts.keys() {
        if id.is_empty() || !id.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-') {
            return Err((place(&["alerts", id]), "expected an id of letters, digits, _ and -".into()));
        }
    }
    for (name, command) in &blueprint.commands {
        check_name(name).map_err(|text| (place(&["commands", name]), text))?;
        if !blueprint.command_groups.contains_key(&command.group) {
            let text = format!("expected a key under command_groups, found {:?}", command.group);
            return Err((place(&["commands", name, "group"]), text));
        }
        for (argument, parameter) in &command.arguments {
            check_parameter(argument, parameter)
                .map_err(|text| (place(&["commands", name, "arguments", argument]), text))?;
        }
    }
    for (name, bucket) in &blueprint.configuration {
        check_name(name).map_err(|text| (place(&["configuration", name]), text))?;
        for (key, parameter) in &bucket.parameters {
            check_parameter(key, parameter)
                .map_err(|text| (place(&["configuration", name, "parameters", key]), text))?;
        }
    }
    if let Some(name) = driver.commands.keys().find(|name| !blueprint.commands.contains_key(*name)) {
        let text = format!("there is no such command; {}", text::instead(name, blueprint.commands.keys()));
        return Err((place(&["driver", "commands", name]), text));
    }
    for (kind, line) in driver.requests.lines() {
        if check_name(line).is_err() {
            let text = format!("expected names of letters, digits and _, found {line:?}");
            return Err((place(&["driver", "requests", kind.key()]), text));
        }
    }
    Ok(())
}

/// Three numbers, optionally `-pre` and `+build`.
fn semantic_version(text: &str) -> Option<()> {
    let core = text.split(['-', '+']).next()?;
    let mut numbers = core.split('.');
    for _ in 0..3 {
        let number = numbers.next()?;
        if number.is_empty() || !number.chars().all(|c| c.is_ascii_digit()) {
            return None;
        }
    }
    let rest = text.get(core.len()..)?;
    let is_plain = rest.chars().all(|c| c.is_ascii_alphanumeric() || ".-+".contains(c));
    (numbers.next().is_none() && is_plain && text.len() <= 64).then_some(())
}

fn check_name(name: &str) -> Result<(), String> {
    let good = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if good { Ok(()) } else { Err("expected a name of letters, digits and _, starting with a letter".into()) }
}

fn check_field(section: &str, name: &str, field: &Field) -> Result<(), String> {
    check_name(name)?;
    let reserved: &[&str] = match section {
        "telemetry" => &["timestamp", "alerts", "alert_details"],
        _ => &["timestamp", "children"],
    };
    if reserved.contains(&name) {
        return Err("is reserved; the gateway writes it".into());
    }
    if field.kind == Type::Alerts && section != "telemetry" {
        return Err("type alerts is for telemetry only".into());
    }
    if section == "telemetry" && name == "status" && (field.kind != Type::String || field.allowed.is_none()) {
        return Err("status must be a string with an enum".into());
    }
    check_enum(field.kind, field.allowed.as_ref())
}

fn check_parameter(name: &str, parameter: &Parameter) -> Result<(), String> {
    check_name(name)?;
    if parameter.kind == Type::Alerts {
        return Err("type alerts is for telemetry only".into());
    }
    let is_number = matches!(parameter.kind, Type::Integer | Type::Float);
    if (parameter.min.is_some() || parameter.max.is_some()) && !is_number {
        return Err("min and max are for numbers".into());
    }
    if let (Some(min), Some(max)) = (parameter.min, parameter.max)
        && min > max
    {
        return Err(format!("min {min} is above max {max}"));
    }
    check_enum(parameter.kind, parameter.allowed.as_ref())?;
    if let Some(default) = &parameter.default {
        parameter.check(default).map_err(|problem| format!("default: {problem}"))?;
    }
    Ok(())
}

fn check_enum(kind: Type, allowed: Option<&Enum>) -> Result<(), String> {
    let Some(allowed) = allowed else { return Ok(()) };
    if !matches!(kind, Type::Boolean | Type::String | Type::Integer | Type::Float) {
        return Err(format!("enum is not for type {}", kind.name()));
    }
    let values = allowed.values(kind);
    if values.is_empty() {
        return Err("enum: expected at least one value".into());
    }
    match values.iter().find(|value| !kind.fits(value)) {
        Some(value) => Err(format!("enum: expected values of type {}, found {value}", kind.name())),
        None => Ok(()),
    }
}
