//! Holds values against what a manifest declares.
//!
//! Pure. The cloud drops what does not fit without a word; these functions say
//! what was wrong and what was expected.

use serde_json::{Map, Value as Json};

use super::{Enum, Field, Manifest, Parameter, Type};
use crate::text;
use crate::value::{Attribute, Value, check_document, json_of};

/// A value that does not fit; the text says what was expected.
pub type WrongValue = String;

/// A configuration that does not fit: where, and what was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {problem}", keys.join("."))]
pub struct WrongConfiguration {
    /// The bucket, and the parameter if it is about one.
    pub keys: Vec<String>,
    /// What is wrong, and what was expected.
    pub problem: String,
}

/// A command that does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentError {
    /// The manifest declares no such command.
    #[error("no command {0:?}; {1}")]
    UnknownCommand(String, String),
    /// An argument does not fit; the text names it.
    #[error("{0}")]
    Invalid(String),
}

/// A float that is a whole number within this is exact.
const EXACT_INTEGER: f64 = 9_007_199_254_740_992.0;

impl Type {
    /// Whether a JSON value is of this type.
    pub(super) fn fits(self, value: &Json) -> bool {
        match self {
            Type::Boolean => value.is_boolean(),
            Type::String => value.is_string(),
            Type::Integer => {
                value.is_i64()
                    || value.as_f64().is_some_and(|float| float.fract() == 0.0 && float.abs() <= EXACT_INTEGER)
            }
            Type::Float => value.is_number(),
            Type::ArrayOfStrings | Type::Alerts => {
                value.as_array().is_some_and(|list| list.iter().all(Json::is_string))
            }
            Type::Json => true,
        }
    }
}

impl Enum {
    /// The allowed values; keys of a map read as the declared type.
    pub fn values(&self, kind: Type) -> Vec<Json> {
        match self {
            Enum::List(values) => values.clone(),
            Enum::Map(items) => items
                .keys()
                .map(|key| match kind {
                    Type::String => Json::String(key.clone()),
                    _ => serde_json::from_str(key).unwrap_or_else(|_| Json::String(key.clone())),
                })
                .collect(),
        }
    }

    fn contains(&self, kind: Type, value: &Value) -> bool {
        if let (Type::String, Value::Text(text)) = (kind, value) {
            return match self {
                Enum::Map(items) => items.contains_key(text),
                Enum::List(values) => values.iter().any(|allowed| allowed.as_str() == Some(text)),
            };
        }
        self.values(kind).iter().any(|allowed| match value {
            Value::Boolean(value) => allowed.as_bool() == Some(*value),
            Value::Integer(value) => allowed.as_f64() == Some(*value as f64),
            Value::Float(value) => allowed.as_f64() == Some(*value),
            _ => false,
        })
    }

    fn list(&self, kind: Type) -> String {
        const SHOWN: usize = 12;
        let values = self.values(kind);
        let shown: Vec<_> = values.iter().take(SHOWN).map(Json::to_string).collect();
        let more = if values.len() > SHOWN { ", …" } else { "" };
        format!("{}{more}", shown.join(", "))
    }
}

impl Field {
    /// Checks a value that a driver sends. `alerts` knows the declared ids.
    pub fn check(&self, value: &Value, is_alert: impl Fn(&str) -> bool) -> Result<(), WrongValue> {
        let expected = || format!("expected {}, found {}", self.kind.name(), name_of(value));
        match (self.kind, value) {
            (_, Value::Unknown) => return Ok(()),
            (Type::Boolean, Value::Boolean(_))
            | (Type::String, Value::Text(_))
            | (Type::Integer | Type::Float, Value::Integer(_))
            | (Type::ArrayOfStrings, Value::TextList(_)) => {}
            (Type::Float, Value::Float(float)) if float.is_finite() => {}
            (Type::Float, Value::Float(float)) => {
                return Err(format!("expected a finite number, found {float}; send unknown instead"));
            }
            (Type::Json, Value::Json(text)) => check_document(text)?,
            (Type::Alerts, Value::TextList(ids)) => {
                if let Some(id) = ids.iter().find(|id| !is_alert(id)) {
                    return Err(format!("expected ids declared under alerts, found {id:?}"));
                }
            }
            _ => return Err(expected()),
        }
        match &self.allowed {
            Some(allowed) if !allowed.contains(self.kind, value) => {
                let found = json_of(value);
                Err(format!("expected one of {}, found {found}", allowed.list(self.kind)))
            }
            _ => Ok(()),
        }
    }

    /// Checks a JSON value as it arrives at a cloud; null always fits.
    pub fn check_json(&self, value: &Json) -> Result<(), WrongValue> {
        if value.is_null() {
            return Ok(());
        }
        if !self.kind.fits(value) {
            return Err(format!("expected {}, found {}", self.kind.name(), short(value)));
        }
        match &self.allowed {
            Some(allowed) if !allowed.contains(self.kind, &typed(self.kind, value)) => {
                Err(format!("expected one of {}, found {}", allowed.list(self.kind), short(value)))
            }
            _ => Ok(()),
        }
    }
}

