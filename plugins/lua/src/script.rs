//! A Lua state with a blueprint's scripts in it, and the calls into it.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Instant;

use mlua::chunk::{Chunk, ChunkMode};
use mlua::{Function, Lua, LuaOptions, MultiValue, StdLib, Table, Value as LuaValue};
use sandgate_driver::{Attribute, Command, CommandError, Error, TimerId, files};
use serde_json::{Map, Value as Json};

use crate::about::About;
use crate::convert::{self, attributes, lua_of};
use crate::deadline::Deadline;
use crate::{host, require};

/// A script that wants more gets an error of Lua, and not a trap.
const MEMORY: usize = 24 << 20;

/// Functions of Lua's own that reach outside, or could be told apart from Enapter's.
const CLOSED: [(&str, &[&str]); 1] =
    [("os", &["execute", "exit", "getenv", "remove", "rename", "setlocale", "tmpname"])];

/// The API as scripts see it, by the names under which it is loaded.
const MODULES: [(&str, &str); 12] = [
    ("base", include_str!("lua/base.lua")),
    ("configuration", include_str!("lua/configuration.lua")),
    ("http", include_str!("lua/http.lua")),
    ("inspect", include_str!("lua/inspect.lua")),
    ("json", include_str!("lua/json.lua")),
    ("led", include_str!("lua/led.lua")),
    ("modbus", include_str!("lua/modbus.lua")),
    ("ports", include_str!("lua/ports.lua")),
    ("rocks", include_str!("lua/rocks.lua")),
    ("storage", include_str!("lua/storage.lua")),
    ("system", include_str!("lua/system.lua")),
    ("ucm", include_str!("lua/ucm.lua")),
];
const GLOBALS: &str = include_str!("lua/globals.lua");

/// See the module documentation.
pub struct Script {
    lua: Lua,
    about: Rc<About>,
    host: Table,
    deadline: Deadline,
    timer: Function,
    command: Function,
}

/// Each script of the driver that is no Lua, with line and reason.
#[cfg(any(target_arch = "wasm32", test))]
pub fn problems() -> Vec<String> {
    let Ok(lua) = Lua::new_with(StdLib::NONE, LuaOptions::new()) else { return vec!["Lua does not start".into()] };
    let scripts = files::names().into_iter().filter(|name| name.ends_with(".lua"));
    let loaded = scripts.filter_map(|name| {
        let bytes = files::read(&name)?;
        chunk(&lua, &name, &bytes).into_function().err()
    });
    loaded.map(|error| first_line(&error)).collect()
}

/// A file as something to run. A first line such as `#!/usr/bin/lua` is none of Lua.
pub fn chunk<'a>(lua: &Lua, name: &str, bytes: &'a [u8]) -> Chunk<'a> {
    let text: Cow<'a, [u8]> = match bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes) {
        line if line.starts_with(b"#") => [b"--", line].concat().into(),
        text => text.into(),
    };
    lua.load(text.into_owned()).set_name(format!("@{name}")).set_mode(ChunkMode::Text)
}

/// What went wrong, without the trace.
fn first_line(error: &mlua::Error) -> String {
    let text = match error {
        mlua::Error::CallbackError { cause, .. } => return first_line(cause),
        mlua::Error::RuntimeError(text) | mlua::Error::MemoryError(text) => text.clone(),
        mlua::Error::SyntaxError { message, .. } => message.clone(),
        other => other.to_string(),
    };
    text.split("\nstack traceback:").next().unwrap_or_default().trim().to_owned()
}

fn failed(error: &mlua::Error) -> Error {
    Error::from(first_line(error))
}

impl Script {
    /// Makes a state, runs the scripts, and begins.
    pub fn load(about: &About, configuration: &str) -> Result<Script, Error> {
        Script::new(about, configuration).map_err(|error| failed(&error))
    }

