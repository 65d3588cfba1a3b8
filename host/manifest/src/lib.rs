//! What a driver is and says of itself. Its manifest is an Enapter blueprint
//! `device/3.0` with one more section, `driver:`.
//!
//! This module owns the types and the strict parsing. `check` holds values
//! against a manifest, `blueprint` writes what the cloud wants to see,
//! `component` finds it in a driver's file with the `files`, `provenance` what that is made of.
//! Field rules: the public schema of `device/3.0`, in short in the README.

mod blueprint;
mod check;
pub mod component;
#[doc(hidden)]
pub mod contract;
mod driver;
pub mod files;
mod parse;
pub mod provenance;
pub mod target;
pub mod text;
pub mod units;
pub mod value;
pub mod yaml;

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value as Json;

pub use blueprint::GATEWAY_BLUEPRINT;
pub use blueprint::{clean_blueprint, parent_blueprint};
pub use check::{ArgumentError, WrongConfiguration, WrongValue};
pub use driver::{CommandTerms, DriverSection, RequestKind, Requested, RequestedLimits, Requests};
pub use parse::is_driver_name;

/// Maps that keep the order of the names irrelevant and the output stable.
type Map<T> = BTreeMap<String, T>;

/// A parsed and checked manifest.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// The sections that this program uses.
    pub blueprint: Blueprint,
    /// The driver's own section.
    pub driver: DriverSection,
    /// The text as embedded in the component.
    pub text: String,
}

/// The parts of a blueprint that matter at run time, and, checked but unused,
/// the rest.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blueprint {
    /// Always `device/3.0`.
    pub blueprint_spec: String,
    /// For people.
    pub display_name: String,
    /// For people.
    pub description: Option<String>,
    /// A material-community icon name, or `enapter-…`.
    pub icon: Option<String>,
    /// SPDX name of the blueprint's licence.
    pub license: Option<String>,
    /// Who wrote it.
    pub author: Option<String>,
    /// Who helped.
    #[serde(default)]
    pub contributors: Vec<String>,
    /// Where users get help.
    pub support: Option<Support>,
    /// One of Enapter's device categories.
    pub category: Option<Category>,
    /// Profiles that the device fulfils.
    pub implements: Option<OneOrMany>,
    /// Profiles that are not final.
    pub implements_draft: Option<OneOrMany>,
    /// How the device reaches the cloud; `embedded` for drivers.
    pub runtime: Option<Runtime>,
    /// Own units of measurement.
    #[serde(default)]
    pub units: Map<Unit>,
    /// Facts that change rarely.
    #[serde(default)]
    pub properties: Map<Field>,
    /// Measurements.
    #[serde(default)]
    pub telemetry: Map<Field>,
    /// What can be wrong.
    #[serde(default)]
    pub alerts: Map<Alert>,
    /// Headings for commands.
    #[serde(default)]
    pub command_groups: Map<CommandGroup>,
    /// What the device can do.
    #[serde(default)]
    pub commands: Map<Command>,
    /// Parameters of the driver, in buckets.
    #[serde(default)]
    pub configuration: Map<Bucket>,
}

/// Contact for users.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Support {
    /// Web page.
    pub url: Option<String>,
    /// Mail address.
    pub email: Option<String>,
}

/// Enapter's device categories.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)] // the names say it all
pub enum Category {
    HydrogenStorage,
    Electrolysers,
    SolarGenerators,
    FuelCells,
    WaterTreatment,
    BatterySystems,
    PowerMeters,
    Hvac,
    ElectricVehicles,
    Control,
    DataProviders,
    Sensors,
}

/// A text or a list of texts.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// How the device reaches the cloud.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Runtime {
    /// Drivers of this gateway are `embedded`.
    #[serde(rename = "type")]
    pub kind: RuntimeType,
    /// Free texts.
    #[serde(default)]
    pub requirements: Vec<String>,
}

/// The runtime types that a driver can declare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuntimeType {
    /// The device speaks MQTT itself.
    Embedded,
}

/// A unit of measurement that UCUM does not have.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unit {
    /// What stands behind the number.
    pub symbol: Option<String>,
    /// For people.
    pub display_name: Option<String>,
    /// For people.
    pub description: Option<String>,
}

/// The type of a declared value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Type {
    /// true or false
    Boolean,
    /// UTF-8 text
    String,
    /// whole number
    Integer,
    /// number; whole numbers fit too
    Float,
    /// list of texts
    ArrayOfStrings,
    /// any JSON
    Json,
    /// list of alert ids; telemetry only
    Alerts,
}

impl Type {
    /// The name in a manifest.
    pub fn name(self) -> &'static str {
        match self {
            Type::Boolean => "boolean",
            Type::String => "string",
            Type::Integer => "integer",
            Type::Float => "float",
            Type::ArrayOfStrings => "array_of_strings",
            Type::Json => "json",
            Type::Alerts => "alerts",
        }
    }
}

