//! The blueprints that the stand-in knows: the parent's, and one for each
//! type of child.
//!
//! Reads blueprints (`.yml`), with or without the section `driver`, and driver
//! components (`.wasm`). The schema of a parent's section `children` is not
//! public; its keys are taken as the types, and `manifest` as a file beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value as Json;

use sandgate_manifest::component::inspect;
use sandgate_manifest::{Manifest, child_type};

/// Larger files are no blueprints and no drivers.
const MAX_FILE: u64 = 256 << 20;

/// What to read.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The parent's blueprint.
    pub parent: Option<PathBuf>,
    /// Blueprints or drivers of children.
    pub children: Vec<Source>,
}

/// A child's blueprint: `[TYPE=]PATH`.
///
/// Without a type it is the driver's name with `_` for `-`, or the file's name
/// without its end. A folder stands for all `.yml` and `.wasm` files in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The child type.
    pub kind: Option<String>,
    /// The file or folder.
    pub path: PathBuf,
}

impl std::str::FromStr for Source {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let kind = |kind: &str| !kind.is_empty() && kind.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
        Ok(match text.split_once('=') {
            Some((name, path)) if kind(name) => Source { kind: Some(name.to_owned()), path: path.into() },
            _ => Source { kind: None, path: text.into() },
        })
    }
}

/// The blueprints.
#[derive(Debug, Default)]
pub struct Blueprints {
    parent: Option<Manifest>,
    /// The types that the parent's blueprint names.
    types: Option<BTreeSet<String>>,
    children: BTreeMap<String, Manifest>,
}

impl Blueprints {
    /// Reads all sources; errors name the file and the place in it.
    pub fn load(sources: &Sources) -> Result<Blueprints> {
        let mut blueprints = Blueprints::default();
        if let Some(path) = &sources.parent {
            let text = read_text(path)?;
            let reading = || format!("reading blueprint {}", path.display());
            let declared = children(&text).with_context(reading)?;
            blueprints.parent = Some(parse(&text).with_context(reading)?);
            let folder = path.parent().unwrap_or(Path::new(""));
            for (kind, file) in &declared {
                if let Some(file) = file.as_ref().map(|file| folder.join(file)).filter(|file| file.is_file()) {
                    blueprints.add(Some(kind), &file)?;
                }
            }
            blueprints.types = Some(declared.into_keys().collect());
        }
        for source in &sources.children {
            for file in files(&source.path)? {
                blueprints.add(source.kind.as_deref(), &file)?;
            }
        }
        Ok(blueprints)
    }

    /// Makes blueprints of parsed ones.
    #[cfg(test)]
    pub fn of(parent: Option<Manifest>, types: Option<BTreeSet<String>>, children: &[(&str, &Manifest)]) -> Blueprints {
        let children = children.iter().map(|(kind, manifest)| ((*kind).to_owned(), (*manifest).clone())).collect();
        Blueprints { parent, types, children }
    }

    /// The parent's blueprint.
    pub fn parent(&self) -> Option<&Manifest> {
        self.parent.as_ref()
    }

    /// The types that a parent may announce; none when any is fine.
    pub fn types(&self) -> Option<&BTreeSet<String>> {
        self.types.as_ref()
    }

    /// The blueprint of a child type.
    pub fn child(&self, kind: &str) -> Option<&Manifest> {
        self.children.get(kind)
    }

    /// The child types with a blueprint.
    pub fn known(&self) -> impl Iterator<Item = &str> {
        self.children.keys().map(String::as_str)
    }

    fn add(&mut self, kind: Option<&str>, path: &Path) -> Result<()> {
        let reading = || format!("reading blueprint {}", path.display());
        let is_driver = path.extension().is_some_and(|end| end == "wasm");
        let (manifest, name) = if is_driver {
            let bytes = read(path)?;
            let manifest = inspect(&bytes).and_then(|driver| driver.manifest()).with_context(reading)?;
            let name = manifest.child_type();
            (manifest, name)
        } else {
            let text = read_text(path)?;
            let manifest = parse(&text).with_context(reading)?;
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            let name = if manifest.driver.name == NAMELESS { &stem } else { manifest.driver.name.as_str() };
            let name = child_type(name);
            (manifest, name)
        };
        let kind = kind.map_or(name, str::to_owned);
        match self.children.insert(kind.clone(), manifest) {
            Some(before) if self.children.get(&kind).is_some_and(|now| now.blueprint != before.blueprint) => {
                bail!("{}: another blueprint for the child type {kind:?}; name one with TYPE=FILE", path.display())
            }
            _ => Ok(()),
        }
    }
}

/// The driver's name in a blueprint that has none.
const NAMELESS: &str = "nameless";

/// Parses a blueprint. The sections `children` and `driver` belong to others:
/// the first is left out, line by line, so that places in errors stay right.
fn parse(text: &str) -> Result<Manifest> {
    let mut clean = String::with_capacity(text.len() + 64);
    let (mut inside, mut has_driver) = (false, false);
    for line in text.lines() {
        if line.starts_with(|c: char| !c.is_whitespace() && c != '#') {
            let key = line.split(':').next().map(|key| key.trim_matches(['"', '\'']));
            inside = key == Some("children");
            has_driver |= key == Some("driver");
        }
        if !inside {
            clean.push_str(line);
        }
        clean.push('\n');
    }
    if !has_driver {
        clean.push_str(&format!("driver:\n  name: {NAMELESS}\n  version: 0.0.0\n"));
    }
    Manifest::parse(&clean).map_err(|error| anyhow!("{error}"))
}

