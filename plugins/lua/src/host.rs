//! What Enapter's API is made of: functions over the driver contract, for the
//! scripts in `lua/` alone. Failures come as a kind and a text.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use mlua::{Lua, LuaString, Table, Value as LuaValue};
use sandgate_driver::alerts::{self, Alert};
use sandgate_driver::http::{self, Header, HttpError, Request};
use sandgate_driver::logging::{self, Level};
use sandgate_driver::modbus::{ModbusError, Unit};
use sandgate_driver::storage::{self, StorageError};
use sandgate_driver::{Attribute, Sample, SendError, command_log, timers};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use crate::about::About;
use crate::convert::{attributes, json_of, lua_of, text_of};
use crate::deadline::Deadline;

/// Why something failed: one of the kinds in `lua/base.lua`, and a text.
struct Failure(&'static str, String);

type Outcome<T> = Result<T, Failure>;

/// A value, or `nil`, a kind and a text.
fn answer(value: Outcome<LuaValue>) -> (LuaValue, Option<&'static str>, Option<String>) {
    match value {
        Ok(value) => (value, None, None),
        Err(Failure(kind, text)) => (LuaValue::Nil, Some(kind), Some(text)),
    }
}

/// Nothing, or a kind and a text.
fn status(value: Outcome<()>) -> (Option<&'static str>, Option<String>) {
    value.map_or_else(|Failure(kind, text)| (Some(kind), Some(text)), |()| (None, None))
}

/// The open units, by the name of the line and the address.
type Units = Rc<RefCell<HashMap<(String, u8), Unit>>>;

/// The table that the scripts of the API get.
pub fn table(lua: &Lua, about: &Rc<About>, deadline: &Deadline) -> mlua::Result<Table> {
    let host = lua.create_table()?;
    values(lua, &host, about)?;
    time(lua, &host, deadline)?;
    kept(lua, &host)?;
    field(lua, &host, deadline)?;
    Ok(host)
}

/// Telemetry, properties, logs, JSON.
fn values(lua: &Lua, host: &Table, about: &Rc<About>) -> mlua::Result<()> {
    let own = Rc::clone(about);
    host.set("telemetry", lua.create_function(move |_, data: Table| Ok(status(send(&data, &own)?)))?)?;
    let own = Rc::clone(about);
    let publish = move |_: &Lua, data: Table| {
        let attributes = attributes(&data, &own)?;
        let published = if attributes.is_empty() { Ok(()) } else { sandgate_driver::publish_properties(&attributes) };
        Ok(status(sent(published)))
    };
    host.set("properties", lua.create_function(publish)?)?;
    let log = |_: &Lua, (text, level, is_persistent): (LuaString, String, bool)| {
        let text = String::from_utf8_lossy(&text.as_bytes()).into_owned();
        let write = if is_persistent { logging::log_persistent } else { logging::log };
        write(level_of(&level), &text);
        Ok(())
    };
    host.set("log", lua.create_function(log)?)?;
    let command_log = |_: &Lua, text: LuaString| {
        command_log::write(&String::from_utf8_lossy(&text.as_bytes()));
        Ok(())
    };
    host.set("command_log", lua.create_function(command_log)?)?;
    let encode = |lua: &Lua, value: LuaValue| match json_of(&value, 0) {
        Ok(json) => Ok((LuaValue::String(lua.create_string(json.to_string())?), None)),
        Err(problem) => Ok((LuaValue::Nil, Some(problem))),
    };
    host.set("json_encode", lua.create_function(encode)?)?;
    let decode = |lua: &Lua, text: LuaString| match serde_json::from_slice::<Json>(&text.as_bytes()) {
        Ok(json) => Ok((lua_of(lua, &json)?, None)),
        Err(problem) => Ok((LuaValue::Nil, Some(format!("no JSON: {problem}")))),
    };
    host.set("json_decode", lua.create_function(decode)?)?;
    host.set("base64", lua.create_function(|_, bytes: LuaString| Ok(BASE64.encode(bytes.as_bytes())))?)?;
    let sha256 = |lua: &Lua, bytes: LuaString| lua.create_string(Sha256::digest(bytes.as_bytes()));
    host.set("sha256", lua.create_function(sha256)?)
}

/// Timers, waits, and what is left of a call.
fn time(lua: &Lua, host: &Table, deadline: &Deadline) -> mlua::Result<()> {
    let every = |_: &Lua, period: f64| {
        let interval = Duration::try_from_secs_f64(period / 1000.0).unwrap_or_default();
        match timers::every(interval) {
            Ok(id) => Ok((Some(id), None)),
            Err(timers::TimerError::InvalidTime) => {
                Ok((None, Some(format!("expected a period of 1 ms to 365 days, found {period} ms"))))
            }
            Err(timers::TimerError::TooMany(most)) => Ok((None, Some(format!("expected at most {most} timers")))),
        }
    };
    host.set("every", lua.create_function(every)?)?;
    let cancel = |_: &Lua, id: u32| {
        timers::cancel(id);
        Ok(())
    };
    host.set("cancel", lua.create_function(cancel)?)?;
    let begin = Instant::now();
    host.set("uptime", lua.create_function(move |_, ()| Ok(begin.elapsed().as_secs()))?)?;
    let own = deadline.clone();
    let sleep = move |_: &Lua, time: f64| {
        let time = time.clamp(0.0, own.longest_wait().unwrap_or(0.0));
        std::thread::sleep(Duration::from_secs_f64(time / 1000.0));
        Ok(())
    };
    host.set("sleep", lua.create_function(sleep)?)?;
    let own = deadline.clone();
    host.set("is_over", lua.create_function(move |_, ()| Ok(own.is_over()))?)
}

/// Key-values.
fn kept(lua: &Lua, host: &Table) -> mlua::Result<()> {
    fn failure(error: StorageError) -> Failure {
        match error {
            StorageError::InvalidKey => Failure("invalid_argument", "expected a key of 1 to 256 bytes".into()),
            StorageError::TooLarge(most) => Failure("too_large", format!("expected at most {most} bytes")),
            StorageError::Failed(text) => Failure("failed", text),
        }
    }
    let get = |lua: &Lua, key: String| {
        let value = match storage::get(&key) {
            Ok(Some(bytes)) => Ok(LuaValue::String(lua.create_string(bytes)?)),
            Ok(None) => Ok(LuaValue::Nil),
            Err(error) => Err(failure(error)),
        };
        Ok(answer(value))
    };
    host.set("storage_get", lua.create_function(get)?)?;
    let set =
        |_: &Lua, (key, value): (String, LuaString)| Ok(status(storage::set(&key, &value.as_bytes()).map_err(failure)));
    host.set("storage_set", lua.create_function(set)?)?;
    let delete = |_: &Lua, key: String| Ok(status(storage::delete(&key).map_err(failure)));
    host.set("storage_delete", lua.create_function(delete)?)
}

/// Devices: Modbus and HTTP.
fn field(lua: &Lua, host: &Table, deadline: &Deadline) -> mlua::Result<()> {
    let units = Units::default();
    let own = deadline.clone();
    type Transaction = (String, String, i64, i64, LuaValue, f64);
    let modbus = move |lua: &Lua, (line, operation, unit, register, given, timeout): Transaction| {
        let longest = own.longest_turn().unwrap_or(1.0);
        let place = Place { line, unit, register };
        let read = operation.starts_with("read_");
        let result = transact(&units, &place, &operation, &given, timeout.clamp(1.0, longest));
        let words = match result {
            Ok(words) => words,
            // A read has a value before its failure.
            Err(failure) if read => return Ok(answer(Err(failure))),
            Err(Failure(kind, text)) => return Ok((LuaValue::String(lua.create_string(kind)?), None, Some(text))),
        };
        if !read {
            return Ok((LuaValue::Nil, None, None));
        }
        let table = lua.create_table_with_capacity(words.len(), 0)?;
        for (place, word) in words.into_iter().enumerate() {
            table.raw_set(place + 1, word)?;
        }
        Ok(answer(Ok(LuaValue::Table(table))))
    };
    host.set("modbus", lua.create_function(modbus)?)?;
    let own = deadline.clone();
    let fetch =
        move |lua: &Lua, (method, url, headers, body, timeout): (String, String, Vec<Table>, LuaString, f64)| {
            let mut list = Vec::new();
            for header in headers {
                list.push(Header { name: header.get(1)?, value: header.get(2)? });
            }
            let timeout = timeout.clamp(1.0, own.longest_wait().unwrap_or(1.0));
            let body = body.as_bytes().to_vec();
            match http::fetch(&Request { method, url, headers: list, body, timeout: Some(timeout) }) {
                Ok(response) => {
                    let headers = lua.create_table()?;
                    for header in response.headers {
                        headers.push([header.name, header.value])?;
                    }
                    let body = lua.create_string(response.body)?;
                    Ok((Some(response.status), Some(headers), LuaValue::String(body)))
                }
                Err(error) => Ok((None, None, LuaValue::String(lua.create_string(told(error))?))),
            }
        };
    host.set("fetch", lua.create_function(fetch)?)
}

fn told(error: HttpError) -> String {
    match error {
        HttpError::NotGranted(text) => format!("not granted: {text}"),
        HttpError::InvalidRequest(text) => format!("invalid request: {text}"),
        HttpError::TimedOut => "timeout".into(),
        HttpError::TooLarge(most) => format!("the response is larger than {most} bytes"),
        HttpError::Failed(text) => text,
    }
}

/// Sends what is in one table in Enapter's API: measurements and alerts.
fn send(data: &Table, about: &About) -> mlua::Result<Outcome<()>> {
    const ALERTS: &str = "alerts";
    const DETAILS: &str = "alert_details";
    let active: LuaValue = data.get(ALERTS)?;
    if let LuaValue::Table(active) = &active {
        let details: LuaValue = data.get(DETAILS)?;
        let mut alerts = Vec::new();
        for id in active.sequence_values::<LuaValue>() {
            let Some(id) = text_of(&id?) else { continue };
            let details = details_of(&details, &id)?;
            alerts.push(Alert { id, details });
        }
        // The host tells of those that are not declared.
        let _ = alerts::set(&alerts);
    }
    let is_measured = |attribute: &Attribute| attribute.name != ALERTS && attribute.name != DETAILS;
    let measured: Vec<Attribute> = attributes(data, about)?.into_iter().filter(is_measured).collect();
    if measured.is_empty() {
        return Ok(Ok(()));
    }
    let sample =
        measured.into_iter().fold(Sample::new(), |sample, attribute| sample.with(&attribute.name, attribute.value));
    Ok(sent(sample.send()))
}

/// What is said of an alert: a text, or one of a table such as `{ errmsg = … }`.
fn details_of(details: &LuaValue, id: &str) -> mlua::Result<Option<String>> {
    let LuaValue::Table(details) = details else { return Ok(None) };
    let own: LuaValue = details.get(id)?;
    let text = match &own {
        LuaValue::Table(table) => match table.get::<LuaValue>("errmsg")? {
            LuaValue::Nil => json_of(&own, 0).ok().map(|json| json.to_string()),
            message => text_of(&message),
        },
        other => text_of(other),
    };
    Ok(text)
}

/// What does not fit the manifest is told by the host, and no error to a script.
fn sent(result: Result<(), SendError>) -> Outcome<()> {
    match result {
        Ok(()) | Err(SendError::Rejected(_)) => Ok(()),
        Err(SendError::RateLimited) => Err(Failure("rate_limited", "sends more often than its limit allows".into())),
        Err(SendError::TooLarge(most)) => Err(Failure("too_large", format!("expected at most {most} bytes"))),
        Err(SendError::InvalidTime) => Err(Failure("failed", "the clock of the gateway is wrong".into())),
    }
}

fn level_of(severity: &str) -> Level {
    match severity {
        "debug" => Level::Debug,
        "warning" => Level::Warning,
        "error" => Level::Error,
        _ => Level::Info,
    }
}

/// Where a transaction goes.
struct Place {
    line: String,
    unit: i64,
    register: i64,
}

fn transact(units: &Units, place: &Place, operation: &str, given: &LuaValue, timeout: f64) -> Outcome<Vec<u16>> {
    let invalid = |text: String| Failure("invalid_argument", text);
    let unit =
        u8::try_from(place.unit).map_err(|_| invalid(format!("expected a unit of 0 to 255, found {}", place.unit)))?;
    let register = u16::try_from(place.register)
        .map_err(|_| invalid(format!("expected a register of 0 to 65535, found {}", place.register)))?;
    let mut units = units.borrow_mut();
    let key = (place.line.clone(), unit);
    if !units.contains_key(&key) {
        units.insert(key.clone(), Unit::open(&place.line, unit).map_err(modbus_failure)?);
    }
    let Some(unit) = units.get(&key) else { return Ok(Vec::new()) };
    unit.set_timeout(timeout).map_err(modbus_failure)?;
    let count = || match given {
        LuaValue::Integer(count) => {
            u16::try_from(*count).map_err(|_| invalid(format!("expected a count of 1 to 2000, found {count}")))
        }
        other => Err(invalid(format!("expected a count, found a {}", other.type_name()))),
    };
    let words = || -> Outcome<Vec<u16>> {
        let LuaValue::Table(table) = given else { return Err(invalid("expected values".into())) };
        let values = table.sequence_values::<i64>();
        values
            .map(|value| {
                let value = value.map_err(|error| invalid(error.to_string()))?;
                // Negative numbers are meant as two's complement.
                u16::try_from(value)
                    .or_else(|_| i16::try_from(value).map(i16::cast_unsigned))
                    .map_err(|_| invalid(format!("expected values of 16 bits, found {value}")))
            })
            .collect()
    };
    let bits = || words().map(|words| words.into_iter().map(|word| word != 0).collect::<Vec<bool>>());
    let first = |words: Vec<u16>| words.first().copied().unwrap_or_default();
    let of_bits = |bits: Vec<bool>| bits.into_iter().map(u16::from).collect();
    let nothing = |()| Vec::new();
    let result = match operation {
        "read_coils" => unit.read_coils(register, count()?).map(of_bits),
        "read_discrete_inputs" => unit.read_discrete_inputs(register, count()?).map(of_bits),
        "read_holdings" => unit.read_holding_registers(register, count()?),
        "read_inputs" => unit.read_input_registers(register, count()?),
        "write_coil" => unit.write_coil(register, first(words()?) != 0).map(nothing),
        "write_holding" => unit.write_register(register, first(words()?)).map(nothing),
        "write_coils" => unit.write_coils(register, &bits()?).map(nothing),
        _ => unit.write_registers(register, &words()?).map(nothing),
    };
    result.map_err(modbus_failure)
}

fn modbus_failure(error: ModbusError) -> Failure {
    match error {
        ModbusError::NotGranted(text) => Failure("not_granted", text),
        ModbusError::TimedOut => Failure("timeout", "timeout".into()),
        ModbusError::DeviceException(code) => Failure("exception", format!("modbus exception {code}")),
        ModbusError::InvalidResponse(text) => Failure("invalid_response", text),
        ModbusError::Unavailable(text) => Failure("not_ready", text),
        ModbusError::Busy => Failure("busy", "the line is busy".into()),
        ModbusError::InvalidArgument(text) => Failure("invalid_argument", text),
    }
}