/// A property or telemetry attribute.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a mapping with type and display_name")]
pub struct Field {
    /// What it holds.
    #[serde(rename = "type")]
    pub kind: Type,
    /// For people.
    pub display_name: String,
    /// For people.
    pub description: Option<String>,
    /// The only values that are allowed.
    #[serde(rename = "enum")]
    pub allowed: Option<Enum>,
    /// UCUM code or a key under `units`.
    pub unit: Option<String>,
    /// Units to scale to in a display.
    #[serde(default)]
    pub auto_scale: Vec<String>,
    /// `C` is a unit here, not Celsius.
    pub allow_unit_c: Option<bool>,
    /// `F` is a unit here, not Fahrenheit.
    pub allow_unit_f: Option<bool>,
    /// Profile fields that it stands for.
    pub implements: Option<OneOrMany>,
    /// Older names.
    pub aliases: Option<OneOrMany>,
    /// Who may see it.
    pub access_level: Option<AccessLevel>,
    /// JSON schema of a `json` value.
    pub json_schema: Option<Json>,
}

/// Allowed values: a list, or a map from value to its description.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Enum {
    /// Just the values.
    List(Vec<Json>),
    /// Values with display data.
    Map(Map<EnumItem>),
}

/// How one allowed value is displayed.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnumItem {
    /// For people.
    pub display_name: Option<String>,
    /// For people.
    pub description: Option<String>,
    /// For example `green-dark`.
    pub color: Option<String>,
}

/// Who may see or do something, rising.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // the names say it all
pub enum AccessLevel {
    Readonly,
    User,
    Owner,
    Installer,
    Vendor,
    System,
}

/// One alert.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alert {
    /// How bad it is.
    pub severity: Severity,
    /// For people.
    pub display_name: String,
    /// For people.
    pub description: Option<String>,
    /// The device's own code.
    pub code: Option<Json>,
    /// How long it must last before it counts, such as "15s" or "2m30s".
    pub grace_period: Option<String>,
    /// Steps to try.
    #[serde(default)]
    pub troubleshooting: Vec<String>,
    /// Attributes to look at.
    #[serde(default)]
    pub telemetry: Vec<String>,
    /// Parts to look at.
    #[serde(default)]
    pub components: Vec<String>,
    /// When it is raised.
    #[serde(default)]
    pub conditions: Vec<String>,
}

/// How bad an alert is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // the names say it all
pub enum Severity {
    Info,
    Warning,
    Error,
}

/// A heading for commands.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandGroup {
    /// For people.
    pub display_name: String,
    /// For people.
    pub description: Option<String>,
    /// How it is displayed.
    pub ui: Option<Ui>,
}

/// Display hints.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ui {
    /// A material-community icon name.
    pub icon: Option<String>,
    /// Whether it stands on the first page.
    pub quick_access: Option<bool>,
    /// Older name of `quick_access`.
    pub mobile_quick_access: Option<bool>,
}

/// A command.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// For people.
    pub display_name: String,
    /// For people.
    pub description: Option<String>,
    /// A key under `command_groups`.
    pub group: String,
    /// What it takes.
    #[serde(default)]
    pub arguments: Map<Parameter>,
    /// What it returns; documentation only.
    pub response: Option<Json>,
    /// How it is displayed.
    pub ui: Option<Ui>,
    /// A question to ask before.
    pub confirmation: Option<Confirmation>,
    /// Who may run it.
    pub access_level: Option<AccessLevel>,
    /// Who may see its runs.
    pub read_access_level: Option<AccessLevel>,
    /// A command whose result fills the form.
    pub populate_values_command: Option<String>,
    /// Profile commands that it stands for.
    pub implements: Option<OneOrMany>,
    /// Older names.
    pub aliases: Option<OneOrMany>,
}

/// A question before a command.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confirmation {
    /// `info` or `warning`.
    pub severity: Severity,
    /// The question.
    pub title: Option<String>,
    /// More words.
    pub description: Option<String>,
}

/// An argument of a command or a parameter of the configuration.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a mapping with type and display_name")]
pub struct Parameter {
    /// What it holds.
    #[serde(rename = "type")]
    pub kind: Type,
    /// For people.
    pub display_name: String,
    /// For people.
    pub description: Option<String>,
    /// Whether it must be given.
    #[serde(default)]
    pub required: bool,
    /// The smallest number allowed.
    pub min: Option<f64>,
    /// The largest number allowed.
    pub max: Option<f64>,
    /// The only values that are allowed.
    #[serde(rename = "enum")]
    pub allowed: Option<Enum>,
    /// A display hint such as `connection_uri`.
    pub format: Option<String>,
    /// JSON schema of a `json` value.
    pub json_schema: Option<Json>,
    /// Whether it must not show in logs.
    #[serde(default)]
    pub sensitive: bool,
    /// What is used when it is not given.
    pub default: Option<Json>,
}

/// A group of parameters.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bucket {
    /// For people.
    pub display_name: String,
    /// For people.
    pub description: Option<String>,
    /// Who may change it.
    pub access_level: Option<AccessLevel>,
    /// How it is displayed.
    pub ui: Option<Ui>,
    /// The parameters.
    pub parameters: Map<Parameter>,
}

/// The child type that goes with a name.
pub fn child_type(name: &str) -> String {
    name.replace('-', "_")
}

impl Manifest {
    /// Parses and checks a manifest.
    ///
    /// The error starts with `line:column: ` where the place is known.
    pub fn parse(text: &str) -> Result<Manifest, String> {
        parse::parse(text)
    }

    /// The type of the child that the driver makes of its device, unless the
    /// configuration says another.
    pub fn child_type(&self) -> String {
        child_type(&self.driver.name)
    }

    /// The driver's name and version, as logs show them.
    pub fn label(&self) -> String {
        format!("{} {}", self.driver.name, self.driver.version)
    }
}
