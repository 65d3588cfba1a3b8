//! A blueprint's manifest as a driver's: what differs between Enapter's
//! specifications and this gateway, changed and told.

use std::collections::BTreeSet;

use anyhow::{Result, anyhow};
use serde_json::{Map, Value as Json, json};

use super::scan::Scan;

type Tree = Map<String, Json>;

/// Keys of `device/1.0` that have no place any more.
const GONE: [&str; 3] = ["communication_module", "vendor", "verification_level"];
/// What each kind of entry may have; other keys mean nothing to anybody.
const FIELD: &[&str] = &[
    "type",
    "display_name",
    "description",
    "enum",
    "unit",
    "auto_scale",
    "allow_unit_c",
    "allow_unit_f",
    "implements",
    "aliases",
    "access_level",
    "json_schema",
];
const ALERT: &[&str] = &[
    "severity",
    "display_name",
    "description",
    "code",
    "grace_period",
    "troubleshooting",
    "telemetry",
    "components",
    "conditions",
];
const COMMAND: &[&str] = &[
    "display_name",
    "description",
    "group",
    "arguments",
    "response",
    "ui",
    "confirmation",
    "access_level",
    "read_access_level",
    "populate_values_command",
    "implements",
    "aliases",
];
const PARAMETER: &[&str] = &[
    "type",
    "display_name",
    "description",
    "required",
    "min",
    "max",
    "enum",
    "format",
    "json_schema",
    "sensitive",
    "default",
];

/// A script of a blueprint may wait for many registers of a device that is silent.
const CALL_LIMIT: &str = "30s";
const CPU_LIMIT: &str = "2s";

/// Where the first script is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Script {
    /// A file.
    File(String),
    /// `main.lua` in a folder.
    Folder(String),
}

/// What a blueprint's own manifest says of its scripts.
#[derive(Debug)]
pub struct Source {
    is_first_generation: bool,
    pub script: Script,
    configuration: Tree,
}

/// The part of a manifest that names scripts, if there is one.
pub fn language(tree: &Json) -> Option<&Json> {
    let of_first = tree.get("communication_module");
    let runtime = tree.get("runtime").filter(|runtime| runtime.get("type").is_some_and(|kind| kind == "lua"));
    of_first.or(runtime)
}

impl Source {
    /// Reads it; an error says what was expected.
    pub fn of(tree: &Tree) -> Result<Source, String> {
        let spec = tree.get("blueprint_spec").and_then(Json::as_str).unwrap_or("nothing");
        let is_first_generation = match spec {
            "device/1.0" => true,
            "device/3.0" => false,
            other => return Err(format!("blueprint_spec: expected device/1.0 or device/3.0, found {other}")),
        };
        let configuration = tree.get("configuration").and_then(Json::as_object).cloned().unwrap_or_default();
        let at = |keys: &[&str]| {
            let mut value = tree.get(*keys.first()?)?;
            for key in keys.get(1..)? {
                value = value.get(key)?;
            }
            value.as_str().map(str::to_owned)
        };
        let (file, folder, expected) = if is_first_generation {
            let own = "communication_module";
            let file = at(&[own, "lua_file"]).or_else(|| at(&[own, "lua", "file"]));
            (file, at(&[own, "lua", "dir"]), "communication_module: expected lua_file, or lua with file or dir")
        } else {
            let of = |key| at(&["runtime", "options", key]);
            (of("file"), of("dir"), "runtime: expected type lua, and options with file or dir")
        };
        let script = file.map(Script::File).or(folder.map(Script::Folder)).ok_or(expected)?;
        Ok(Source { is_first_generation, script, configuration })
    }

    /// The generation of the API.
    pub fn api(&self) -> &'static str {
        if self.is_first_generation { "v1" } else { "v3" }
    }

    /// Parameters of a group that have to be set.
    pub fn required(&self, group: &str) -> BTreeSet<String> {
        let parameters = self.configuration.get(group).and_then(|group| group.get("parameters")?.as_object());
        let is_required = |parameter: &Json| parameter.get("required") == Some(&Json::Bool(true));
        let names = parameters.into_iter().flatten().filter(|(_, parameter)| is_required(parameter));
        names.map(|(name, _)| name.clone()).collect()
    }
}

