//! What a component is made of: its licence and its dependencies, in custom
//! sections as other tools write and read them.
//!
//! `licenses` is the component tools' own (an SPDX expression); `.dep-v0` is that
//! of cargo-auditable, which `cargo audit bin` and scanners for software bills of
//! materials know: deflated JSON.

use std::io::{Read, Write};

use anyhow::{Context, Result, ensure};
use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use wasmparser::{Parser, Payload};

use crate::text;

pub use auditable_serde::{DependencyKind, Package, Source, VersionInfo};

const LICENCES: &str = "licenses";
const DEPENDENCIES: &str = ".dep-v0";
/// A list that is larger is no list of dependencies.
const MOST: u64 = 1 << 20;

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Provenance {
    /// An SPDX expression, such as `Apache-2.0`.
    pub licence: Option<String>,
    /// The packages that it was built from.
    pub dependencies: Option<VersionInfo>,
}

impl Provenance {
    /// Reads what stands in a component, at any depth.
    pub fn read(component: &[u8]) -> Result<Provenance> {
        let mut provenance = Provenance::default();
        for payload in Parser::new(0).parse_all(component) {
            let Payload::CustomSection(section) = payload.context("reading the component")? else { continue };
            match section.name() {
                LICENCES => {
                    let text = std::str::from_utf8(section.data()).context("licenses: expected UTF-8")?;
                    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
                    let text = text::shortened(&text, 200).into_owned();
                    provenance.licence = Some(text).filter(|text| !text.is_empty());
                }
                DEPENDENCIES => provenance.dependencies = Some(dependencies(section.data())?),
                _ => {}
            }
        }
        Ok(provenance)
    }

    /// Appends it to a component; what stands there already stays.
    pub fn embed(&self, component: &mut Vec<u8>) -> Result<()> {
        let before = Provenance::read(component)?;
        if let (Some(licence), None) = (&self.licence, before.licence) {
            append(component, LICENCES, licence.as_bytes());
        }
        if let (Some(dependencies), None) = (&self.dependencies, before.dependencies) {
            let mut deflated = ZlibEncoder::new(Vec::new(), Compression::best());
            deflated.write_all(&serde_json::to_vec(dependencies).context("writing the dependencies")?)?;
            append(component, DEPENDENCIES, &deflated.finish()?);
        }
        Ok(())
    }
}

fn dependencies(deflated: &[u8]) -> Result<VersionInfo> {
    let mut text = Vec::new();
    ZlibDecoder::new(deflated).take(MOST + 1).read_to_end(&mut text).context(".dep-v0: expected deflated JSON")?;
    ensure!(text.len() as u64 <= MOST, ".dep-v0: expected at most {} MiB", MOST >> 20);
    serde_json::from_slice(&text).context(".dep-v0: expected a list of packages")
}

/// A custom section may stand at the end of a component.
fn append(component: &mut Vec<u8>, name: &str, data: &[u8]) {
    use wasm_encoder::{CustomSection, Encode, Section};
    let section = CustomSection { name: name.into(), data: data.into() };
    component.push(section.id());
    section.encode(component);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_embedded_is_read_again_and_stays_what_it_was() {
        let json = r#"{"packages":[{"name":"a","version":"1.0.0","source":"local","dependencies":[1],"root":true},
            {"name":"b","version":"2.1.0","source":"registry"}]}"#;
        let dependencies: VersionInfo = serde_json::from_str(json).unwrap();
        let mut component = b"\0asm\x0d\0\x01\0".to_vec();
        assert!(Provenance::read(&component).unwrap().licence.is_none());
        let first = Provenance { licence: Some("MIT".into()), dependencies: Some(dependencies) };
        first.embed(&mut component).unwrap();
        let other = Provenance { licence: Some("Apache-2.0".into()), dependencies: None };
        other.embed(&mut component).unwrap();
        let found = Provenance::read(&component).unwrap();
        assert_eq!(found.licence.as_deref(), Some("MIT"));
        let names: Vec<String> = found.dependencies.unwrap().packages.into_iter().map(|package| package.name).collect();
        assert_eq!(names, ["a", "b"]);
    }

    #[test]
    fn rubbish_is_an_error_that_names_the_section() {
        for (name, data, expected) in [
            (".dep-v0", &b"{}"[..], ".dep-v0: expected deflated JSON"),
            ("licenses", b"\xff", "licenses: expected UTF-8"),
        ] {
            let mut component = b"\0asm\x0d\0\x01\0".to_vec();
            append(&mut component, name, data);
            assert_eq!(Provenance::read(&component).unwrap_err().to_string(), expected);
        }
        // What would take a gigabyte when it is inflated.
        let mut deflated = ZlibEncoder::new(Vec::new(), Compression::fast());
        deflated.write_all(&vec![b' '; 64 << 20]).unwrap();
        let mut component = b"\0asm\x0d\0\x01\0".to_vec();
        append(&mut component, ".dep-v0", &deflated.finish().unwrap());
        assert_eq!(Provenance::read(&component).unwrap_err().to_string(), ".dep-v0: expected at most 1 MiB");
    }
}
