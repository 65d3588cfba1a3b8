//! `sandgate new`: the skeleton of a driver that builds without a network
//! address of ours: the SDK comes along, and what it is made of.

use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use sandgate::manifest::is_driver_name;

use super::Outcome;
use crate::contract;
use crate::say::say;
use crate::toolchain::{javascript, python};

/// Files by their paths in a driver's folder.
type Files = &'static [(&'static str, &'static str)];

/// A driver's files in any language.
const COMMON: Files = &[
    ("manifest.yml", include_str!("template/manifest.yml")),
    ("tests/begin.test.yml", include_str!("template/tests/begin.test.yml")),
];

/// Those of one in Python.
const PYTHON: Files = &[
    ("driver.py", include_str!("template/python/driver.py")),
    ("README.md", include_str!("template/python/README.md")),
    ("sandgate.py", python::SDK),
    (".gitignore", "__pycache__/\n*.wasm\n.sandgate-dev/\n"),
];

/// Those of one in JavaScript.
const JAVASCRIPT: Files = &[
    ("driver.js", include_str!("template/javascript/driver.js")),
    ("README.md", include_str!("template/javascript/README.md")),
    ("sandgate.ts", javascript::SDK),
    (".gitignore", "node_modules/\n*.wasm\n.sandgate-dev/\n"),
];

/// Those of one in TypeScript.
const TYPESCRIPT: Files = &[
    ("driver.ts", include_str!("template/javascript/driver.ts")),
    ("README.md", include_str!("template/javascript/README.md")),
    ("sandgate.ts", javascript::SDK),
    (".gitignore", "node_modules/\n*.wasm\n.sandgate-dev/\n"),
];

/// Those of a register map, instead of the common ones.
const MAP: Files = &[
    ("manifest.yml", include_str!("template/map/manifest.yml")),
    ("tests/begin.test.yml", include_str!("template/map/tests/begin.test.yml")),
    ("README.md", include_str!("template/map/README.md")),
    (".gitignore", "*.wasm\n.sandgate-dev/\n"),
];

/// Those of one in Rust; the contract stands beside the SDK, which reads it.
const RUST: Files = &[
    ("Cargo.toml", include_str!("template/rust/Cargo.toml.txt")),
    ("src/lib.rs", include_str!("template/rust/lib.rs.txt")),
    ("README.md", include_str!("template/rust/README.md")),
    (".gitignore", "target/\n"),
    ("vendor/sandgate-driver/Cargo.toml", include_str!("template/rust/vendor.toml.txt")),
    ("vendor/sandgate-driver/README.md", include_str!("../../../../../sdk/rust/README.md")),
    ("vendor/sandgate-driver/src/lib.rs", include_str!("../../../../../sdk/rust/src/lib.rs")),
    ("vendor/sandgate-driver/src/driver.rs", include_str!("../../../../../sdk/rust/src/driver.rs")),
    ("vendor/sandgate-driver/src/firmware.rs", include_str!("../../../../../sdk/rust/src/firmware.rs")),
    ("vendor/sandgate-driver/src/error.rs", include_str!("../../../../../sdk/rust/src/error.rs")),
    ("vendor/sandgate-driver/src/fake.rs", include_str!("../../../../../sdk/rust/src/fake.rs")),
    ("vendor/sandgate-driver/src/testing.rs", include_str!("../../../../../sdk/rust/src/testing.rs")),
    ("vendor/sandgate-driver/src/log.rs", include_str!("../../../../../sdk/rust/src/log.rs")),
    ("vendor/sandgate-driver/src/poller.rs", include_str!("../../../../../sdk/rust/src/poller.rs")),
    ("vendor/sandgate-driver/src/registers.rs", include_str!("../../../../../sdk/rust/src/registers.rs")),
    ("vendor/sandgate-driver/src/sample.rs", include_str!("../../../../../sdk/rust/src/sample.rs")),
];

/// A language in which drivers are written.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Language {
    /// With the SDK in `vendor/`; needs Rust, by rustup.
    Rust,
    /// With the SDK in `sandgate.py`; needs Python 3.9 or later with pip.
    Python,
    /// With the SDK in `sandgate.ts`; needs Node.js 20 or later with npm.
    #[value(name = "javascript")]
    JavaScript,
    /// The same, with types.
    #[value(name = "typescript")]
    TypeScript,
    /// No code: a manifest that says where each value lies. Needs nothing.
    Map,
}

impl Language {
    /// As people write it.
    fn name(self) -> &'static str {
        match self {
            Language::Rust => "Rust",
            Language::Python => "Python",
            Language::JavaScript => "JavaScript",
            Language::TypeScript => "TypeScript",
            Language::Map => "no language",
        }
    }
}

/// Writes a driver into a new folder.
pub(super) fn run(path: &Path, language: Language, json: bool) -> Result<Outcome> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if !is_driver_name(&name) {
        bail!("expected a name of lower-case words joined by - such as power-meter, found {name:?}");
    }
    if path.exists() {
        bail!("{} exists already", path.display());
    }
    let contract: Vec<(String, &str)> = match language {
        Language::Rust => contract::FILES.iter().map(|(name, text)| (format!("wit/{name}"), *text)).collect(),
        _ => Vec::new(),
    };
    let (common, own) = match language {
        Language::Rust => (COMMON, RUST),
        Language::Python => (COMMON, PYTHON),
        Language::JavaScript => (COMMON, JAVASCRIPT),
        Language::TypeScript => (COMMON, TYPESCRIPT),
        Language::Map => (&[][..], MAP),
    };
    let own = common.iter().chain(own).map(|(name, text)| ((*name).to_owned(), *text));
    for (file, text) in own.chain(contract) {
        let file = path.join(file);
        let write = || -> std::io::Result<()> {
            std::fs::create_dir_all(file.parent().unwrap_or(path))?;
            std::fs::write(&file, text.replace("DRIVER-NAME", &name).replace("LANGUAGE", language.name()))
        };
        write().with_context(|| format!("writing {}", file.display()))?;
    }
    if json {
        say!("{}", serde_json::json!({"created": path, "name": name}));
        return Ok(Outcome::Done);
    }
    say!("created {}; next: sandgate dev {0}, which builds it, runs it and tests it at each save", path.display());
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_skeleton_has_every_file_of_the_sdk() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for entry in std::fs::read_dir(root.join("sdk/rust/src")).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let wanted = format!("vendor/sandgate-driver/src/{name}");
            assert!(!name.ends_with(".rs") || RUST.iter().any(|(file, _)| *file == wanted), "{wanted} is missing");
        }
    }
}