impl Parameter {
    /// Checks a JSON value from a configuration or a command.
    pub fn check(&self, value: &Json) -> Result<(), WrongValue> {
        let shown = || if self.sensitive { "a hidden value".to_owned() } else { short(value) };
        if !self.kind.fits(value) {
            return Err(format!("expected {}, found {}", self.kind.name(), shown()));
        }
        let number = value.as_f64();
        if let (Some(min), Some(number)) = (self.min, number)
            && number < min
        {
            return Err(format!("expected at least {min}, found {}", shown()));
        }
        if let (Some(max), Some(number)) = (self.max, number)
            && number > max
        {
            return Err(format!("expected at most {max}, found {}", shown()));
        }
        let typed = typed(self.kind, value);
        match &self.allowed {
            Some(allowed) if !allowed.contains(self.kind, &typed) => {
                Err(format!("expected one of {}, found {}", allowed.list(self.kind), shown()))
            }
            _ => Ok(()),
        }
    }
}

impl Manifest {
    /// Whether an alert id is declared. The cloud declares `not_configured`.
    pub fn is_alert(&self, id: &str) -> bool {
        self.blueprint.alerts.contains_key(id) || id == "not_configured"
    }

    /// Checks the arguments of a command and fills in defaults.
    pub fn check_command(&self, name: &str, arguments: Map<String, Json>) -> Result<Map<String, Json>, ArgumentError> {
        let Some(command) = self.blueprint.commands.get(name) else {
            let expected = match self.blueprint.commands.is_empty() {
                true => "the driver has no commands".into(),
                false => text::instead(name, self.blueprint.commands.keys()),
            };
            return Err(ArgumentError::UnknownCommand(text::shortened(name, 100).into_owned(), expected));
        };
        fill(&command.arguments, arguments)
            .map_err(|(name, problem)| ArgumentError::Invalid(format!("{name}: {problem}")))
    }

    /// The typed arguments of a checked command, in the manifest's order.
    pub fn typed_arguments(&self, name: &str, arguments: &Map<String, Json>) -> Vec<Attribute> {
        let Some(command) = self.blueprint.commands.get(name) else { return Vec::new() };
        let typed = |(name, parameter): (&String, &Parameter)| {
            let value = arguments.get(name)?;
            Some(Attribute { name: name.clone(), value: typed(parameter.kind, value) })
        };
        command.arguments.iter().filter_map(typed).collect()
    }

    /// Writes others over what is sensitive in a configuration: texts, and those in lists and documents.
    pub fn hide_sensitive(&self, configuration: &mut Map<String, Json>, hidden: impl Fn(&str) -> String + Copy) {
        fn hide(value: &mut Json, hidden: impl Fn(&str) -> String + Copy) {
            match value {
                Json::String(text) => *text = hidden(text),
                Json::Array(values) => values.iter_mut().for_each(|value| hide(value, hidden)),
                Json::Object(values) => values.values_mut().for_each(|value| hide(value, hidden)),
                Json::Number(_) => *value = 0.into(),
                Json::Bool(_) | Json::Null => {}
            }
        }
        for (bucket, declared) in &self.blueprint.configuration {
            let sensitive = declared.parameters.iter().filter(|(_, parameter)| parameter.sensitive);
            for (name, _) in sensitive {
                if let Some(value) = configuration.get_mut(bucket).and_then(|bucket| bucket.get_mut(name)) {
                    hide(value, hidden);
                }
            }
        }
    }

    /// The texts in a configuration that must not show in a log.
    pub fn sensitive(&self, configuration: &Map<String, Json>) -> Vec<String> {
        let parameters = self.blueprint.configuration.iter().flat_map(|(bucket, declared)| {
            let sensitive = declared.parameters.iter().filter(|(_, parameter)| parameter.sensitive);
            sensitive.filter_map(move |(name, _)| configuration.get(bucket)?.get(name))
        });
        let mut texts = Vec::new();
        parameters.for_each(|value| texts_in(value, &mut texts));
        texts
    }

    /// Checks a whole configuration and fills in defaults.
    pub fn check_configuration(&self, mut given: Map<String, Json>) -> Result<Map<String, Json>, WrongConfiguration> {
        let wrong = |keys: &[&str], problem: String| {
            let keys = keys.iter().map(|key| text::shortened(key, 100).into_owned()).collect();
            Err(WrongConfiguration { keys, problem })
        };
        let declared = &self.blueprint.configuration;
        // A name that is mistyped says more than what is missing because of it.
        if let Some(name) = given.keys().find(|name| !declared.contains_key(*name)) {
            let expected = text::instead(name, declared.keys());
            return wrong(&[name], format!("the manifest declares no such bucket; {expected}"));
        }
        let mut checked = Map::new();
        for (name, bucket) in declared {
            let parameters = match given.remove(name) {
                None => Map::new(),
                Some(Json::Object(parameters)) => parameters,
                Some(other) => {
                    return wrong(&[name], format!("expected a table of parameters, found {}", short(&other)));
                }
            };
            match fill(&bucket.parameters, parameters) {
                Ok(parameters) => drop(checked.insert(name.clone(), Json::Object(parameters))),
                Err((parameter, problem)) => return wrong(&[name, &parameter], problem),
            }
        }
        Ok(checked)
    }
}

