//! `sandgate new`: the skeleton of a driver that builds without a network
//! address of ours: the SDK and the contract come along.

use std::path::Path;

use anyhow::{Context, Result, bail};

use sandgate::manifest::is_driver_name;

use super::Outcome;
use crate::say::say;

/// The files of a Rust driver, relative to its folder.
const FILES: &[(&str, &str)] = &[
    ("Cargo.toml", include_str!("template/Cargo.toml.txt")),
    ("manifest.yml", include_str!("template/manifest.yml")),
    ("src/lib.rs", include_str!("template/lib.rs.txt")),
    ("README.md", include_str!("template/README.md")),
    ("tests/begin.test.yml", include_str!("template/tests/begin.test.yml")),
    (".gitignore", "target/\n"),
    ("vendor/sandgate-driver/Cargo.toml", include_str!("template/vendor.toml.txt")),
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
    ("wit/alerts.wit", include_str!("../../../../../wit/alerts.wit")),
    ("wit/blobs.wit", include_str!("../../../../../wit/blobs.wit")),
    ("wit/firmware.wit", include_str!("../../../../../wit/firmware.wit")),
    ("wit/command-log.wit", include_str!("../../../../../wit/command-log.wit")),
    ("wit/device-driver.wit", include_str!("../../../../../wit/device-driver.wit")),
    ("wit/http.wit", include_str!("../../../../../wit/http.wit")),
    ("wit/logging.wit", include_str!("../../../../../wit/logging.wit")),
    ("wit/metadata.wit", include_str!("../../../../../wit/metadata.wit")),
    ("wit/migration.wit", include_str!("../../../../../wit/migration.wit")),
    ("wit/modbus.wit", include_str!("../../../../../wit/modbus.wit")),
    ("wit/net.wit", include_str!("../../../../../wit/net.wit")),
    ("wit/properties.wit", include_str!("../../../../../wit/properties.wit")),
    ("wit/storage.wit", include_str!("../../../../../wit/storage.wit")),
    ("wit/telemetry.wit", include_str!("../../../../../wit/telemetry.wit")),
    ("wit/timers.wit", include_str!("../../../../../wit/timers.wit")),
    ("wit/types.wit", include_str!("../../../../../wit/types.wit")),
    ("wit/world.wit", include_str!("../../../../../wit/world.wit")),
];

/// Writes a Rust driver into a new folder.
pub(super) fn rust(path: &Path, json: bool) -> Result<Outcome> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if !is_driver_name(&name) {
        bail!("expected a name of lower-case words joined by - such as power-meter, found {name:?}");
    }
    if path.exists() {
        bail!("{} exists already", path.display());
    }
    for (file, text) in FILES {
        let file = path.join(file);
        let write = || -> std::io::Result<()> {
            std::fs::create_dir_all(file.parent().unwrap_or(path))?;
            std::fs::write(&file, text.replace("DRIVER-NAME", &name))
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
    fn the_skeleton_has_every_file_of_the_sdk_and_the_contract() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let folders = [("sdk/rust/src", "vendor/sandgate-driver/src", ".rs"), ("wit", "wit", ".wit")];
        for (folder, target, ending) in folders {
            for entry in std::fs::read_dir(root.join(folder)).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                if !name.ends_with(ending) {
                    continue;
                }
                let wanted = format!("{target}/{name}");
                assert!(FILES.iter().any(|(file, _)| *file == wanted), "{wanted} is missing");
            }
        }
    }
}