/// The section `children` of a parent's blueprint: type to file.
fn children(text: &str) -> Result<BTreeMap<String, Option<String>>> {
    let mut options = serde_saphyr::Options::default();
    options.duplicate_keys = serde_saphyr::DuplicateKeyPolicy::Error;
    let tree: Json = serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| anyhow!("{}", error.without_snippet().to_string().lines().next().unwrap_or_default()))?;
    match tree.get("children") {
        None | Some(Json::Null) => Ok(BTreeMap::new()),
        Some(Json::Object(children)) => {
            let file = |child: &Json| child.get("manifest").and_then(Json::as_str).map(str::to_owned);
            Ok(children.iter().map(|(kind, child)| (kind.clone(), file(child))).collect())
        }
        Some(_) => bail!("children: expected a mapping from child type to its blueprint"),
    }
}

/// A file, or the blueprints and drivers of a folder.
fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let reading = || format!("reading folder {}", path.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).with_context(reading)? {
        let file = entry.with_context(reading)?.path();
        if file.extension().is_some_and(|end| ["yml", "yaml", "wasm"].iter().any(|known| end == *known)) {
            files.push(file);
        }
    }
    files.sort();
    match files.is_empty() {
        true => bail!("{}: expected .yml or .wasm files in this folder", path.display()),
        false => Ok(files),
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let reading = || format!("reading {}", path.display());
    let size = std::fs::metadata(path).with_context(reading)?.len();
    if size > MAX_FILE {
        bail!("{}: expected at most {MAX_FILE} bytes, found {size}", path.display());
    }
    std::fs::read(path).with_context(reading)
}

fn read_text(path: &Path) -> Result<String> {
    String::from_utf8(read(path)?).with_context(|| format!("reading {}: expected UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHILD: &str = "blueprint_spec: device/3.0\ndisplay_name: Meter\nruntime:\n  type: embedded\n\
        telemetry:\n  power:\n    type: float\n    display_name: P\n";

    #[test]
    fn a_parent_names_its_children_and_their_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("power-meter.yml"), CHILD).unwrap();
        let parent = "blueprint_spec: device/3.0\ndisplay_name: Gateway\nchildren:\n  meter:\n    \
            display_name: Meter\n    manifest: power-meter.yml\n  lamp:\n    manifest: none.yml\nicon: router\n";
        std::fs::write(path("gateway.yml"), parent).unwrap();
        let sources = Sources { parent: Some(path("gateway.yml")), children: Vec::new() };
        let blueprints = Blueprints::load(&sources).unwrap();
        assert_eq!(blueprints.parent().unwrap().blueprint.icon.as_deref(), Some("router"));
        assert_eq!(blueprints.types().unwrap().iter().collect::<Vec<_>>(), ["lamp", "meter"]);
        assert_eq!(blueprints.known().collect::<Vec<_>>(), ["meter"]);
        assert!(blueprints.child("meter").unwrap().blueprint.telemetry.contains_key("power"));

        let children = vec![format!("lamp={}", path("power-meter.yml").display()).parse().unwrap()];
        assert_eq!(
            Blueprints::load(&Sources { parent: None, children }).unwrap().known().collect::<Vec<_>>(),
            ["lamp"]
        );
        std::fs::remove_file(path("gateway.yml")).unwrap();
        let children = vec![Source { kind: None, path: folder.path().to_owned() }];
        let blueprints = Blueprints::load(&Sources { parent: None, children }).unwrap();
        assert_eq!((blueprints.known().collect::<Vec<_>>(), blueprints.types()), (vec!["power_meter"], None));
    }

    #[test]
    fn bad_sources_are_refused_with_their_place() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text, expected) in [
            ("a.yml", Some("children: 1\nx: 2\n"), "a.yml: children: expected a mapping"),
            (
                "b.yml",
                Some("display_name: x\nchildren:\n  a: {}\n"),
                "b.yml: 1:1: blueprint_spec: expected \"device/3.0\"",
            ),
            ("c.yml", Some("a: 1\na: 2\n"), "c.yml: "),
            ("d.yml", None, "d.yml: No such file"),
        ] {
            let path = folder.path().join(name);
            if let Some(text) = text {
                std::fs::write(&path, text).unwrap();
            }
            let error = Blueprints::load(&Sources { parent: Some(path), children: Vec::new() }).unwrap_err();
            let text = format!("{error:#}");
            assert!(text.contains(expected), "{text}");
        }
        for (name, bytes, expected) in [
            ("e.wasm", &b"no component"[..], "expected a WebAssembly component"),
            ("f.yml", b"\xff", "expected UTF-8"),
            (
                "g.yml",
                b"blueprint_spec: device/3.0\ndisplay_name: x\ntelemetry:\n  1x: {type: string, display_name: x}\n",
                "g.yml: 4:3: telemetry.1x: expected a name",
            ),
        ] {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            let children = vec![Source { kind: None, path }];
            let error = Blueprints::load(&Sources { parent: None, children }).unwrap_err();
            let text = format!("{error:#}");
            assert!(text.contains(expected), "{text}");
        }
    }
}
