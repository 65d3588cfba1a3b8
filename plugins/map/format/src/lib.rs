//! What a register map says: the section `map` of a driver's manifest, as it is
//! written. `sandgate build` checks it, the driver in `plugins/map` follows it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The map of a device's registers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Map {
    /// How the log calls the device.
    #[serde(default = "default_device")]
    pub device: String,
    /// The name of its Modbus line, under `driver.requests.modbus`.
    #[serde(default = "default_line")]
    pub line: String,
    /// Its unit there: a number, or a parameter of the configuration.
    pub unit: Setting,
    /// How often it is read: a time such as `1s`, or a parameter in milliseconds.
    #[serde(default = "default_every")]
    pub every: Setting,
    /// How often properties are read and published again.
    #[serde(default = "default_properties_every")]
    pub properties_every: Setting,
    /// How long it may take to answer, if not as long as the line says.
    pub timeout: Option<Setting>,
    /// The pause that it needs between two requests.
    pub pause: Option<Setting>,
    /// How many registers that nobody asks for may be read along between two that somebody does.
    #[serde(default)]
    pub gap: u16,
    /// The most registers that it gives at once, up to 125.
    #[serde(default = "default_most")]
    pub most: u16,
    /// Where the higher half of a value is that takes several registers.
    #[serde(default)]
    pub words: Words,
    /// What is sent with each reading.
    #[serde(default)]
    pub telemetry: BTreeMap<String, Entry>,
    /// What tells which device it is.
    #[serde(default)]
    pub properties: BTreeMap<String, Entry>,
    /// When alerts are active.
    #[serde(default)]
    pub alerts: BTreeMap<String, Condition>,
    /// What commands write.
    #[serde(default)]
    pub commands: BTreeMap<String, Command>,
}

/// A value, or the parameter that has it: `bucket.parameter`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Setting {
    /// The value itself.
    Number(f64),
    /// A parameter, or a time such as `1s`.
    Text(String),
}

/// The order of the registers of one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Words {
    /// The higher half comes first, as the Modbus specification has it ("ABCD").
    #[default]
    HighFirst,
    /// The lower half comes first ("CDAB").
    LowFirst,
}

/// How registers are read as a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // the names say it all
pub enum Kind {
    #[default]
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F32,
    F64,
    /// Two characters in each register, up to the first zero.
    Text,
}

impl Kind {
    /// How many registers it takes; as many as are said for a text.
    pub fn registers(self) -> u16 {
        match self {
            Kind::U16 | Kind::I16 => 1,
            Kind::U32 | Kind::I32 | Kind::F32 => 2,
            Kind::U64 | Kind::I64 | Kind::F64 => 4,
            Kind::Text => 0,
        }
    }

    /// Whether it is a whole number.
    pub fn is_whole(self) -> bool {
        !matches!(self, Kind::F32 | Kind::F64 | Kind::Text)
    }
}

/// Where a value lies, and what it means. One of `holding`, `input`, `coil`,
/// `discrete`, `text`, `ok` with `lost`, or `alerts`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Entry {
    /// The address of a holding register, on the wire: from 0.
    pub holding: Option<u16>,
    /// The address of an input register.
    pub input: Option<u16>,
    /// The address of a coil.
    pub coil: Option<u16>,
    /// The address of a discrete input.
    pub discrete: Option<u16>,
    /// Always this text.
    pub text: Option<String>,
    /// This text while the device answers.
    pub ok: Option<String>,
    /// This text while it does not.
    pub lost: Option<String>,
    /// Those of these alerts that are active.
    pub alerts: Option<Vec<String>>,
    /// What the registers hold.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// How many registers a text has.
    pub registers: Option<u16>,
    /// The order of its registers, where it is another one than the map's.
    pub words: Option<Words>,
    /// A single bit of it, from 0, the lowest.
    pub bit: Option<u8>,
    /// Some bits of it: the lowest, and how many.
    pub bits: Option<(u8, u8)>,
    /// What it is multiplied by: a number, or a parameter.
    pub scale: Option<Setting>,
    /// The boolean parameter that says whether it is.
    pub scale_if: Option<String>,
    /// What is added then.
    pub offset: Option<f64>,
    /// What numbers stand for; others are unknown.
    #[serde(rename = "enum")]
    pub names: BTreeMap<i64, String>,
    /// What bits stand for that are set: a list of texts.
    pub flags: BTreeMap<u8, String>,
    /// What the registers hold while there is no value, as an unsigned number.
    pub absent: Vec<u64>,
    /// A number that is sent as a text.
    pub as_text: bool,
    /// How often it is read, where that is less often than the rest.
    pub every: Option<String>,
    /// Some devices do not have it: it is left out then.
    pub optional: bool,
}