/// Checks values against parameters and fills in defaults. The error is a name
/// and what is wrong with its value.
fn fill(
    declared: &super::Map<Parameter>,
    mut given: Map<String, Json>,
) -> Result<Map<String, Json>, (String, WrongValue)> {
    if let Some(name) = given.keys().find(|name| !declared.contains_key(*name)) {
        let expected = text::instead(name, declared.keys());
        return Err((text::shortened(name, 100).into_owned(), format!("is not declared; {expected}")));
    }
    let mut filled = Map::new();
    for (name, parameter) in declared {
        // The cloud's forms send null for what was left empty.
        let value = given.remove(name).filter(|value| !value.is_null());
        match value.or_else(|| parameter.default.clone()) {
            Some(value) => {
                parameter.check(&value).map_err(|problem| (name.clone(), problem))?;
                filled.insert(name.clone(), whole(parameter.kind, value));
            }
            None if parameter.required => {
                return Err((name.clone(), format!("is required; expected {}", parameter.kind.name())));
            }
            None => {}
        }
    }
    Ok(filled)
}

/// Writes 60.0 as 60 where an integer is declared: drivers read it as one.
fn whole(kind: Type, value: Json) -> Json {
    match typed(kind, &value) {
        Value::Integer(number) => Json::from(number),
        _ => value,
    }
}

/// Reads a JSON value that fits a type as a typed value.
fn typed(kind: Type, value: &Json) -> Value {
    match (kind, value) {
        (_, Json::Null) => Value::Unknown,
        (Type::Boolean, Json::Bool(value)) => Value::Boolean(*value),
        (Type::String, Json::String(text)) => Value::Text(text.clone()),
        #[allow(clippy::cast_possible_truncation)] // `fits` has seen that it is whole and exact
        (Type::Integer, Json::Number(number)) => {
            Value::Integer(number.as_i64().or_else(|| number.as_f64().map(|float| float as i64)).unwrap_or_default())
        }
        (Type::Float, Json::Number(number)) => Value::Float(number.as_f64().unwrap_or_default()),
        (Type::ArrayOfStrings | Type::Alerts, Json::Array(list)) => {
            Value::TextList(list.iter().filter_map(Json::as_str).map(str::to_owned).collect())
        }
        (_, other) => Value::Json(other.to_string()),
    }
}

/// A value for an error message, cut to a sensible length.
fn short(value: &Json) -> String {
    const SHOWN: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

fn name_of(value: &Value) -> &'static str {
    match value {
        Value::Unknown => "unknown",
        Value::Boolean(_) => "boolean",
        Value::Integer(_) => "integer",
        Value::Float(_) => "float",
        Value::Text(_) => "text",
        Value::TextList(_) => "text-list",
        Value::Json(_) => "json",
    }
}

/// All texts in a document.
fn texts_in(value: &Json, texts: &mut Vec<String>) {
    match value {
        Json::String(text) => texts.push(text.clone()),
        Json::Array(values) => values.iter().for_each(|value| texts_in(value, texts)),
        Json::Object(values) => values.values().for_each(|value| texts_in(value, texts)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_sensitive_is_found_in_lists_too_and_hidden_where_it_stands() {
        let parameter = |name: &str, kind: &str, more: &str| {
            format!("      {name}: {{ type: {kind}, display_name: {name}{more} }}\n")
        };
        let secret = ", sensitive: true";
        let parameters = [
            parameter("password", "string", secret),
            parameter("pin", "integer", secret),
            parameter("keys", "json", secret),
            parameter("name", "string", ""),
        ];
        let text = format!(
            "blueprint_spec: device/3.0\ndisplay_name: Lock\nconfiguration:\n  main:\n    display_name: Main\n    \
             parameters:\n{}driver:\n  name: lock\n  version: 1.0.0\n",
            parameters.concat()
        );
        let manifest = Manifest::parse(&text).unwrap();
        let given = json!({"main": {"password": "geheim", "pin": 1234, "keys": ["k1", {"a": "k2"}], "name": "door"}});
        let mut configuration = given.as_object().unwrap().clone();
        let mut found = manifest.sensitive(&configuration);
        found.sort();
        assert_eq!(found, ["geheim", "k1", "k2"]);
        manifest.hide_sensitive(&mut configuration, |text| "x".repeat(text.len()));
        let hidden = json!({"main": {"password": "xxxxxx", "pin": 0, "keys": ["xx", {"a": "xx"}], "name": "door"}});
        assert_eq!(Json::Object(configuration), hidden);
    }
}
