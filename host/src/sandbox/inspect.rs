//! Looks into a component without compiling it: manifest, imports, exports.

use anyhow::{Context, Result, anyhow, bail};
use wasmparser::{Encoding, Parser, Payload};

use crate::manifest::Manifest;

/// The custom section that holds `manifest.yml`.
pub const MANIFEST_SECTION: &str = "sandgate:manifest";

/// The interface that makes a component a driver, without its version.
const DRIVER_INTERFACE: &str = "sandgate:driver/device-driver@";

/// What a component says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// The text of the embedded manifest.
    pub manifest: Option<String>,
    /// Names of imported interfaces, with versions.
    pub imports: Vec<String>,
    /// Names of exported interfaces, with versions.
    pub exports: Vec<String>,
    /// The version of `sandgate:driver` that it implements.
    pub wit_version: String,
}

impl Inspection {
    /// Parses the embedded manifest.
    pub fn manifest(&self) -> Result<Manifest> {
        let text = self.manifest.as_deref().ok_or_else(|| {
            anyhow!("the component has no embedded manifest; build it with `sandgate build`, which adds manifest.yml")
        })?;
        Manifest::parse(text).map_err(|error| anyhow!("manifest.yml:{error}"))
    }
}

/// Looks at the outermost level of a component.
///
/// Errors say in which way the bytes are no driver.
pub fn inspect(bytes: &[u8]) -> Result<Inspection> {
    if bytes.is_empty() {
        bail!("expected a WebAssembly component, found an empty file");
    }
    if !bytes.starts_with(b"\0asm") {
        bail!("expected a WebAssembly component, found something else (no \\0asm at its start)");
    }
    let mut inspection =
        Inspection { manifest: None, imports: Vec::new(), exports: Vec::new(), wit_version: String::new() };
    let mut depth = 0_u32;
    for payload in Parser::new(0).parse_all(bytes) {
        let payload = payload.context("expected a whole WebAssembly component; it is damaged or cut off")?;
        match payload {
            Payload::Version { encoding: Encoding::Module, .. } if depth == 0 => {
                bail!("expected a WebAssembly component, found a core module; build for wasm32-wasip2");
            }
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            // Rust's linker leaves the section in the module, other tools put it outside.
            Payload::CustomSection(section) if section.name() == MANIFEST_SECTION => {
                let text = std::str::from_utf8(section.data()).context("manifest.yml: expected UTF-8")?;
                inspection.manifest = Some(text.to_owned());
            }
            Payload::ComponentImportSection(imports) if depth == 0 => {
                for import in imports {
                    inspection.imports.push(import.context("reading the imports")?.name.name.to_owned());
                }
            }
            Payload::ComponentExportSection(exports) if depth == 0 => {
                for export in exports {
                    inspection.exports.push(export.context("reading the exports")?.name.name.to_owned());
                }
            }
            _ => {}
        }
    }
    let version = inspection.exports.iter().find_map(|name| name.strip_prefix(DRIVER_INTERFACE));
    match version {
        Some(version) => inspection.wit_version = version.to_owned(),
        None => {
            let exports = if inspection.exports.is_empty() { "nothing".into() } else { inspection.exports.join(", ") };
            bail!("not a Sandgate driver: expected the export {DRIVER_INTERFACE}0.1.1, found {exports}");
        }
    }
    if !matches!(inspection.wit_version.split('.').collect::<Vec<_>>().as_slice(), ["0", "1", _]) {
        bail!("built for sandgate:driver {}; this gateway runs 0.1.x", inspection.wit_version);
    }
    Ok(inspection)
}

/// Appends or replaces the manifest section on the outermost level.
pub fn embed_manifest(component: &[u8], manifest: &str) -> Result<Vec<u8>> {
    use wasm_encoder::{CustomSection, Section};
    let mut result = Vec::with_capacity(component.len() + manifest.len() + 32);
    result.extend_from_slice(component);
    let section = CustomSection { name: MANIFEST_SECTION.into(), data: manifest.as_bytes().into() };
    // A custom section may stand at the end of a component; the last one counts.
    result.push(section.id());
    wasm_encoder::Encode::encode(&section, &mut result);
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The shortest component: a header and nothing else.
    const EMPTY_COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

    #[test]
    fn what_is_no_driver_is_refused_with_the_reason() {
        for (bytes, expected) in [
            (&b""[..], "expected a WebAssembly component, found an empty file"),
            (b"hello", "expected a WebAssembly component, found something else (no \\0asm at its start)"),
            (b"\0asm\x01\0\0\0", "expected a WebAssembly component, found a core module; build for wasm32-wasip2"),
            (b"\0asm\x0d\0\x01\0\x07\xff", "expected a whole WebAssembly component; it is damaged or cut off"),
            (
                EMPTY_COMPONENT,
                "not a Sandgate driver: expected the export sandgate:driver/device-driver@0.1.1, found nothing",
            ),
        ] {
            assert_eq!(inspect(bytes).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn an_embedded_manifest_is_a_well_formed_section() {
        let component = embed_manifest(EMPTY_COMPONENT, "display_name: x").unwrap();
        let sections: Vec<_> = Parser::new(0)
            .parse_all(&component)
            .filter_map(|payload| match payload.unwrap() {
                Payload::CustomSection(section) => Some((section.name().to_owned(), section.data().to_owned())),
                _ => None,
            })
            .collect();
        assert_eq!(sections, [(MANIFEST_SECTION.to_owned(), b"display_name: x".to_vec())]);
    }
}
