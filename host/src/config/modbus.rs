//! What a device may do on a Modbus line.

use std::fmt;
use std::ops::RangeInclusive;

use serde::Deserialize;
use serde::de::{self, Deserializer};
use serde_json::Value as Json;

use crate::manifest::{Manifest, Type};

/// A granted line: `"rs485"`, or `{ bus = "rs485", units = [1, "10-12"], writes = ["registers:100-110"] }`.
#[derive(Debug, Clone, PartialEq)]
pub struct ModbusGrant {
    /// The name of a bus.
    pub bus: String,
    /// What is granted there.
    pub access: ModbusAccess,
}

/// Units and writes.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModbusAccess {
    /// The units; by default the one of the device's configuration.
    pub units: Option<Vec<Units>>,
    /// What may be written; by default everything of these units.
    pub writes: Writes,
}

impl ModbusAccess {
    /// The units that are granted; none for those of the configuration.
    pub fn unit_numbers(&self) -> Option<Vec<u8>> {
        let units = self.units.as_ref()?;
        Some(units.iter().flat_map(|units| units.0.clone()).collect())
    }

    /// All writes to these units, or to those of the configuration.
    pub fn of_units(units: Option<Vec<u8>>) -> ModbusAccess {
        let units = units.map(|units| units.into_iter().map(|unit| Units(unit..=unit)).collect());
        ModbusAccess { units, writes: Writes::All }
    }
}

/// A unit or a range of units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Units(RangeInclusive<u8>);

/// What may be written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Writes {
    /// Everything.
    #[default]
    All,
    /// These registers and coils.
    Only(Vec<WriteRange>),
}

/// Registers or coils in a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteRange {
    kind: WriteKind,
    addresses: RangeInclusive<u16>,
}

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteKind {
    /// Holding registers.
    Registers,
    /// Coils.
    Coils,
}

impl fmt::Display for WriteKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WriteKind::Registers => "registers",
            WriteKind::Coils => "coils",
        })
    }
}

impl<'de> Deserialize<'de> for ModbusGrant {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected the name of a bus, or a table with bus, units and writes")]
        enum Raw {
            Name(String),
            Table {
                bus: String,
                units: Option<Vec<Json>>,
                writes: Option<Json>,
                #[serde(flatten)]
                others: std::collections::BTreeMap<String, de::IgnoredAny>,
            },
        }
        match Raw::deserialize(deserializer)? {
            Raw::Name(bus) => Ok(ModbusGrant { bus, access: ModbusAccess::default() }),
            Raw::Table { others, .. } if !others.is_empty() => {
                let name = others.keys().next().cloned().unwrap_or_default();
                Err(de::Error::custom(format!("unknown field `{name}`, expected one of `bus`, `units`, `writes`")))
            }
            Raw::Table { bus, units, writes, .. } => {
                let units = units.map(|units| units.iter().map(Units::read).collect::<Result<_, _>>()).transpose();
                let writes = writes.as_ref().map_or(Ok(Writes::All), Writes::read);
                let access = ModbusAccess {
                    units: units.map_err(de::Error::custom)?,
                    writes: writes.map_err(de::Error::custom)?,
                };
                Ok(ModbusGrant { bus, access })
            }
        }
    }
}

