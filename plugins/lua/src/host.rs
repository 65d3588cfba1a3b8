//! What Enapter's API is made of: functions over the driver contract, for the
//! scripts in `lua/` alone. Failures come as a kind and a text.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::rc::Rc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use mlua::{Lua, LuaString, Table, Value as LuaValue};
use sandgate_driver::alerts::{self, Alert};
use sandgate_driver::can::{CanError, Channel, Frame, Monitor, Overflow, Queue};
use sandgate_driver::http::{self, Header, HttpError, Request};
use sandgate_driver::io::{Analog, Input, IoError, Output};
use sandgate_driver::logging::{self, Level};
use sandgate_driver::modbus::{ModbusError, Unit};
use sandgate_driver::serial::{Parity, Port, SerialError};
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

/// The open serial ports, by name.
type Ports = Rc<RefCell<HashMap<String, Port>>>;

/// The silence that ends what a script receives: USB adapters hold bytes back for 16 ms.
const SILENCE: f64 = 30.0;
/// The highest id of 11 bits.
const BASE_ID: u32 = 0x7ff;
/// Frames that a script gets at once.
const MOST_FRAMES: u32 = 1000;
/// What a script receives at once.
const MOST_BYTES: u16 = 4096;

/// The table that the scripts of the API get.
pub fn table(lua: &Lua, about: &Rc<About>, deadline: &Deadline) -> mlua::Result<Table> {
    let host = lua.create_table()?;
    values(lua, &host, about)?;
    time(lua, &host, deadline)?;
    kept(lua, &host)?;
    field(lua, &host, deadline)?;
    serial(lua, &host, deadline)?;
    pins(lua, &host)?;
    buses(lua, &host)?;
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
    type Transaction = (String, String, LuaValue, LuaValue, LuaValue, f64);
    let units = Units::default();
    let (open, own) = (Rc::clone(&units), deadline.clone());
    let read = move |lua: &Lua, (line, operation, unit, register, count, timeout): Transaction| {
        let place = Place { line: &line, unit: &unit, register: &register, timeout: patience(timeout, &own) };
        let words = place.read(&open, &operation, &count).map(|words| {
            let table = lua.create_sequence_from(words)?;
            Ok::<_, mlua::Error>(LuaValue::Table(table))
        });
        Ok(match words {
            Ok(table) => answer(Ok(table?)),
            Err(failure) => answer(Err(failure)),
        })
    };
    host.set("modbus_read", lua.create_function(read)?)?;
    let own = deadline.clone();
    let write = move |_: &Lua, (line, operation, unit, register, values, timeout): Transaction| {
        let place = Place { line: &line, unit: &unit, register: &register, timeout: patience(timeout, &own) };
        Ok(status(place.write(&units, &operation, &values)))
    };
    host.set("modbus_write", lua.create_function(write)?)?;
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

/// Serial ports.
fn serial(lua: &Lua, host: &Table, deadline: &Deadline) -> mlua::Result<()> {
    fn with<T>(ports: &Ports, name: &str, act: impl FnOnce(&Port) -> Result<T, SerialError>) -> Outcome<T> {
        let mut ports = ports.borrow_mut();
        let port = match ports.entry(name.to_owned()) {
            Entry::Occupied(port) => port.into_mut(),
            Entry::Vacant(place) => place.insert(Port::open(name).map_err(serial_failure)?),
        };
        act(port).map_err(serial_failure)
    }
    let ports = Ports::default();
    let own = Rc::clone(&ports);
    let settings = move |_: &Lua, name: String| {
        Ok(with(&own, &name, |port| Ok(port.settings())).ok().map(|set| {
            let parity = match set.parity {
                Parity::None => "N",
                Parity::Even => "E",
                Parity::Odd => "O",
            };
            format!("{}, {}, {parity}, {}", set.baud_rate, set.data_bits, set.stop_bits)
        }))
    };
    host.set("serial_settings", lua.create_function(settings)?)?;
    let own = Rc::clone(&ports);
    let write = move |_: &Lua, (name, bytes, is_fresh): (String, LuaString, bool)| {
        let written = with(&own, &name, |port| {
            if is_fresh {
                port.discard()?;
            }
            port.write(&bytes.as_bytes())
        });
        Ok(status(written))
    };
    host.set("serial_write", lua.create_function(write)?)?;
    let (own, time) = (Rc::clone(&ports), deadline.clone());
    let read = move |lua: &Lua, (name, count, timeout, is_exact): (String, LuaValue, f64, bool)| {
        let (count, patience) = match within(&count, "a count", MOST_BYTES) {
            Ok(count) => (u32::from(count), patience(timeout, &time)),
            Err(failure) => return Ok(answer(Err(failure))),
        };
        let bytes = with(&own, &name, |port| match is_exact {
            true => port.read_exact(count, patience),
            false => port.read_frame(SILENCE, count, patience),
        });
        let text = bytes.map(|bytes| lua.create_string(bytes).map(LuaValue::String));
        Ok(match text {
            Ok(text) => answer(Ok(text?)),
            Err(failure) => answer(Err(failure)),
        })
    };
    host.set("serial_read", lua.create_function(read)?)?;
    let own = Rc::clone(&ports);
    let discard = move |_: &Lua, name: String| Ok(status(with(&own, &name, Port::discard)));
    host.set("serial_discard", lua.create_function(discard)?)?;
    let release = move |_: &Lua, name: String| {
        let released = with(&ports, &name, |port| {
            port.release();
            Ok(())
        });
        Ok(status(released))
    };
    host.set("serial_release", lua.create_function(release)?)
}

/// CAN buses: sending, and inboxes by number.
fn buses(lua: &Lua, host: &Table) -> mlua::Result<()> {
    enum Inbox {
        Latest(Monitor),
        All(Queue),
    }
    type Channels = Rc<RefCell<HashMap<String, Channel>>>;
    fn with<T>(channels: &Channels, name: &str, act: impl FnOnce(&Channel) -> Result<T, CanError>) -> Outcome<T> {
        let failure = |error| match error {
            CanError::NotGranted(text) => Failure("not_granted", text),
            CanError::Unavailable(text) => Failure("no_connection", text),
            CanError::Busy => Failure("not_ready", "the bus is busy".into()),
            CanError::InvalidArgument(text) => Failure("invalid_argument", text),
        };
        let mut channels = channels.borrow_mut();
        let channel = match channels.entry(name.to_owned()) {
            Entry::Occupied(channel) => channel.into_mut(),
            Entry::Vacant(place) => place.insert(Channel::open(name).map_err(failure)?),
        };
        act(channel).map_err(failure)
    }
    let channels = Channels::default();
    let own = Rc::clone(&channels);
    let send = move |_: &Lua, (name, id, data): (String, LuaValue, LuaValue)| {
        let Some(id) = whole(&id).and_then(|id| u32::try_from(id).ok()) else {
            return Ok(status(Err(invalid("expected an id of up to 29 bits".into()))));
        };
        // Some scripts give a single number.
        let data = match &data {
            LuaValue::String(text) => text.as_bytes().to_vec(),
            other => whole(other).and_then(|byte| u8::try_from(byte).ok()).into_iter().collect(),
        };
        let frame = Frame { id, extended: id > BASE_ID, data };
        Ok(status(with(&own, &name, |channel| channel.send(&frame))))
    };
    host.set("can_send", lua.create_function(send)?)?;
    let inboxes: Rc<RefCell<Vec<Inbox>>> = Rc::default();
    let own = Rc::clone(&inboxes);
    // A size of 0 asks for the latest of each id.
    let subscribe = move |_: &Lua, (name, ids, size, is_newest_dropped): (String, Vec<u32>, u32, bool)| {
        let overflow = if is_newest_dropped { Overflow::DropNewest } else { Overflow::DropOldest };
        let opened = with(&channels, &name, |channel| match size {
            0 => channel.monitor(&ids).map(Inbox::Latest),
            size => channel.queue(&ids, size, overflow).map(Inbox::All),
        });
        Ok(answer(opened.map(|inbox| {
            let mut inboxes = own.borrow_mut();
            inboxes.push(inbox);
            LuaValue::Integer(i64::try_from(inboxes.len()).unwrap_or_default())
        })))
    };
    host.set("can_subscribe", lua.create_function(subscribe)?)?;
    let own = Rc::clone(&inboxes);
    let pop = move |lua: &Lua, number: usize| {
        let inboxes = own.borrow();
        let frames = match number.checked_sub(1).and_then(|place| inboxes.get(place)) {
            Some(Inbox::Latest(monitor)) => monitor.pop(),
            Some(Inbox::All(queue)) => queue.pop(MOST_FRAMES),
            None => Vec::new(),
        };
        let list = lua.create_table()?;
        for frame in frames {
            let pair = lua.create_table()?;
            pair.push(frame.id)?;
            pair.push(lua.create_string(&frame.data)?)?;
            list.push(pair)?;
        }
        Ok(list)
    };
    host.set("can_pop", lua.create_function(pop)?)?;
    let dropped = move |_: &Lua, number: usize| {
        let inboxes = inboxes.borrow();
        Ok(match number.checked_sub(1).and_then(|place| inboxes.get(place)) {
            Some(Inbox::All(queue)) => queue.dropped(),
            _ => 0,
        })
    };
    host.set("can_dropped", lua.create_function(dropped)?)
}

/// Inputs and outputs: `output`, `input` and `analog` take a name, what is asked, and a value.
fn pins(lua: &Lua, host: &Table) -> mlua::Result<()> {
    let outputs: RefCell<HashMap<String, Output>> = RefCell::default();
    let output = move |_: &Lua, (name, what, value): (String, String, LuaValue)| {
        let asked = with_pin(&outputs, &name, Output::open, |pin| match (what.as_str(), &value) {
            ("set", LuaValue::Boolean(on)) => pin.set(*on).map(|()| LuaValue::Nil),
            ("pulse", value) => pin.pulse(real(value)).map(|()| LuaValue::Nil),
            _ => pin.get().map(LuaValue::Boolean),
        });
        Ok(answer(asked))
    };
    host.set("output", lua.create_function(output)?)?;
    let inputs: RefCell<HashMap<String, Input>> = RefCell::default();
    let input = move |_: &Lua, (name, what, value): (String, String, LuaValue)| {
        let count = u64::try_from(whole(&value).unwrap_or_default()).unwrap_or_default();
        let asked = with_pin(&inputs, &name, Input::open, |pin| match what.as_str() {
            "count" => pin.count().map(|counter| LuaValue::Integer(i64::try_from(counter.count).unwrap_or(i64::MAX))),
            "since" => pin.count().map(|counter| LuaValue::Number((counter.since / 1000.0).floor())),
            "set_count" => pin.set_count(count).map(|()| LuaValue::Nil),
            "set_debounce" => pin.set_debounce(real(&value)).map(|()| LuaValue::Nil),
            _ => pin.get().map(LuaValue::Boolean),
        });
        Ok(answer(asked))
    };
    host.set("input", lua.create_function(input)?)?;
    let analogs: RefCell<HashMap<String, Analog>> = RefCell::default();
    let analog = move |_: &Lua, name: String| {
        Ok(answer(with_pin(&analogs, &name, Analog::open, |pin| pin.read().map(LuaValue::Number))))
    };
    host.set("analog", lua.create_function(analog)?)
}

/// Asks a pin, which is opened once.
fn with_pin<P, T>(
    pins: &RefCell<HashMap<String, P>>,
    name: &str,
    open: impl FnOnce(&str) -> Result<P, IoError>,
    ask: impl FnOnce(&P) -> Result<T, IoError>,
) -> Outcome<T> {
    let failure = |error| match error {
        IoError::NotGranted(text) => Failure("not_granted", text),
        IoError::Unavailable(text) => Failure("no_connection", text),
        IoError::InvalidArgument(text) => Failure("invalid_argument", text),
    };
    let mut pins = pins.borrow_mut();
    let pin = match pins.entry(name.to_owned()) {
        Entry::Occupied(pin) => pin.into_mut(),
        Entry::Vacant(place) => place.insert(open(name).map_err(failure)?),
    };
    ask(pin).map_err(failure)
}

/// A number, whichever way a script has it; none is no time at all.
fn real(value: &LuaValue) -> f64 {
    text_of(value).and_then(|text| text.trim().parse().ok()).unwrap_or(0.0)
}

fn serial_failure(error: SerialError) -> Failure {
    match error {
        SerialError::NotGranted(text) => Failure("not_granted", text),
        SerialError::TimedOut => Failure("timeout", "timeout".into()),
        SerialError::Unavailable(text) => Failure("no_connection", text),
        SerialError::Busy => Failure("not_ready", "the port is busy".into()),
        SerialError::InvalidArgument(text) => Failure("invalid_argument", text),
    }
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
    let active = match data.get::<LuaValue>(ALERTS)? {
        LuaValue::Table(active) => Some(active.sequence_values().collect::<mlua::Result<Vec<LuaValue>>>()?),
        // Some scripts give the only one without a list.
        only @ LuaValue::String(_) => Some(vec![only]),
        _ => None,
    };
    if let Some(active) = active {
        let details: LuaValue = data.get(DETAILS)?;
        let mut alerts = Vec::new();
        for id in active.iter().filter_map(text_of) {
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

/// A time-out that the call has time for.
fn patience(timeout: f64, deadline: &Deadline) -> f64 {
    timeout.clamp(1.0, deadline.longest_turn().unwrap_or(1.0))
}

/// Where a transaction goes, as a script says it.
struct Place<'a> {
    line: &'a str,
    unit: &'a LuaValue,
    register: &'a LuaValue,
    timeout: f64,
}

impl Place<'_> {
    fn read(&self, units: &Units, operation: &str, count: &LuaValue) -> Outcome<Vec<u16>> {
        let count = within(count, "a count", 2000)?;
        self.ask(units, |unit, register| {
            let of_bits = |bits: Vec<bool>| bits.into_iter().map(u16::from).collect();
            match operation {
                "read_coils" => unit.read_coils(register, count).map(of_bits),
                "read_discrete_inputs" => unit.read_discrete_inputs(register, count).map(of_bits),
                "read_inputs" => unit.read_input_registers(register, count),
                _ => unit.read_holding_registers(register, count),
            }
        })
    }

    fn write(&self, units: &Units, operation: &str, values: &LuaValue) -> Outcome<()> {
        let LuaValue::Table(values) = values else {
            return Err(invalid(format!("expected values, found {}", values.type_name())));
        };
        // Of one value that is nil the table is empty.
        let values: Vec<LuaValue> =
            (1..=values.raw_len().max(1)).map(|place| values.raw_get(place).unwrap_or(LuaValue::Nil)).collect();
        let words = values.iter().map(word).collect::<Outcome<Vec<u16>>>()?;
        let first = words.first().copied().unwrap_or_default();
        let bits: Vec<bool> = words.iter().map(|word| *word != 0).collect();
        self.ask(units, |unit, register| match operation {
            "write_coil" => unit.write_coil(register, first != 0),
            "write_holding" => unit.write_register(register, first),
            "write_coils" => unit.write_coils(register, &bits),
            _ => unit.write_registers(register, &words),
        })
    }

    /// Asks the unit, which is opened once.
    fn ask<T>(&self, units: &Units, ask: impl FnOnce(&Unit, u16) -> Result<T, ModbusError>) -> Outcome<T> {
        let number = u8::try_from(within(self.unit, "a unit", 255)?).unwrap_or(u8::MAX);
        let register = within(self.register, "a register", u16::MAX)?;
        let mut units = units.borrow_mut();
        let unit = match units.entry((self.line.to_owned(), number)) {
            Entry::Occupied(unit) => unit.into_mut(),
            Entry::Vacant(place) => place.insert(Unit::open(self.line, number).map_err(modbus_failure)?),
        };
        unit.set_timeout(self.timeout).map_err(modbus_failure)?;
        ask(unit, register).map_err(modbus_failure)
    }
}

fn invalid(text: String) -> Failure {
    Failure("invalid_argument", text)
}

/// A number without its fraction, whichever way a script has it.
#[allow(clippy::cast_possible_truncation)]
fn whole(value: &LuaValue) -> Option<i64> {
    match value {
        LuaValue::Integer(number) => Some(*number),
        LuaValue::Number(number) if number.is_finite() => Some(number.floor() as i64),
        LuaValue::Boolean(value) => Some(i64::from(*value)),
        LuaValue::String(_) => text_of(value)?.trim().parse::<f64>().ok().map(|number| number.floor() as i64),
        _ => None,
    }
}

fn within(value: &LuaValue, what: &str, most: u16) -> Outcome<u16> {
    let number = whole(value).and_then(|number| u16::try_from(number).ok()).filter(|number| *number <= most);
    number.ok_or_else(|| {
        let found = text_of(value).unwrap_or_else(|| value.type_name().to_owned());
        invalid(format!("expected {what} of 0 to {most}, found {found}"))
    })
}

/// A register; negative numbers are meant as two's complement.
fn word(value: &LuaValue) -> Outcome<u16> {
    match whole(value).map(i16::try_from) {
        Some(Ok(number)) if number < 0 => Ok(number.cast_unsigned()),
        _ => within(value, "a value", u16::MAX),
    }
}

fn modbus_failure(error: ModbusError) -> Failure {
    match error {
        ModbusError::NotGranted(text) => Failure("not_granted", text),
        ModbusError::TimedOut => Failure("timeout", "timeout".into()),
        ModbusError::DeviceException(code) => Failure("exception", format!("modbus exception {code}")),
        ModbusError::InvalidResponse(text) => Failure("invalid_response", text),
        ModbusError::Unavailable(text) => Failure("no_connection", text),
        ModbusError::Busy => Failure("not_ready", "the line is busy".into()),
        ModbusError::InvalidArgument(text) => Failure("invalid_argument", text),
    }
}