/// The manifest of the driver, and what was changed.
pub fn convert(mut tree: Tree, source: &Source, scan: &Scan, (name, own): (&str, &Tree)) -> (Tree, Vec<String>) {
    let mut changes = Vec::new();
    if source.is_first_generation {
        changes.push("blueprint_spec: device/1.0 became device/3.0".to_owned());
        tree.insert("blueprint_spec".into(), "device/3.0".into());
    }
    for key in GONE {
        if tree.remove(key).is_some() {
            changes.push(format!("{key}: left out, device/3.0 has it no longer"));
        }
    }
    tree.retain(|key, _| !key.starts_with('.'));
    tree.insert("runtime".into(), json!({ "type": "embedded" }));
    changes.push("runtime: embedded, as the gateway runs the scripts and not the cloud's module".into());
    let mut mend = Mend { changes: &mut changes };
    for section in ["telemetry", "properties"] {
        mend.entries(&mut tree, section, |mend, place, entry| {
            mend.field(place, entry);
            mend.texts(place, entry, scan);
        });
    }
    mend.entries(&mut tree, "alerts", |mend, place, entry| mend.only(place, entry, ALERT));
    mend.entries(&mut tree, "commands", |mend, place, entry| mend.command(place, entry));
    mend.entries(&mut tree, "configuration", |mend, place, entry| {
        mend.entries_of(entry, (place, "parameters"), |mend, place, entry| mend.parameter(place, entry));
    });
    tree.insert("driver".into(), Json::Object(driver(name, scan, own)));
    (tree, changes)
}

/// The section that this gateway adds.
fn driver(name: &str, scan: &Scan, own: &Tree) -> Tree {
    let mut requests = Tree::new();
    let lines = scan.lines();
    if !lines.is_empty() {
        requests.insert("modbus".into(), json!(lines));
    }
    let ports = scan.serial_ports();
    if !ports.is_empty() {
        requests.insert("serial".into(), json!(ports));
    }
    if let Some(bus) = scan.can_bus() {
        requests.insert("can".into(), json!([bus]));
    }
    if scan.wants_io() {
        requests.insert("io".into(), json!(["*"]));
    }
    if scan.wants_tcp() {
        requests.insert("tcp".into(), json!(["*:*"]));
    }
    if scan.wants_http() {
        requests.insert("http".into(), json!(["*:*"]));
    }
    if scan.is_of_either_way() {
        requests.insert("optional".into(), json!(["modbus", "tcp"]));
    }
    let mut driver = Tree::new();
    driver.insert("name".into(), driver_name(name).into());
    driver.insert("version".into(), "1.0.0".into());
    driver.insert("requests".into(), Json::Object(requests));
    driver.insert("limits".into(), json!({ "call": CALL_LIMIT, "cpu": CPU_LIMIT }));
    driver.extend(own.clone());
    driver
}

/// A folder's name in the form of a driver's.
fn driver_name(name: &str) -> String {
    let plain: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { ' ' }).collect();
    let joined = plain.split_whitespace().collect::<Vec<_>>().join("-");
    if joined.starts_with(|c: char| c.is_ascii_alphabetic()) { joined } else { format!("blueprint-{joined}") }
}

/// The text of the manifest.
pub fn write(tree: &Tree) -> Result<String> {
    serde_saphyr::to_string(tree).map_err(|error| anyhow!("writing the manifest: {error}"))
}

/// Changes entries, and tells of it.
struct Mend<'a> {
    changes: &'a mut Vec<String>,
}