/// When an alert is active. One of `lost`, `of`, `at`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Condition {
    /// While the device does not answer.
    pub lost: bool,
    /// By a value of the telemetry.
    pub of: Option<String>,
    /// By another value.
    pub at: Option<Entry>,
    /// What the value is then; without any of these, true, or another number than 0.
    pub is: Option<Plain>,
    /// What it is not.
    pub is_not: Option<Plain>,
    /// What it is above.
    pub above: Option<f64>,
    /// What it is below.
    pub below: Option<f64>,
}

/// A plain value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
#[allow(missing_docs)] // the names say it all
pub enum Plain {
    Boolean(bool),
    Number(f64),
    Text(String),
}

/// What a command does.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Command {
    /// In this order; the first that is refused ends it.
    pub writes: Vec<Write>,
    /// What is read then, and is its result.
    pub returns: BTreeMap<String, Entry>,
}

/// One write: of `value`, or of an argument of the command.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Write {
    /// The address of a holding register.
    pub holding: Option<u16>,
    /// The address of a coil.
    pub coil: Option<u16>,
    /// What is written.
    pub value: Option<Plain>,
    /// The argument that is.
    pub argument: Option<String>,
    /// What the registers hold.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// The order of its registers, where it is another one than the map's.
    pub words: Option<Words>,
    /// What the argument is in: 0.1 writes 235 for 23.5.
    pub scale: Option<f64>,
    /// What is taken off it before.
    pub offset: Option<f64>,
    /// What texts stand for.
    #[serde(rename = "enum")]
    pub names: BTreeMap<i64, String>,
    /// Whether a single register is written as several are, with function 16.
    pub many: bool,
}

fn default_device() -> String {
    "the device".into()
}

fn default_line() -> String {
    "line".into()
}

fn default_every() -> Setting {
    Setting::Text("1s".into())
}

fn default_properties_every() -> Setting {
    Setting::Text("30s".into())
}

fn default_most() -> u16 {
    125
}

impl Entry {
    /// The table and the address of a value that is read.
    pub fn place(&self) -> Option<(Table, u16)> {
        let places = [
            (Table::Holding, self.holding),
            (Table::Input, self.input),
            (Table::Coils, self.coil),
            (Table::Discrete, self.discrete),
        ];
        places.into_iter().find_map(|(table, address)| Some((table, address?)))
    }

    /// How many registers or bits it takes.
    pub fn length(&self) -> u16 {
        match self.place() {
            Some((Table::Holding | Table::Input, _)) => self.registers.unwrap_or(self.kind.registers()),
            Some(_) => 1,
            None => 0,
        }
    }
}

/// A table of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // the names say it all
pub enum Table {
    Holding,
    Input,
    Coils,
    Discrete,
}

/// A time such as `500ms`, `1s`, `2m`, `1h`, in milliseconds.
pub fn milliseconds(text: &str) -> Option<f64> {
    let end = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at_checked(end)?;
    let unit = match unit {
        "ms" => 1.0,
        "s" => 1000.0,
        "m" | "min" => 60_000.0,
        "h" => 3_600_000.0,
        _ => return None,
    };
    let number: f64 = number.trim().parse().ok()?;
    (number >= 0.0).then_some(number * unit)
}