    fn new(about: &About, configuration: &str) -> mlua::Result<Script> {
        let about = Rc::new(about.clone());
        let libraries = StdLib::COROUTINE | StdLib::TABLE | StdLib::OS | StdLib::STRING | StdLib::UTF8 | StdLib::MATH;
        let lua = Lua::new_with(libraries, LuaOptions::new())?;
        lua.set_memory_limit(MEMORY)?;
        for (library, names) in CLOSED {
            let library: Table = lua.globals().get(library)?;
            for name in names {
                library.set(*name, LuaValue::Nil)?;
            }
        }
        // The target has no clock of the processor.
        let begin = Instant::now();
        let clock = lua.create_function(move |_, ()| Ok(begin.elapsed().as_secs_f64()))?;
        lua.globals().get::<Table>("os")?.set("clock", clock)?;
        for name in ["dofile", "loadfile"] {
            lua.globals().set(name, LuaValue::Nil)?;
        }
        let deadline = Deadline::watch(&lua)?;
        deadline.begin();
        let host = host::table(&lua, &about, &deadline)?;
        host.set("configuration", lua_of(&lua, &json(configuration))?)?;
        let source = lua.create_function(|lua, name: String| {
            let (name, text) = MODULES
                .iter()
                .find(|(own, _)| *own == name)
                .ok_or_else(|| mlua::Error::runtime(format!("no module {name}")))?;
            lua.load(*text).set_name(format!("={name}")).into_function()
        })?;
        let about_table = lua_of(&lua, &serde_json::to_value(&*about).unwrap_or_default())?;
        let (entry, library): (Table, Function) =
            lua.load(GLOBALS).set_name("=globals").call((host.clone(), about_table, source))?;
        require::install(&lua, &about.main, library)?;
        let main = files::read(&about.main)
            .ok_or_else(|| mlua::Error::runtime(format!("the driver has no file {}", about.main)))?;
        chunk(&lua, &about.main, &main).call::<()>(())?;
        entry.get::<Function>("begin")?.call::<()>(())?;
        let (timer, command) = (entry.get("timer")?, entry.get("command")?);
        Ok(Script { lua, about, host, deadline, timer, command })
    }

    /// A timer is due.
    pub fn timer(&self, timer: TimerId) -> Result<(), Error> {
        self.deadline.begin();
        self.timer.call::<()>(timer).map_err(|error| failed(&error))
    }

    /// Carries out a command.
    pub fn command(&self, command: &Command) -> Result<Vec<Attribute>, CommandError> {
        self.deadline.begin();
        let arguments: Json = command.read()?;
        let run = || -> mlua::Result<Result<Vec<Attribute>, CommandError>> {
            let arguments = lua_of(&self.lua, &arguments)?;
            let mut results = self.command.call::<MultiValue>((command.name.as_str(), arguments))?;
            let (is_done, result) = (results.pop_front(), results.pop_front().unwrap_or(LuaValue::Nil));
            Ok(match is_done {
                Some(LuaValue::Boolean(true)) => Ok(self.result(&result)?),
                Some(LuaValue::Boolean(false)) => {
                    Err(CommandError::Failed(convert::text_of(&result).unwrap_or_default()))
                }
                _ => Err(CommandError::Unsupported(format!("the script has no handler for {}", command.name))),
            })
        };
        run().unwrap_or_else(|error| Err(CommandError::Failed(first_line(&error))))
    }

    /// What a handler gives: the fields of a table, or one value.
    fn result(&self, result: &LuaValue) -> mlua::Result<Vec<Attribute>> {
        match result {
            LuaValue::Nil => Ok(Vec::new()),
            LuaValue::Table(table) if table.raw_len() == 0 => attributes(table, &self.about),
            other => {
                let value = self.lua.create_table()?;
                value.raw_set("result", other)?;
                attributes(&value, &self.about)
            }
        }
    }

    /// Takes a new configuration and tells the script which groups have changed.
    pub fn configure(&self, configuration: &str) -> Result<(), Error> {
        self.deadline.begin();
        let write = || -> mlua::Result<()> {
            let before = convert::json_of(&self.host.get::<LuaValue>("configuration")?, 0).unwrap_or_default();
            let now = json(configuration);
            self.host.set("configuration", lua_of(&self.lua, &now)?)?;
            let all: BTreeSet<&String> = groups(&now).chain(groups(&before)).collect();
            let has_changed = |name: &str| before.get(name) != now.get(name);
            let changed: Vec<&str> = all.into_iter().map(String::as_str).filter(|name| has_changed(name)).collect();
            match self.host.get::<Option<Function>>("configuration_written")? {
                Some(written) => written.call(changed),
                None => Ok(()),
            }
        };
        write().map_err(|error| failed(&error))
    }
}

