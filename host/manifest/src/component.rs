//! Looks into a component without compiling it: manifest, files, imports,
//! exports, and whether it would cost the host more than a driver may.

use std::borrow::Cow;
use std::ops::Range;

use anyhow::{Context, Result, anyhow, bail, ensure};
use wasmparser::{BinaryReader, Encoding, Parser, Payload};

use crate::Manifest;
use crate::files::{FILES_SECTION, Files};
use crate::text;

/// The custom section that holds `manifest.yml`.
pub const MANIFEST_SECTION: &str = "sandgate:manifest";

/// How the custom sections begin that are no part of the code.
const OWN_SECTIONS: &str = "sandgate:";

/// The version of the contract `sandgate:driver` that this gateway speaks. It
/// takes drivers of all versions with the same major and minor number.
pub const CONTRACT: &str = "0.1.3";

/// An interface of the contract, as components name it.
pub fn interface(name: &str) -> String {
    format!("sandgate:driver/{name}@{CONTRACT}")
}

/// The interface that makes a component a driver, without its version.
const DRIVER_INTERFACE: &str = "sandgate:driver/device-driver@";

/// Names that a component may import or export. The contract and WASI have
/// about fifty; each name stays in memory for as long as the driver.
const MAX_NAMES: usize = 500;
const MAX_NAME: usize = 256;
/// The gateway itself reads it, when a driver traps.
const MAX_DEBUG_INFO: usize = 16 << 20;
/// Things that a component may declare, over all its parts: types, functions,
/// aliases, names. Python has about 40,000 with all its libraries.
const MAX_ITEMS: u64 = 1_000_000;
/// What one core instance may take in the host beside its memories and tables.
const MAX_INSTANCE: u64 = 1 << 20;
/// What all core instances of a component may.
const MAX_INSTANCES: u64 = 8 << 20;
/// The host's own costs of an instance, by what its module declares.
const GLOBAL: u64 = 16;
const FUNCTION: u64 = 32;

/// What a component says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// The text of the embedded manifest.
    pub manifest: Option<String>,
    /// What travels in it beside the code.
    pub files: Files,
    /// Names of imported interfaces, with versions.
    pub imports: Vec<String>,
    /// Names of exported interfaces, with versions.
    pub exports: Vec<String>,
    /// The version of `sandgate:driver` that it implements.
    pub wit_version: String,
    /// How many core instances it may make: the larger one is in the host, the fewer.
    pub max_instances: usize,
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

/// Looks at a component: at the outermost level for its names, at all levels
/// for what it costs.
///
/// Errors say in which way the bytes are no driver.
pub fn inspect(bytes: &[u8]) -> Result<Inspection> {
    if bytes.is_empty() {
        bail!("expected a WebAssembly component, found an empty file");
    }
    if !bytes.starts_with(b"\0asm") {
        bail!("expected a WebAssembly component, found something else (no \\0asm at its start)");
    }
    let (mut manifest, mut files) = (None, Files::default());
    let (mut imports, mut exports) = (Vec::new(), Vec::new());
    let mut cost = Cost::default();
    let mut depth = 0_u32;
    for payload in Parser::new(0).parse_all(bytes) {
        let payload = payload.context("expected a whole WebAssembly component; it is damaged or cut off")?;
        cost.add(&payload)?;
        match payload {
            Payload::Version { encoding: Encoding::Module, .. } if depth == 0 => {
                bail!("expected a WebAssembly component, found a core module; build for wasm32-wasip2");
            }
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            // Rust's linker leaves the section in the module, other tools put it outside.
            Payload::CustomSection(section) if section.name() == MANIFEST_SECTION => {
                let text = std::str::from_utf8(section.data()).context("manifest.yml: expected UTF-8")?;
                manifest = Some(text);
            }
            Payload::CustomSection(section) if depth == 0 && section.name() == FILES_SECTION => {
                files = Files::read(section.data())?;
            }
            Payload::ComponentImportSection(section) if depth == 0 => {
                for import in section {
                    keep(&mut imports, import.context("reading the imports")?.name.name, "imports")?;
                }
            }
            Payload::ComponentExportSection(section) if depth == 0 => {
                for export in section {
                    keep(&mut exports, export.context("reading the exports")?.name.name, "exports")?;
                }
            }
            _ => {}
        }
    }
    let Some(version) = exports.iter().find_map(|name| name.strip_prefix(DRIVER_INTERFACE)) else {
        let found = text::list(&exports);
        bail!("not a Sandgate driver: expected the export {DRIVER_INTERFACE}{CONTRACT}, found {found}");
    };
    let compatible = CONTRACT.rsplit_once('.').map_or(CONTRACT, |(compatible, _)| compatible);
    if version.rsplit_once('.').is_none_or(|(own, _)| own != compatible) {
        bail!("built for sandgate:driver {version}; this gateway runs {compatible}.x");
    }
    Ok(Inspection {
        manifest: manifest.map(str::to_owned),
        files,
        wit_version: version.to_owned(),
        imports,
        exports,
        max_instances: cost.max_instances(),
    })
}

