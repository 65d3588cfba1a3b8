-- Lays out the API: what most scripts use at once, the rest when it is asked for.
local host, about, source = ...

local entry, outcome = source('base')(host, about)

local loaded = {}
function host.module(name)
  if loaded[name] == nil then loaded[name] = source(name)(host, about, outcome) end
  return loaded[name]
end

-- Waits for a device end with the call's own time.
function outcome.in_time()
  local problem = host.is_over()
  if problem then error(problem, 0) end
end

local function whole(name)
  return function() return host.module(name) end
end
local function part(name, own)
  return function() return host.module(name)[own] end
end

local GLOBALS = {
  http = part('http', 'http'),
  inspect = whole('inspect'),
  json = whole('json'),
  modbus = part('modbus', 'modbus'),
  storage = whole('storage'),
  system = whole('system'),
}
if about.api == 'v3' then
  GLOBALS.configuration = whole('configuration')
  for _, name in ipairs({ 'analogin', 'analogout', 'can', 'digitalin', 'digitalout', 'relay', 'serial' }) do
    GLOBALS[name] = part('ports', name)
  end
else
  GLOBALS.led = whole('led')
  GLOBALS.modbustcp = part('modbus', 'modbustcp')
  GLOBALS.modbusrtu = part('modbus', 'modbusrtu')
  GLOBALS.ucm = part('ucm', 'peers')
  for _, name in ipairs({ 'ai4', 'can', 'di7', 'rl', 'rl6', 'rs232', 'rs485' }) do
    GLOBALS[name] = part('ports', name)
  end
end

setmetatable(_G, {
  __index = function(globals, name)
    local load = GLOBALS[name]
    if load == nil then return nil end
    local value = load()
    rawset(globals, name, value)
    return value
  end,
})

-- What `require` finds in no file; `false` when there is nothing.
local function library(name)
  if name == 'json' or name == 'inspect' then return host.module(name) end
  local own = host.module('ucm').libraries[name] or host.module('rocks')[name]
  if own == nil then return false end
  return own
end

return entry, library
