//! `require`: the driver's own files, and the libraries of the runtime.

use mlua::{Lua, Value as LuaValue};
use sandgate_driver::files;

/// The files in which a module may be, in the order of looking.
pub fn candidates(module: &str) -> Vec<String> {
    let plain = module.trim_start_matches("./");
    let plain = plain.strip_suffix(".lua").unwrap_or(plain);
    let path = plain.replace('.', "/");
    ["", "src/", "lua/", "lua_modules/", "lua_modules/share/lua/5.3/"]
        .iter()
        .flat_map(|folder| [format!("{folder}{path}.lua"), format!("{folder}{path}/init.lua")])
        .collect()
}

/// The file of a module: beside whoever asks, or in a place of its own.
fn find(module: &str, folder: &str) -> Option<(String, Vec<u8>)> {
    let own = candidates(module).into_iter().map(|name| format!("{folder}{name}"));
    own.chain(candidates(module)).find_map(|name| files::read(&name).map(|bytes| (name, bytes)))
}

/// Lets scripts require their own files and these libraries.
pub fn install(lua: &Lua, main: &str, library: mlua::Function) -> mlua::Result<()> {
    let folder = main.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
    let loaded = lua.create_table()?;
    let require = lua.create_function(move |lua, module: mlua::LuaString| {
        let module = String::from_utf8_lossy(&module.as_bytes()).into_owned();
        let known: LuaValue = loaded.raw_get(module.as_str())?;
        if !known.is_nil() {
            return Ok(known);
        }
        let value: LuaValue = match find(&module, &folder) {
            Some((name, bytes)) => crate::script::chunk(lua, &name, &bytes).call(module.as_str())?,
            None => library.call(module.as_str())?,
        };
        let value = if value.is_nil() { LuaValue::Boolean(true) } else { value };
        if let LuaValue::Boolean(false) = value {
            let tried = candidates(&module).join(", ");
            return Err(mlua::Error::runtime(format!(
                "module '{module}' not found: no file {tried} in the driver, and no library of this name"
            )));
        }
        loaded.raw_set(module.as_str(), &value)?;
        Ok(value)
    })?;
    lua.globals().set("require", require)
}