impl Mend<'_> {
    fn entries(&mut self, tree: &mut Tree, section: &str, change: impl Fn(&mut Mend<'_>, &str, &mut Tree)) {
        let Some(Json::Object(entries)) = tree.get_mut(section) else { return };
        for (name, entry) in entries {
            if let Json::Object(entry) = entry {
                change(self, &format!("{section}.{name}"), entry);
            }
        }
    }

    fn entries_of(
        &mut self,
        tree: &mut Tree,
        (place, key): (&str, &str),
        change: impl Fn(&mut Mend<'_>, &str, &mut Tree),
    ) {
        let Some(Json::Object(entries)) = tree.get_mut(key) else { return };
        for (name, entry) in entries {
            if let Json::Object(entry) = entry {
                change(self, &format!("{place}.{key}.{name}"), entry);
            }
        }
    }

    /// Leaves out keys that nobody knows.
    fn only(&mut self, place: &str, entry: &mut Tree, known: &[&str]) {
        entry.retain(|key, _| {
            let is_known = known.contains(&key.as_str());
            if !is_known && !key.starts_with('.') {
                self.changes.push(format!("{place}: {key} left out, device/3.0 does not have it there"));
            }
            is_known
        });
    }

    fn field(&mut self, place: &str, entry: &mut Tree) {
        self.only(place, entry, FIELD);
        self.colors(place, entry);
    }

    /// A text that the scripts send belongs to the enum: a gateway sends no other.
    fn texts(&mut self, place: &str, entry: &mut Tree, scan: &Scan) {
        if entry.get("type").and_then(Json::as_str) != Some("string") {
            return;
        }
        let name = place.rsplit('.').next().unwrap_or_default();
        for text in scan.texts_of(name) {
            let is_new = match entry.get_mut("enum") {
                Some(Json::Array(items)) if !items.iter().any(|item| item == text) => {
                    items.push(text.as_str().into());
                    true
                }
                Some(Json::Object(items)) if !items.contains_key(text) => {
                    items.insert(text.clone(), json!({ "display_name": text }));
                    true
                }
                _ => false,
            };
            if is_new {
                self.changes.push(format!("{place}.enum: {text:?} added, which the scripts send"));
            }
        }
    }

    /// Colors have names in `device/3.0`.
    fn colors(&mut self, place: &str, entry: &mut Tree) {
        let Some(Json::Object(items)) = entry.get_mut("enum") else { return };
        for (name, item) in items {
            let Json::Object(item) = item else { continue };
            if item.get("color").and_then(Json::as_str).is_some_and(|color| color.starts_with('#')) {
                item.remove("color");
                self.changes.push(format!("{place}.enum.{name}: color left out, device/3.0 has names for colors"));
            }
        }
    }

    fn command(&mut self, place: &str, entry: &mut Tree) {
        if let Some(quick) = entry.remove("quick_access") {
            self.changes.push(format!("{place}: quick_access moved to ui"));
            let ui = entry.entry("ui").or_insert_with(|| json!({}));
            if let Json::Object(ui) = ui {
                ui.insert("quick_access".into(), quick);
            }
        }
        self.only(place, entry, COMMAND);
        self.entries_of(entry, (place, "arguments"), |mend, place, entry| mend.parameter(place, entry));
    }

    fn parameter(&mut self, place: &str, entry: &mut Tree) {
        self.only(place, entry, PARAMETER);
        self.colors(place, entry);
        let kind = entry.get("type").and_then(Json::as_str).unwrap_or_default().to_owned();
        let Some(default) = entry.get_mut("default") else { return };
        let meant = match (kind.as_str(), &*default) {
            ("boolean", Json::String(text)) => text.parse().ok().map(Json::Bool),
            ("integer" | "float", Json::String(text)) => text.parse().ok().map(Json::Number),
            ("string", Json::Number(number)) => Some(number.to_string().into()),
            ("string", Json::Bool(value)) => Some(value.to_string().into()),
            _ => None,
        };
        if let Some(meant) = meant {
            self.changes.push(format!("{place}: default {default} became {meant}, as the type says"));
            *default = meant;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_give_names_of_drivers() {
        for (folder, name) in [
            ("schneider_electric_pm2100_v3", "schneider-electric-pm2100-v3"),
            ("2N", "blueprint-2n"),
            ("a--B.c", "a-b-c"),
        ] {
            assert_eq!(driver_name(folder), name);
        }
    }

    #[test]
    fn what_device_3_does_not_know_is_changed_and_told() {
        let tree = json!({
            "blueprint_spec": "device/1.0", "display_name": "x", ".cloud": {},
            "communication_module": { "product": "ENP-VIRTUAL", "lua": { "dir": "src" } },
            "telemetry": { "status": { "type": "string", "display_name": "S", "enum": { "on": { "color": "#FF0000" } } } },
            "commands": { "go": {
                "display_name": "Go", "group": "g", "quick_access": true, "min": 1,
                "arguments": { "far": { "type": "boolean", "display_name": "F", "unit": "m", "default": "false" } }
            } },
        });
        let tree = tree.as_object().unwrap().clone();
        let source = Source::of(&tree).unwrap();
        assert_eq!(source.script, Script::Folder("src".into()));
        let (tree, changes) = convert(tree, &source, &Scan::default(), ("x", &Tree::new()));
        assert_eq!(tree["commands"]["go"]["ui"], json!({ "quick_access": true }));
        assert_eq!(tree["commands"]["go"]["arguments"]["far"]["default"], json!(false));
        assert_eq!(tree["telemetry"]["status"]["enum"]["on"], json!({}));
        assert!(!tree.contains_key(".cloud"));
        for place in ["commands.go: min", "arguments.far: unit", "arguments.far: default", "status.enum.on: color"] {
            assert!(changes.iter().any(|change| change.contains(place)), "{place}: {changes:?}");
        }
    }
}
