-- What every script has: `enapter`, `scheduler`, and how outcomes are told in
-- the two generations of the API: numbers in v1, texts in v3.
local host, about = ...
local is_v3 = about.api == 'v3'

-- Codes of v1 by the kind of a failure.
local CODES = {
  timeout = 1,
  invalid_argument = 2,
  not_granted = 3,
  invalid_response = 4,
  failed = 5,
  too_large = 6,
  rate_limited = 7,
  no_connection = 9,
  not_ready = 13,
  not_available = 14,
}
local TEXTS = {}
for kind, code in pairs(CODES) do
  TEXTS[code] = (kind:gsub('_', ' '))
end
-- A Modbus exception is its code above this.
local EXCEPTION = 100

local outcome = {}

local function code_of(kind, text)
  if kind == 'exception' then return EXCEPTION + (math.tointeger(tonumber(text:match('%d+'))) or 0) end
  return CODES[kind] or CODES.failed
end

-- The single result of a function that only does something.
function outcome.status(kind, text)
  if kind == nil then
    if is_v3 then return nil end
    return 0
  end
  if is_v3 then return text end
  return code_of(kind, text)
end

-- The two results of a function that gives a value.
function outcome.answer(value, kind, text)
  if kind == nil then
    if is_v3 then return value end
    return value, 0
  end
  return nil, outcome.status(kind, text)
end

function outcome.err_to_str(code)
  if code == nil or code == 0 then return '' end
  if type(code) ~= 'number' then return tostring(code) end
  if code > EXCEPTION then return 'modbus exception ' .. tostring(code - EXCEPTION) end
  return TEXTS[code] or ('error ' .. tostring(code))
end

local COMMAND_FAILED = {}
local handlers = {}
local connection_handlers = {}

local enapter = { err_to_str = outcome.err_to_str }

-- Splits what Enapter takes in one table: alerts go a way of their own.
function enapter.send_telemetry(data)
  if type(data) ~= 'table' then return outcome.status('invalid_argument', 'expected a table of telemetry') end
  return outcome.status(host.telemetry(data))
end

function enapter.send_properties(data)
  if type(data) ~= 'table' then return outcome.status('invalid_argument', 'expected a table of properties') end
  return outcome.status(host.properties(data))
end

-- Some scripts leave the severity out and give the next argument in its place.
local function level(severity) return type(severity) == 'string' and severity or 'info' end

function enapter.log(text, severity, persist)
  host.log(tostring(text), level(severity), persist == true or severity == true)
end

function enapter.register_command_handler(name, handler)
  assert(type(handler) == 'function', 'handler must be a function')
  handlers[name] = handler
end

function enapter.on_connection_status_changed(handler)
  connection_handlers[#connection_handlers + 1] = handler
end

-- The gateway keeps what is sent while there is no connection.
function enapter.get_connection_status() return true end

local scheduler = {}
local jobs = {}

function scheduler.add(period, job)
  assert(type(job) == 'function', 'scheduled function expected')
  local id, problem = host.every(period)
  if id == nil then error(problem, 2) end
  jobs[id] = job
  return id
end

function scheduler.remove(id)
  jobs[id] = nil
  host.cancel(id)
end

-- `ctx:log(…)` and `ctx.log(…)` are both in use.
local function context()
  local ctx = {}
  local function given(first, ...)
    if first == ctx then return ... end
    return first, ...
  end
  function ctx.log(...)
    local text, severity = given(...)
    host.command_log(tostring(text), level(severity))
  end
  function ctx.error(...)
    local text = given(...)
    if type(text) == 'table' then text = host.json_encode(text) end
    error(setmetatable({ text = tostring(text) }, COMMAND_FAILED), 0)
  end
  return ctx
end

local entry = {}

function entry.timer(id)
  local job = jobs[id]
  if job then job() end
end

-- Gives `true` and the result, or `false` and why not.
function entry.command(name, arguments)
  local handler = handlers[name]
  if handler == nil then return nil end
  local is_done, result = pcall(handler, context(), arguments)
  if is_done then return true, result end
  if getmetatable(result) == COMMAND_FAILED then return false, result.text end
  -- Errors of the runtime's own functions come with their trace.
  return false, (tostring(result):gsub('\nstack traceback:.*', ''))
end

function entry.begin()
  for _, handler in ipairs(connection_handlers) do
    handler(true)
  end
  if is_v3 and type(enapter.main) == 'function' then enapter.main() end
end

if is_v3 then runtime_version = 'v3' end
_G.enapter, _G.scheduler = enapter, scheduler
return entry, outcome