/// Keeps a name of the outermost level.
fn keep(names: &mut Vec<String>, name: &str, what: &str) -> Result<()> {
    ensure!(names.len() < MAX_NAMES, "expected at most {MAX_NAMES} {what}, found more");
    ensure!(
        name.len() <= MAX_NAME,
        "{what}: expected names of at most {MAX_NAME} bytes, found {}",
        text::shortened(name, 60)
    );
    names.push(name.to_owned());
    Ok(())
}

/// What a component makes the host keep, beside its code and its memories.
#[derive(Debug, Default)]
struct Cost {
    items: u64,
    /// Of the core module that is being read.
    module: u64,
    largest: u64,
    debug_info: usize,
}

impl Cost {
    fn add(&mut self, payload: &Payload<'_>) -> Result<()> {
        let count = match payload {
            Payload::Version { encoding: Encoding::Module, .. } => {
                self.module = 0;
                0
            }
            Payload::TypeSection(section) => section.count(),
            Payload::ImportSection(section) => self.declares(section.count(), FUNCTION),
            Payload::FunctionSection(section) => self.declares(section.count(), FUNCTION),
            Payload::GlobalSection(section) => self.declares(section.count(), GLOBAL),
            Payload::ExportSection(section) => section.count(),
            Payload::ElementSection(section) => section.count(),
            Payload::InstanceSection(section) => section.count(),
            Payload::CoreTypeSection(section) => section.count(),
            Payload::ComponentInstanceSection(section) => section.count(),
            Payload::ComponentAliasSection(section) => section.count(),
            Payload::ComponentTypeSection(section) => section.count(),
            Payload::ComponentCanonicalSection(section) => section.count(),
            Payload::ComponentImportSection(section) => section.count(),
            Payload::ComponentExportSection(section) => section.count(),
            Payload::CustomSection(section) if section.name().starts_with(".debug_") => {
                self.debug_info += section.data().len();
                0
            }
            _ => 0,
        };
        ensure!(
            self.debug_info <= MAX_DEBUG_INFO,
            "expected at most {} MiB of debug information, found more; build without it",
            MAX_DEBUG_INFO >> 20
        );
        self.items += u64::from(count);
        ensure!(self.items <= MAX_ITEMS, "expected at most {MAX_ITEMS} types, functions and names, found more");
        ensure!(
            self.module <= MAX_INSTANCE,
            "a core module: expected at most {} KiB for its globals and functions, found more",
            MAX_INSTANCE >> 10
        );
        self.largest = self.largest.max(self.module);
        Ok(())
    }

    fn declares(&mut self, count: u32, each: u64) -> u32 {
        self.module += u64::from(count) * each;
        count
    }

    fn max_instances(&self) -> usize {
        let fit = MAX_INSTANCES / self.largest.max(1);
        usize::try_from(fit.clamp(8, 100)).unwrap_or(8)
    }
}

/// Appends or replaces the manifest section on the outermost level.
pub fn embed_manifest(component: &[u8], manifest: &str) -> Result<Vec<u8>> {
    Ok(with_section(component, MANIFEST_SECTION, manifest.as_bytes()))
}

/// Appends or replaces the files of a driver.
pub fn embed_files(component: &[u8], files: &Files) -> Vec<u8> {
    with_section(component, FILES_SECTION, &files.section())
}

fn with_section(component: &[u8], name: &str, data: &[u8]) -> Vec<u8> {
    use wasm_encoder::{CustomSection, Section};
    let mut result = Vec::with_capacity(component.len() + data.len() + 32);
    result.extend_from_slice(component);
    let section = CustomSection { name: name.into(), data: data.into() };
    // A custom section may stand at the end of a component; the last one counts.
    result.push(section.id());
    wasm_encoder::Encode::encode(&section, &mut result);
    result
}

