//! The contract as files, for toolchains that read it.

use std::path::Path;

use anyhow::{Context, Result};

/// Each file of `wit/`.
pub const FILES: &[(&str, &str)] = &[
    ("alerts.wit", include_str!("../../../../wit/alerts.wit")),
    ("blobs.wit", include_str!("../../../../wit/blobs.wit")),
    ("budget.wit", include_str!("../../../../wit/budget.wit")),
    ("can.wit", include_str!("../../../../wit/can.wit")),
    ("command-log.wit", include_str!("../../../../wit/command-log.wit")),
    ("device-driver.wit", include_str!("../../../../wit/device-driver.wit")),
    ("files.wit", include_str!("../../../../wit/files.wit")),
    ("firmware.wit", include_str!("../../../../wit/firmware.wit")),
    ("http.wit", include_str!("../../../../wit/http.wit")),
    ("io.wit", include_str!("../../../../wit/io.wit")),
    ("logging.wit", include_str!("../../../../wit/logging.wit")),
    ("metadata.wit", include_str!("../../../../wit/metadata.wit")),
    ("migration.wit", include_str!("../../../../wit/migration.wit")),
    ("modbus.wit", include_str!("../../../../wit/modbus.wit")),
    ("net.wit", include_str!("../../../../wit/net.wit")),
    ("properties.wit", include_str!("../../../../wit/properties.wit")),
    ("serial.wit", include_str!("../../../../wit/serial.wit")),
    ("storage.wit", include_str!("../../../../wit/storage.wit")),
    ("telemetry.wit", include_str!("../../../../wit/telemetry.wit")),
    ("timers.wit", include_str!("../../../../wit/timers.wit")),
    ("types.wit", include_str!("../../../../wit/types.wit")),
    ("world.wit", include_str!("../../../../wit/world.wit")),
];

/// Writes them into a folder.
pub fn write(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    for (name, text) in FILES {
        std::fs::write(folder.join(name), text).with_context(|| format!("writing {name}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_contract_is_there() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../wit");
        for entry in std::fs::read_dir(root).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(!name.ends_with(".wit") || FILES.iter().any(|(file, _)| *file == name), "{name} is missing");
        }
    }
}
