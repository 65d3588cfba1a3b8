//! Folders that are drivers without a program of their own: register maps, and
//! Enapter's Lua blueprints with a manifest that is made from theirs. A runtime
//! that goes with the gateway follows their files.
//!
//! A blueprint is a folder, or a zip of one, with `manifest.yml` of the
//! specification `device/1.0` or `device/3.0` and its scripts, as Enapter
//! publishes them. `sandgate.yml` beside it may replace what is found out about
//! the section `driver:`.

mod manifest;
mod map;
mod scan;
mod sources;

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use serde_json::{Map, Value as Json, json};

use crate::manifest::component::{embed_files, embed_manifest};
use crate::manifest::files::Files;
use crate::manifest::{Manifest, Type, yaml};
use scan::Scan;
pub use sources::{Sources, files, folders, is_part};

/// The runtime; `plugins/lua/build` makes it.
const RUNTIME: &[u8] = include_bytes!("../../plugins/lua/lua-runtime.wasm");
/// What the runtime wants to know; its name among the files.
const ABOUT: &str = "blueprint.json";
const MANIFEST: &str = "manifest.yml";
/// The section of a manifest that makes it a register map.
const MAP: &str = "map";
/// What the author of a driver says beside the blueprint.
const OVERRIDES: &str = "sandgate.yml";

/// A blueprint that has become a driver.
#[derive(Debug)]
pub struct Blueprint {
    /// What the driver declares.
    pub manifest: Manifest,
    /// What was changed in the blueprint's manifest, a sentence each.
    pub changes: Vec<String>,
    /// What the scripts want and this gateway does not have, a sentence each.
    pub missing: Vec<String>,
    files: Files,
    /// What follows the files.
    runtime: &'static [u8],
}

/// Whether a folder holds a blueprint of scripts, or a register map, rather than the source of a component.
pub fn is_blueprint(folder: &Path) -> bool {
    let text = std::fs::read_to_string(folder.join(MANIFEST)).unwrap_or_default();
    yaml::read::<Json>(&text).is_ok_and(|tree| manifest::language(&tree).is_some() || tree.get(MAP).is_some())
}

impl Blueprint {
    /// Makes a driver of a folder.
    pub fn of_folder(folder: &Path) -> Result<Blueprint> {
        // `.` has a name as well.
        let whole = folder.canonicalize().with_context(|| format!("reading {}", folder.display()))?;
        let name = whole.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Blueprint::read(&name, &Sources::of_folder(&whole)?)
    }

    /// Makes a driver of a blueprint's files. The name is that of its folder.
    pub fn read(name: &str, sources: &Sources) -> Result<Blueprint> {
        let text = sources.text(MANIFEST)?.ok_or_else(|| anyhow!("expected {MANIFEST} in the blueprint"))?;
        let tree = match yaml::read::<Json>(&text).map_err(|error| anyhow!("{MANIFEST}:{error}"))? {
            Json::Object(tree) => tree,
            _ => return Err(anyhow!("{MANIFEST}:1:1: expected a mapping with blueprint_spec and display_name")),
        };
        if tree.contains_key(MAP) {
            return map::driver(&text);
        }
        let source = manifest::Source::of(&tree).map_err(|problem| anyhow!("{MANIFEST}: {problem}"))?;
        let main = sources.main(&source.script).with_context(|| MANIFEST.to_owned())?;
        let scan = Scan::of(sources, &main);
        let own = match sources.text(OVERRIDES)? {
            Some(text) => yaml::read::<Map<String, Json>>(&text).map_err(|error| anyhow!("{OVERRIDES}:{error}"))?,
            None => Map::new(),
        };
        let (converted, changes) = manifest::convert(tree, &source, &scan, (name, &own));
        let text = manifest::write(&converted)?;
        let manifest = Manifest::parse(&text).map_err(|error| anyhow!("{MANIFEST}, converted:{error}\n{text}"))?;
        let mut files = Files::default();
        for (path, bytes) in sources.scripts() {
            files.insert(path.to_owned(), bytes.to_vec())?;
        }
        let about = about(&manifest, &source, &main, &scan);
        files.insert(ABOUT.to_owned(), serde_json::to_vec_pretty(&about)?)?;
        Ok(Blueprint { manifest, changes, missing: scan.missing(), files, runtime: RUNTIME })
    }

    /// The driver as a component.
    pub fn component(&self) -> Result<Vec<u8>> {
        Ok(embed_files(&embed_manifest(self.runtime, &self.manifest.text)?, &self.files))
    }
}