/// A component without the manifest and the files that were added to it: what
/// drivers of one runtime have in common. Damaged bytes stay what they are.
pub fn code(component: &[u8]) -> Cow<'_, [u8]> {
    const HEADER: usize = 8;
    let mut reader = BinaryReader::new(component.get(HEADER..).unwrap_or_default(), HEADER);
    // What is kept: mostly one piece, as they were added at the end.
    let mut kept: Vec<Range<usize>> = std::iter::once(0..HEADER.min(component.len())).collect();
    while !reader.eof() {
        let begin = reader.original_position();
        let is_kept = section_is_kept(&mut reader);
        let end = if is_kept.is_ok() { reader.original_position() } else { component.len() };
        if is_kept.unwrap_or(true) {
            match kept.last_mut() {
                Some(last) if last.end == begin => last.end = end,
                _ => kept.push(begin..end),
            }
        }
        if end == component.len() {
            break;
        }
    }
    let mut pieces = kept.into_iter().map(|piece| component.get(piece).unwrap_or_default());
    match (pieces.next(), pieces.next()) {
        (Some(only), None) => Cow::Borrowed(only),
        (first, second) => {
            let all = first.into_iter().chain(second).chain(pieces);
            Cow::Owned(all.collect::<Vec<_>>().concat())
        }
    }
}

/// Reads one section; says whether it is one of the code.
fn section_is_kept(reader: &mut BinaryReader<'_>) -> Result<bool> {
    const CUSTOM: u8 = 0;
    let (id, length) = (reader.read_u8()?, usize::try_from(reader.read_var_u32()?)?);
    let content = reader.read_bytes(length)?;
    Ok(id != CUSTOM || !BinaryReader::new(content, 0).read_string()?.starts_with(OWN_SECTIONS))
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
                "not a Sandgate driver: expected the export sandgate:driver/device-driver@0.1.3, found nothing",
            ),
        ] {
            assert_eq!(inspect(bytes).unwrap_err().to_string(), expected);
        }
    }

    /// A component with this core module in it.
    fn around(module: &wasm_encoder::Module) -> Vec<u8> {
        use wasm_encoder::Encode;
        let mut component = EMPTY_COMPONENT.to_vec();
        component.push(1);
        module.as_slice().encode(&mut component);
        component
    }

    #[test]
    fn what_would_cost_the_host_memory_is_counted_before_it_is_compiled() {
        use wasm_encoder::{ConstExpr, FunctionSection, GlobalSection, GlobalType, Module, TypeSection, ValType};
        let mut globals = GlobalSection::new();
        let kind = GlobalType { val_type: ValType::I64, mutable: true, shared: false };
        for _ in 0..900_000 {
            globals.global(kind, &ConstExpr::i64_const(0));
        }
        let mut types = TypeSection::new();
        (0..1_100_000).for_each(|_| types.ty().function([], []));
        let (mut one_type, mut functions) = (TypeSection::new(), FunctionSection::new());
        one_type.ty().function([], []);
        for _ in 0..50_000 {
            functions.function(0);
        }
        let mut modules = [Module::new(), Module::new(), Module::new()];
        modules[0].section(&globals);
        modules[1].section(&types);
        modules[2].section(&one_type).section(&functions);
        let expected = [
            "a core module: expected at most 1024 KiB for its globals and functions, found more",
            "expected at most 1000000 types, functions and names, found more",
            "a core module: expected at most 1024 KiB for its globals and functions, found more",
        ];
        for (module, expected) in modules.iter().zip(expected) {
            assert_eq!(inspect(&around(module)).unwrap_err().to_string(), expected);
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

    #[test]
    fn drivers_of_one_runtime_have_the_same_code() {
        let runtime = with_section(EMPTY_COMPONENT, "name", b"kept");
        let mut files = Files::default();
        files.insert("main.lua".into(), b"return 1".to_vec()).unwrap();
        let driver = embed_files(&embed_manifest(&runtime, "display_name: x").unwrap(), &files);
        assert!(matches!(code(&driver), Cow::Borrowed(code) if code == runtime));
        // Another tool may add something behind them.
        let behind = with_section(&driver, "producers", b"x");
        assert_eq!(code(&behind), with_section(&runtime, "producers", b"x"));
        // What is damaged is told by whoever reads all of it.
        for end in 0..driver.len() {
            assert!(code(&driver[..end]).len() <= end);
        }
        assert_eq!(*code(&driver[..runtime.len() + 3]), driver[..runtime.len() + 3]);
    }
}