fn json(text: &str) -> Json {
    serde_json::from_str(text).unwrap_or_else(|_| Json::Object(Map::new()))
}

fn groups(configuration: &Json) -> impl Iterator<Item = &String> {
    configuration.as_object().into_iter().flat_map(Map::keys)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use sandgate_driver::Value;
    use sandgate_driver::can::Frame;
    use sandgate_driver::logging::Level;
    use sandgate_driver::modbus::ModbusError;
    use sandgate_driver::testing::{FakeHost, command};
    use serde_json::json;

    use super::*;
    use crate::about::{Api, Kind};

    fn about(api: Api) -> About {
        let types = [("names".to_owned(), Kind::Texts), ("tree".to_owned(), Kind::Json)].into();
        let required = [("connection".to_owned(), vec!["address".to_owned()])].into();
        About { api, main: "main.lua".into(), line: "rs485".into(), types, required }
    }

    /// A host with these files, and a script at work in it.
    fn begin(api: Api, files: &[(&str, &str)]) -> (FakeHost, Script) {
        begin_on(api, files, |_| {})
    }

    /// The same where something has to be there from the start.
    fn begin_on(api: Api, files: &[(&str, &str)], prepare: impl FnOnce(&FakeHost)) -> (FakeHost, Script) {
        let host = FakeHost::new();
        prepare(&host);
        files.iter().for_each(|(name, text)| host.file(name, text.as_bytes()));
        let script = Script::load(&about(api), r#"{"connection": {"address": 3}}"#);
        (host, script.unwrap_or_else(|error| panic!("{error:?}")))
    }

    /// The text of an error.
    fn words(error: impl std::fmt::Debug) -> String {
        format!("{error:?}")
    }

    fn run(script: &Script, name: &str, arguments: Json) -> Result<Vec<Attribute>, CommandError> {
        script.command(&command(name, arguments))
    }

    #[test]
    fn a_script_of_the_first_generation_reads_a_line_and_tells_errors_by_numbers() {
        let (host, script) = begin(
            Api::V1,
            &[(
                "main.lua",
                "rs485.init(9600, 8, 'N', 1)
                 scheduler.add(1000, function()
                   local words, err = modbus.read_holdings(3, 10, 2, 1000)
                   if words then
                     enapter.send_telemetry({ value = string.unpack('>f', string.pack('>I2I2', table.unpack(words))),
                       whole = 22.0, names = {}, tree = { 1, { a = true } }, nan = 0/0, alerts = {} })
                   else
                     enapter.send_telemetry({ alerts = { 'silent' }, alert_details = { silent = { errmsg = err } } })
                     enapter.log('read: ' .. modbus.err_to_str(err), 'error', true)
                   end
                 end)",
            )],
        );
        assert_eq!(host.timers(), [(1, Duration::from_secs(1))]);
        let unit = host.modbus("rs485", 3);
        unit.holding(10, &[0x41ac, 0]);
        script.timer(1).unwrap();
        assert_eq!(host.sent("value"), Some(Value::Float(21.5)));
        assert_eq!(host.sent("whole"), Some(Value::Integer(22)));
        assert_eq!(host.sent("names"), Some(Value::TextList(Vec::new())));
        assert_eq!(host.sent("tree"), Some(Value::Json(r#"[1,{"a":true}]"#.into())));
        assert_eq!(host.sent("nan"), Some(Value::Unknown));
        assert_eq!(host.alerts(), Some(Vec::new()));
        unit.fail(Some(ModbusError::TimedOut));
        script.timer(1).unwrap();
        let alerts = host.alerts().unwrap();
        assert_eq!((alerts[0].id.as_str(), alerts[0].details.as_deref()), ("silent", Some("1")));
        assert_eq!(host.log(), [(Level::Error, "read: timeout".to_owned())]);
    }

    #[test]
    fn a_script_of_the_second_generation_has_objects_and_texts() {
        let (host, script) = begin(
            Api::V3,
            &[(
                "main.lua",
                "local line, cfg
                 function enapter.main()
                   assert(configuration.is_all_required_set('connection'))
                   cfg = configuration.read('connection')
                   line = modbus.new('port://house')
                   configuration.after_write('connection', function() cfg = configuration.read('connection') end)
                 end
                 enapter.register_command_handler('read', function(ctx, args)
                   ctx:log('reads ' .. args.reg)
                   local results, err = line:read({ { type = 'inputs', addr = cfg.address, reg = args.reg, count = 1 } })
                   if results[1].errmsg then ctx.error(results[1].errmsg) end
                   return { word = results[1].data[1] }
                 end)",
            )],
        );
        host.modbus("house", 3).input(7, &[42]);
        assert_eq!(
            run(&script, "read", json!({"reg": 7})).unwrap(),
            [Attribute { name: "word".into(), value: Value::Integer(42) }]
        );
        assert_eq!(host.command_log(), ["reads 7"]);
        host.modbus("house", 4).fail(Some(ModbusError::DeviceException(2)));
        script.configure(r#"{"connection": {"address": 4}}"#).unwrap();
        assert_eq!(run(&script, "read", json!({"reg": 7})), Err(CommandError::Failed("modbus exception 2".into())));
        assert!(matches!(run(&script, "other", json!({})), Err(CommandError::Unsupported(_))));
    }

    #[test]
    fn frames_of_a_bus_go_to_handlers_monitors_and_queues() {
        let frame = |id, data: &[u8]| Frame { id, extended: id > 0x7ff, data: data.to_vec() };
        let (host, script) = begin_on(
            Api::V1,
            &[(
                "main.lua",
                "can.init(250, function(id, data)
                   if id == 0x99 then error('broken', 0) end
                   enapter.log(('%x %d'):format(id, data:byte(1)))
                 end)
                 scheduler.add(1000, function() enapter.log(tostring(can.send(0x18ff50e5, 'xy'))) end)",
            )],
            |host| host.can("can", &[]),
        );
        host.can("can", &[frame(0x99, &[0]), frame(0x351, &[7]), frame(0x18ff_50e5, &[8])]);
        script.timer(1).unwrap();
        script.timer(2).unwrap();
        let log: Vec<String> = host.log().into_iter().map(|(_, text)| text).collect();
        assert_eq!(log, ["broken", "351 7", "18ff50e5 8", "0"]);
        assert_eq!(host.frames("can"), [frame(0x18ff_50e5, b"xy")]);
        let (host, script) = begin_on(
            Api::V3,
            &[(
                "main.lua",
                "local bus = can.new('port://can-1')
                 local monitor, queue = bus:monitor({ 0x351, 0x352 }), bus:queue({ 0x352 }, 10, can.DROP_OLDEST)
                 scheduler.add(1000, function()
                   local found = monitor:pop({ 0x352, 0x351, 0x353 })
                   enapter.log(('%d %d %s'):format(found[1]:byte(1), found[2]:byte(1), tostring(found[3])))
                   assert(monitor:pop({ 0x352 })[1] == nil)
                   enapter.log(('%d %d'):format(#queue:pop(0x352), queue:drops_count(0x352)))
                   assert(bus:send(1, 'x') == nil)
                   enapter.log(select(2, can.new('port://can-9'):monitor({ 1 })))
                 end)",
            )],
            |host| host.can("can-1", &[]),
        );
        host.can("can-1", &[frame(0x351, &[1]), frame(0x352, &[2]), frame(0x352, &[3])]);
        script.timer(1).unwrap();
        let log: Vec<String> = host.log().into_iter().map(|(_, text)| text).collect();
        assert_eq!(log[..2], ["3 1 nil", "2 0"]);
        assert!(log[2].contains("can-9"), "{log:?}");
    }

    #[test]
    fn relays_contacts_and_sensors_have_the_names_of_their_ports() {
        let (host, script) = begin(
            Api::V1,
            &[(
                "main.lua",
                "function tell(...) local t = table.pack(...) for i = 1, t.n do t[i] = tostring(t[i]) end enapter.log(table.concat(t, ' ')) end
                 scheduler.add(1000, function()
                   tell(rl6.close(2), rl6.get(2), rl6.impulse(2, 500), rl6.open(3))
                   tell(di7.is_closed(1))
                   tell(di7.is_opened(1))
                   tell(di7.read_counter(1))
                   tell(di7.set_counter(1, 3), di7.set_debounce(10), di7.err_to_str((select(2, di7.is_closed(9)))))
                   tell(ai4.read_volts(1))
                   tell(rl.close(), rl.is_closed())
                 end)",
            )],
        );
        for name in ["rl-1", "rl-2"] {
            host.pin(name);
        }
        let contact = host.pin("di-1");
        contact.set(true).count(7);
        host.pin("ai-1").value(3.3);
        script.timer(1).unwrap();
        let log: Vec<String> = host.log().into_iter().map(|(_, text)| text).collect();
        assert_eq!(log, ["0 true 0 3", "true 0", "false 0", "7 60 0", "0 0 not granted", "3.3 0", "0 true 0"]);
        assert_eq!(host.pin("rl-2").deeds(), ["on", "pulse of 500 ms"]);
        let (host, script) = begin(
            Api::V3,
            &[(
                "main.lua",
                "local valve, door, level = relay.new('port://rl-1'), digitalin.new('port://di-1'), analogin.new('port://ai-1')
                 scheduler.add(1000, function()
                   assert(valve:close() == nil and valve:is_closed() == true and valve:impulse(20) == nil)
                   assert(door:get_state() == digitalin.HIGH and door:read_counter() == 7 and door:reset_counter() == nil)
                   assert(door:read_counter() == 0)
                   enapter.log(tostring(level:get_amps()))
                   enapter.log(select(2, relay.new('rl-1')))
                   enapter.log(relay.new('port://rl-9'):open())
                 end)",
            )],
        );
        host.pin("rl-1");
        host.pin("di-1").set(true).count(7);
        host.pin("ai-1").value(0.012);
        script.timer(1).unwrap();
        let log: Vec<String> = host.log().into_iter().map(|(_, text)| text).collect();
        assert_eq!(log[..2], ["0.012", "expected a connection such as port://rl-1, found rl-1"]);
        assert!(log[2].contains("rl-9"), "{log:?}");
    }

    #[test]
    fn serial_ports_take_bytes_and_give_them_back() {
        let answers = |asked: &[u8]| if asked == b"W\r" { b"ST,12.5\r\n\x00\xff".to_vec() } else { Vec::new() };
        let (host, script) = begin(
            Api::V1,
            &[(
                "main.lua",
                "rs232.init(19200, 8, 'N', 1)
                 scheduler.add(1000, function()
                   enapter.log(tostring(rs232.send('W\\r')))
                   local data, err = rs232.receive(1000)
                   enapter.log(#data .. ' ' .. data:match('%d+%.%d') .. ' ' .. data:byte(-1) .. ' ' .. err)
                   rs232.send('X\\r')
                   data, err = rs232.receive(1000)
                   enapter.log(tostring(data) .. ' ' .. rs232.err_to_str(err))
                 end)",
            )],
        );
        host.serial("rs232", answers);
        script.timer(1).unwrap();
        let log: Vec<String> = host.log().into_iter().map(|(_, text)| text).collect();
        let warning = "rs232 is set to 9600, 8, N, 1 by the gateway, and the script expects 19200, 8, N, 1";
        assert_eq!(log, [warning, "0", "11 12.5 255 0", "nil timeout"]);
        let (host, script) = begin(
            Api::V3,
            &[(
                "main.lua",
                "local line = serial.new('port://scale-1')
                 assert(select(2, serial.new('tcp://x')):match('expected a connection'))
                 scheduler.add(1000, function()
                   local a, b = line:transaction(function()
                     assert(line:write('W\\r') == nil)
                     return line:read(2, 1000), line:read(5, 1000)
                   end)
                   enapter.log(a .. b)
                   assert(line:flush() == nil)
                   enapter.log(select(2, line:read(1, 1000)))
                   enapter.log(select(2, line:transaction(function() error('broken', 0) end)))
                 end)",
            )],
        );
        host.serial("scale-1", answers);
        script.timer(1).unwrap();
        let log: Vec<String> = host.log().into_iter().map(|(_, text)| text).collect();
        assert_eq!(log, ["ST,12.5", "timeout", "broken"]);
    }

    #[test]
    fn wrong_arguments_and_failed_writes_are_told_in_the_way_of_each_generation() {
        let calls = "for _, write in ipairs({ { 300, 0, 1 }, { 3, 0, nil }, { 3, 0, 70000 }, { 3, 5, 1.9 }, { 3, 6, '7' }, { 3, 7, -1 } }) do
                       tell(write_holding(write[1], write[2], write[3]))
                     end
                     tell(write_many(3, 8, { true, 2 }))
                     tell(select(2, read(3, nil, 1)))";
        let v1 = "function tell(it) enapter.log(tostring(it), true) end
                  function write_holding(...) return modbus.write_holding(...) end
                  function write_many(...) return modbus.write_multiple_holdings(...) end
                  function read(...) return modbus.read_holdings(...) end\n";
        let v3 = "local line = modbus.new('port://rs485')
                  function tell(it) enapter.log(tostring(it)) end
                  function write_holding(...) return line:write_holding(...) end
                  function write_many(...) return line:write_multiple_holdings(...) end
                  function read(...) return line:read_holdings(...) end\n";
        let run = |api, given: &str| {
            let main = format!("{given}scheduler.add(1, function() {calls} end)");
            let (host, script) = begin(api, &[("main.lua", &main)]);
            let unit = host.modbus("rs485", 3);
            unit.holding(5, &[0; 5]);
            script.timer(1).unwrap();
            (host.log().into_iter().map(|(_, text)| text).collect::<Vec<_>>(), unit.writes())
        };
        let written = [(5, vec![1]), (6, vec![7]), (7, vec![65535]), (8, vec![1, 2])];
        let (told, writes) = run(Api::V1, v1);
        assert_eq!(told, ["2", "2", "2", "0", "0", "0", "0", "2"]);
        assert_eq!(writes, written);
        let (told, writes) = run(Api::V3, v3);
        assert_eq!(told[0], "expected a unit of 0 to 255, found 300");
        assert_eq!(
            told[1..4],
            ["expected a value of 0 to 65535, found nil", "expected a value of 0 to 65535, found 70000", "nil"]
        );
        assert_eq!(told[7], "expected a register of 0 to 65535, found nil");
        assert_eq!(writes, written);
    }

    #[test]
    fn a_device_that_refuses_is_told_for_writes_as_for_reads() {
        let (host, script) = begin(
            Api::V3,
            &[(
                "main.lua",
                "line = modbus.new('port://rs485')
            enapter.register_command_handler('set', function(ctx)
              local err = line:write_holding(3, 0, 1)
              if err then ctx.error(err) end
            end)
            enapter.register_command_handler('alert', function() enapter.send_telemetry({ alerts = 'silent' }) end)",
            )],
        );
        host.modbus("rs485", 3).fail(Some(ModbusError::DeviceException(4)));
        assert_eq!(run(&script, "set", json!({})), Err(CommandError::Failed("modbus exception 4".into())));
        run(&script, "alert", json!({})).unwrap();
        assert_eq!(host.alerts().unwrap()[0].id, "silent");
    }

    #[test]
    fn parts_of_other_libraries_are_there() {
        let (host, _) = begin(
            Api::V1,
            &[(
                "main.lua",
                "local url = require('net.url').parse('http://a.b/c') / 'd'
                 enapter.log(tostring(url:setQuery({ id = 'x y', a = 1 })))
                 enapter.log(require('hashings.sha256'):new('abc'):hexdigest():lower():sub(-8))",
            )],
        );
        let lines: Vec<String> = host.log().into_iter().map(|(_, text)| text).collect();
        assert_eq!(lines, ["http://a.b/c/d?a=1&id=x+y", "f20015ad"]);
    }

    #[test]
    fn configuration_by_commands_is_kept_in_storage() {
        let (host, script) = begin(
            Api::V1,
            &[(
                "main.lua",
                "config = require('enapter.ucm.config')
                 config.init({ ip = { type = 'string', required = true }, port = { type = 'number', default = 80 },
                               fast = { type = 'boolean' } },
                             { before_write = function(args) if args.ip == '' then return 'no ip' end end })",
            )],
        );
        let written = json!({"ip": "10.0.0.7", "fast": true});
        assert_eq!(run(&script, "write_configuration", written).unwrap(), []);
        assert_eq!(host.stored("ip"), Some(b"10.0.0.7".to_vec()));
        let read = run(&script, "read_configuration", json!({})).unwrap();
        let names: Vec<_> = read.iter().map(|it| (it.name.as_str(), it.value.clone())).collect();
        let expected =
            [("fast", Value::Boolean(true)), ("ip", Value::Text("10.0.0.7".into())), ("port", Value::Integer(80))];
        assert_eq!(names, expected);
        for wrong in [json!({}), json!({"ip": ""})] {
            assert!(matches!(run(&script, "write_configuration", wrong), Err(CommandError::Failed(_))));
        }
    }

    #[test]
    fn what_goes_wrong_names_file_and_line() {
        let host = FakeHost::new();
        host.file("main.lua", b"local x = nil\nx.y = 1");
        let error = Script::load(&about(Api::V1), "{}").map(drop).unwrap_err();
        assert!(words(error).contains("main.lua:2: attempt to index a nil value"));
        host.file("main.lua", b"require('nothing.here')");
        let error = words(Script::load(&about(Api::V1), "{}").map(drop).unwrap_err());
        assert!(error.contains("module 'nothing.here' not found") && error.contains("nothing/here.lua"), "{error}");
        host.file("broken.lua", b"x = = 1");
        let found = problems();
        assert!(found.len() == 1 && found[0].starts_with("broken.lua:1:"), "{found:?}");
    }

    #[test]
    fn own_files_are_required_from_where_they_are() {
        let (host, _) = begin(
            Api::V1,
            &[
                (
                    "main.lua",
                    "enapter.log(require('./beside') .. require('lib.deep') .. require('rock') .. require('beside'))",
                ),
                ("beside.lua", "count = (count or 0) + 1; return 'a' .. count"),
                ("lib/deep.lua", "return 'b'"),
                ("lua_modules/share/lua/5.3/rock.lua", "return 'c'"),
            ],
        );
        // By another name it is another module, as in Lua itself.
        assert_eq!(host.log()[0].1, "a1bca2");
    }

    #[test]
    fn json_is_what_it_is_elsewhere() {
        let (host, _) = begin(
            Api::V1,
            &[(
                "main.lua",
                "local value = json.decode('{\"a\":[1,2.5,null,\"x\"],\"b\":{}}')
                 enapter.log(math.type(value.a[1]) .. value.a[2] .. tostring(value.a[3]) .. value.a[4])
                 enapter.log(json.encode({ b = { 1, 2 }, a = 'x\"', c = 3.0 }))
                 enapter.log(tostring(pcall(json.decode, '{')))
                 local round = {}; round.round = round
                 enapter.log(tostring(pcall(json.encode, round)))
                 enapter.log(inspect({ 1, 'two', k = { x = true }, [10] = 'ten' }))",
            )],
        );
        let lines: Vec<String> = host.log().into_iter().map(|(_, text)| text).collect();
        assert_eq!(lines[..2], ["integer2.5nilx", r#"{"a":"x\"","b":[1,2],"c":3}"#]);
        assert_eq!(lines[2..4], ["false", "false"]);
        assert_eq!(lines[4], "{ 1, \"two\",\n  [10] = \"ten\",\n  k = {\n    x = true\n  }\n}");
    }
}