/// What the runtime has to know of a blueprint.
fn about(manifest: &Manifest, source: &manifest::Source, main: &str, scan: &Scan) -> Json {
    let blueprint = &manifest.blueprint;
    let fields = blueprint.telemetry.iter().chain(&blueprint.properties);
    let types: Map<String, Json> = fields
        .filter_map(|(name, field)| match field.kind {
            Type::ArrayOfStrings | Type::Alerts => Some((name.clone(), json!("texts"))),
            Type::Json => Some((name.clone(), json!("json"))),
            _ => None,
        })
        .collect();
    let required: Map<String, Json> = blueprint
        .configuration
        .iter()
        .map(|(name, bucket)| {
            let wanted = source.required(name);
            let names: BTreeSet<&String> = bucket.parameters.keys().filter(|key| wanted.contains(*key)).collect();
            (name.clone(), json!(names))
        })
        .collect();
    json!({ "api": source.api(), "main": main, "line": scan.line(), "types": types, "required": required })
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "
blueprint_spec: device/1.0
display_name: Thermometer
vendor: somebody
communication_module:
  product: ENP-RS485
  lua_file: firmware.lua
telemetry:
  temperature: { type: float, display_name: Temperature }
  names: { type: array_of_strings, display_name: Names }
";
    const SCRIPT: &str = "
-- rs232.init(9600, 8, 'N', 1) in a comment asks for nothing
rs485.init(9600, 8, 'N', 1)
local parser = require('parser')
scheduler.add(1000, function() enapter.send_telemetry({ temperature = parser(modbus.read_holdings(1, 0, 1, 1000)) }) end)
";

    fn sources(files: &[(&str, &str)]) -> Sources {
        files.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec())).collect()
    }

    #[test]
    fn a_blueprint_of_the_first_generation_becomes_a_driver_and_says_what_was_changed() {
        let sources = sources(&[("manifest.yml", V1), ("firmware.lua", SCRIPT), ("parser.lua", "return print")]);
        let blueprint = Blueprint::read("my_Thermometer v2", &sources).unwrap();
        assert_eq!(blueprint.manifest.driver.name, "my-thermometer-v2");
        assert_eq!(blueprint.manifest.driver.requests.modbus, ["rs485"]);
        assert!(blueprint.missing.is_empty(), "{:?}", blueprint.missing);
        let changes = blueprint.changes.join("\n");
        assert!(changes.contains("vendor") && changes.contains("device/3.0"), "{changes}");
        let component = blueprint.component().unwrap();
        let inspection = crate::manifest::component::inspect(&component).unwrap();
        assert_eq!(inspection.files.names().collect::<Vec<_>>(), ["blueprint.json", "firmware.lua", "parser.lua"]);
        let about: Json = serde_json::from_slice(inspection.files.get("blueprint.json").unwrap()).unwrap();
        assert_eq!(about["api"], "v1");
        assert_eq!(about["types"], json!({ "names": "texts" }));
        assert_eq!(*crate::manifest::component::code(&component), *RUNTIME);
    }

    #[test]
    fn what_is_no_blueprint_is_refused_with_the_place() {
        let error = |files: &[(&str, &str)]| format!("{:#}", Blueprint::read("x", &sources(files)).unwrap_err());
        assert_eq!(error(&[]), "expected manifest.yml in the blueprint");
        assert!(error(&[("manifest.yml", "a: [")]).starts_with("manifest.yml:1:"));
        let text = error(&[("manifest.yml", V1)]);
        assert!(text.contains("firmware.lua"), "{text}");
        let text = error(&[("manifest.yml", "blueprint_spec: device/2.0\ndisplay_name: x\n")]);
        assert!(text.contains("device/1.0 or device/3.0") && text.contains("device/2.0"), "{text}");
    }

    #[test]
    fn what_is_required_and_nowhere_is_named() {
        let script = "local a = require 'somewhere'\nlocal b = require('json')\nanalogout.new('port://ao-1')";
        let sources = sources(&[("manifest.yml", V1), ("firmware.lua", script)]);
        let missing = Blueprint::read("x", &sources).unwrap().missing.join("\n");
        assert!(missing.contains("firmware.lua:1: require \"somewhere\""), "{missing}");
        assert!(missing.contains("analog outputs"), "{missing}");
        assert!(!missing.contains("json"), "{missing}");
    }
}