impl<'de> Deserialize<'de> for Units {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Units::read(&Json::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Writes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Writes::read(&Json::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl Units {
    fn read(value: &Json) -> Result<Units, String> {
        let wrong = || format!("units: expected 0 to 255, or a range such as \"10-12\", found {value}");
        let number = |text: &str| text.trim().parse::<u8>().ok();
        let range = match value {
            Json::Number(unit) => unit.as_u64().and_then(|unit| u8::try_from(unit).ok()).map(|unit| unit..=unit),
            Json::String(text) => match text.split_once('-') {
                None => number(text).map(|unit| unit..=unit),
                Some((first, last)) => number(first).zip(number(last)).map(|(first, last)| first..=last),
            },
            _ => None,
        };
        range.filter(|range| !range.is_empty()).map(Units).ok_or_else(wrong)
    }
}

impl Writes {
    fn read(value: &Json) -> Result<Writes, String> {
        let wrong = || {
            format!(
                "writes: expected true, false, or a list such as [\"registers:100-110\", \"coils:0\"], found {value}"
            )
        };
        match value {
            Json::Bool(true) => Ok(Writes::All),
            Json::Bool(false) => Ok(Writes::Only(Vec::new())),
            Json::Array(ranges) => {
                let ranges = ranges.iter().map(|range| WriteRange::read(range.as_str()?));
                ranges.collect::<Option<_>>().map(Writes::Only).ok_or_else(wrong)
            }
            _ => Err(wrong()),
        }
    }
}

impl WriteRange {
    fn read(text: &str) -> Option<WriteRange> {
        let (kind, range) = text.split_once(':')?;
        let kind = match kind.trim() {
            "registers" => WriteKind::Registers,
            "coils" => WriteKind::Coils,
            _ => return None,
        };
        let number = |text: &str| text.trim().parse::<u16>().ok();
        let addresses = match range.split_once('-') {
            None => number(range)?..=number(range)?,
            Some((first, last)) => number(first)?..=number(last)?,
        };
        (!addresses.is_empty()).then_some(WriteRange { kind, addresses })
    }

    fn covers(&self, kind: WriteKind, first: u32, last: u32) -> bool {
        self.kind == kind && u32::from(*self.addresses.start()) <= first && last <= u32::from(*self.addresses.end())
    }
}

/// The units that a device's configuration names, if its manifest has a
/// parameter for one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfiguredUnits {
    /// Whether the manifest has such a parameter.
    pub is_declared: bool,
    /// What the parameters hold.
    pub units: Vec<u8>,
}

impl ConfiguredUnits {
    /// Reads them out of a configuration, `{bucket: {parameter: value}}`.
    pub fn of(manifest: &Manifest, configuration: &str) -> ConfiguredUnits {
        let values: Json = serde_json::from_str(configuration).unwrap_or_default();
        let mut found = ConfiguredUnits::default();
        for (bucket, declared) in &manifest.blueprint.configuration {
            for (name, parameter) in &declared.parameters {
                if parameter.kind == Type::Integer && is_unit(name) {
                    found.is_declared = true;
                    let value = values.get(bucket).and_then(|bucket| bucket.get(name)).and_then(Json::as_u64);
                    found.units.extend(value.and_then(|unit| u8::try_from(unit).ok()));
                }
            }
        }
        found
    }
}

/// Whether a parameter is called like the address of a Modbus unit.
fn is_unit(name: &str) -> bool {
    const NAMES: [&str; 8] =
        ["unit", "unit_id", "unit_address", "slave", "slave_id", "address", "modbus_address", "modbus_id"];
    NAMES.contains(&name) || name.ends_with("_unit") || name.ends_with("_unit_id")
}

impl ModbusAccess {
    /// Whether a unit may be opened.
    pub fn check_unit(&self, unit: u8, configured: &ConfiguredUnits) -> Result<(), String> {
        let allowed = match &self.units {
            Some(units) => units.iter().any(|units| units.0.contains(&unit)),
            // One whose manifest has no parameter for its unit knows it by itself; what it writes must be granted.
            None => !configured.is_declared || configured.units.contains(&unit),
        };
        if allowed {
            return Ok(());
        }
        Err(format!("Modbus unit {unit} is not granted to this device; expected `units = [{unit}]` in its grant"))
    }

    /// Whether `count` registers or coils from `address` on may be written.
    pub fn check_write(
        &self,
        unit: u8,
        kind: WriteKind,
        address: u16,
        count: usize,
        configured: &ConfiguredUnits,
    ) -> Result<(), String> {
        let names_unit = self.units.is_some() || configured.is_declared;
        let first = u32::from(address);
        let last = first.saturating_add(u32::try_from(count.saturating_sub(1)).unwrap_or(u32::MAX));
        let allowed = match &self.writes {
            Writes::All => names_unit,
            Writes::Only(ranges) => ranges.iter().any(|range| range.covers(kind, first, last)),
        };
        if allowed {
            return Ok(());
        }
        let missing = if names_unit { String::new() } else { format!("units = [{unit}], ") };
        Err(format!(
            "writing {kind} {first} to {last} of Modbus unit {unit} is not granted to this device; expected \
             `{missing}writes = [\"{kind}:{first}-{last}\"]` in its grant"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(text: &str) -> Result<ModbusGrant, String> {
        #[derive(Deserialize)]
        struct Probe {
            line: ModbusGrant,
        }
        toml::from_str::<Probe>(&format!("line = {text}")).map(|probe| probe.line).map_err(|error| error.to_string())
    }

    #[test]
    fn grants_are_names_or_tables_and_others_say_what_was_expected() {
        assert_eq!(grant("'rs485'").unwrap().access, ModbusAccess::default());
        let access =
            grant("{ bus = 'a', units = [1, '10-12'], writes = ['registers:100-110', 'coils:0'] }").unwrap().access;
        assert_eq!(access.units, Some(vec![Units(1..=1), Units(10..=12)]));
        for (text, expected) in [
            ("1", "expected the name of a bus, or a table with bus, units and writes"),
            ("{ units = [1] }", "expected the name of a bus, or a table with bus, units and writes"),
            ("{ bus = 'a', unit = 1 }", "unknown field `unit`, expected one of `bus`, `units`, `writes`"),
            ("{ bus = 'a', units = [300] }", "expected 0 to 255, or a range such as \"10-12\", found 300"),
            ("{ bus = 'a', units = ['5-1'] }", "found \"5-1\""),
            ("{ bus = 'a', writes = ['holding:1'] }", "expected true, false, or a list such as"),
        ] {
            let error = grant(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_device_reaches_its_own_unit_and_writes_what_is_granted() {
        let own = ConfiguredUnits { is_declared: true, units: vec![5] };
        let fixed = ConfiguredUnits::default();
        let plain = grant("'a'").unwrap().access;
        let table = grant("{ bus = 'a', units = [5, 7], writes = ['registers:100-110'] }").unwrap().access;
        let readonly = grant("{ bus = 'a', writes = false }").unwrap().access;
        for (access, unit, configured, opens, writes) in [
            (&plain, 5, &own, true, true),
            (&plain, 6, &own, false, true),
            (&plain, 6, &fixed, true, false),
            (&table, 7, &own, true, true),
            (&table, 6, &own, false, true),
            (&readonly, 5, &own, true, false),
        ] {
            assert_eq!(access.check_unit(unit, configured).is_ok(), opens, "{access:?} {unit}");
            let written = access.check_write(unit, WriteKind::Registers, 100, 11, configured);
            assert_eq!(written.is_ok(), writes, "{access:?} {unit}");
        }
        assert!(table.check_write(5, WriteKind::Registers, 100, 12, &own).is_err());
        assert!(table.check_write(5, WriteKind::Coils, 100, 1, &own).is_err());
        assert!(plain.check_write(5, WriteKind::Coils, u16::MAX, 2000, &own).is_ok());
        let text = plain.check_write(6, WriteKind::Coils, 3, 2, &fixed).unwrap_err();
        assert!(text.ends_with("expected `units = [6], writes = [\"coils:3-4\"]` in its grant"), "{text}");
    }
}
