//! Values of Lua, of the contract and of JSON, each from the others.

use mlua::{Lua, Table, Value as LuaValue};
use sandgate_driver::{Attribute, Value};
use serde_json::{Map, Number, Value as Json};

use crate::about::{About, Kind};

/// Deeper tables are no data.
const MAX_DEPTH: usize = 100;
/// Whole floats below this are integers to everybody else.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// A table's fields as attributes, sorted by name; keys that are no names are left out.
pub fn attributes(table: &Table, about: &About) -> mlua::Result<Vec<Attribute>> {
    let mut attributes = Vec::new();
    for pair in table.pairs::<LuaValue, LuaValue>() {
        let (key, value) = pair?;
        let Some(name) = text_of(&key) else { continue };
        let value = value_of(&value, about.types.get(&name).copied());
        attributes.push(Attribute { name, value });
    }
    attributes.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(attributes)
}

/// A value as the contract has it.
fn value_of(value: &LuaValue, kind: Option<Kind>) -> Value {
    if kind == Some(Kind::Json) {
        return json_of(value, 0).map_or(Value::Unknown, |json| Value::Json(json.to_string()));
    }
    match value {
        LuaValue::Nil => Value::Unknown,
        LuaValue::Boolean(value) => Value::Boolean(*value),
        LuaValue::Integer(value) => Value::Integer(*value),
        LuaValue::Number(value) => number(*value),
        LuaValue::Table(table) => {
            let texts = (kind != Some(Kind::Json)).then(|| texts(table)).flatten();
            match texts {
                Some(texts) if kind == Some(Kind::Texts) || !texts.is_empty() => Value::TextList(texts),
                _ => json_of(value, 0).map_or(Value::Unknown, |json| Value::Json(json.to_string())),
            }
        }
        other => Value::Text(text_of(other).unwrap_or_default()),
    }
}

#[allow(clippy::cast_possible_truncation)]
fn number(value: f64) -> Value {
    if !value.is_finite() {
        Value::Unknown
    } else if value.fract() == 0.0 && value.abs() < EXACT {
        Value::Integer(value as i64)
    } else {
        Value::Float(value)
    }
}

/// The texts of a list that has nothing else.
fn texts(table: &Table) -> Option<Vec<String>> {
    let length = table.raw_len();
    let entries = table.pairs::<LuaValue, LuaValue>().count();
    let items = (1..=length).map(|place| match table.raw_get::<LuaValue>(place).ok()? {
        text @ LuaValue::String(_) => text_of(&text),
        _ => None,
    });
    (entries == length).then(|| items.collect()).flatten()
}

/// What a value reads like; bytes that are no UTF-8 are replaced.
pub fn text_of(value: &LuaValue) -> Option<String> {
    match value {
        LuaValue::String(text) => Some(String::from_utf8_lossy(&text.as_bytes()).into_owned()),
        LuaValue::Integer(number) => Some(number.to_string()),
        LuaValue::Number(number) => Some(number.to_string()),
        LuaValue::Boolean(value) => Some(value.to_string()),
        _ => None,
    }
}

/// A value as JSON; an error says what cannot be.
#[allow(clippy::cast_possible_truncation)]
pub fn json_of(value: &LuaValue, depth: usize) -> Result<Json, String> {
    if depth > MAX_DEPTH {
        return Err(format!(
            "expected tables of at most {MAX_DEPTH} levels, found more, or a table that contains itself"
        ));
    }
    match value {
        LuaValue::Nil => Ok(Json::Null),
        LuaValue::Boolean(value) => Ok(Json::Bool(*value)),
        LuaValue::Integer(value) => Ok((*value).into()),
        LuaValue::Number(value) if value.fract() == 0.0 && value.abs() < EXACT => Ok((*value as i64).into()),
        LuaValue::Number(value) => {
            Number::from_f64(*value).map(Json::Number).ok_or_else(|| format!("JSON has no number {value}"))
        }
        LuaValue::String(_) => Ok(Json::String(text_of(value).unwrap_or_default())),
        LuaValue::Table(table) => table_as_json(table, depth),
        other => Err(format!("JSON has no {}", other.type_name())),
    }
}

fn table_as_json(table: &Table, depth: usize) -> Result<Json, String> {
    let length = table.raw_len();
    let pairs: Vec<(LuaValue, LuaValue)> =
        table.pairs().collect::<mlua::Result<_>>().map_err(|error| error.to_string())?;
    if length > 0 && pairs.len() == length {
        let items = (1..=length).map(|place| {
            let item = table.raw_get::<LuaValue>(place).map_err(|error| error.to_string())?;
            json_of(&item, depth + 1)
        });
        return items.collect::<Result<Vec<_>, _>>().map(Json::Array);
    }
    let mut fields: Vec<(String, Json)> = Vec::new();
    for (key, value) in pairs {
        let key = text_of(&key).ok_or_else(|| format!("JSON has no key that is a {}", key.type_name()))?;
        fields.push((key, json_of(&value, depth + 1)?));
    }
    fields.sort_by(|one, other| one.0.cmp(&other.0));
    Ok(Json::Object(fields.into_iter().collect::<Map<_, _>>()))
}

/// JSON as a value of Lua.
pub fn lua_of(lua: &Lua, json: &Json) -> mlua::Result<LuaValue> {
    Ok(match json {
        Json::Null => LuaValue::Nil,
        Json::Bool(value) => LuaValue::Boolean(*value),
        Json::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(integer), _) => LuaValue::Integer(integer),
            (None, float) => LuaValue::Number(float.unwrap_or(f64::NAN)),
        },
        Json::String(text) => LuaValue::String(lua.create_string(text)?),
        Json::Array(items) => {
            let table = lua.create_table()?;
            for (place, item) in items.iter().enumerate() {
                table.raw_set(place + 1, lua_of(lua, item)?)?;
            }
            LuaValue::Table(table)
        }
        Json::Object(fields) => {
            let table = lua.create_table()?;
            for (name, value) in fields {
                table.raw_set(name.as_str(), lua_of(lua, value)?)?;
            }
            LuaValue::Table(table)
        }
    })
}
