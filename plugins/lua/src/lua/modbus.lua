-- Modbus in its three forms: the global functions after `rs485.init` (v1), objects
-- of `modbustcp.new` and `modbusrtu.new` (v1), and those of `modbus.new` (v3).
local host, about, outcome = ...

local DEFAULT_TIMEOUT = 1000

local function patience(timeout) return tonumber(timeout) or DEFAULT_TIMEOUT end

local function reader(operation)
  return function(line, unit, register, count, timeout)
    outcome.in_time()
    return outcome.answer(host.modbus_read(line, operation, unit, register, count, patience(timeout)))
  end
end

local function writer(operation, is_of_many)
  return function(line, unit, register, given, timeout)
    outcome.in_time()
    local values = is_of_many and given or { given }
    return outcome.status(host.modbus_write(line, operation, unit, register, values, patience(timeout)))
  end
end

local operations = {
  read_coils = reader('read_coils'),
  read_discrete_inputs = reader('read_discrete_inputs'),
  read_holdings = reader('read_holdings'),
  read_inputs = reader('read_inputs'),
  write_coil = writer('write_coil'),
  write_holding = writer('write_holding'),
  write_multiple_coils = writer('write_coils', true),
  write_multiple_holdings = writer('write_holdings', true),
}

local READS = { coils = 'read_coils', discrete_inputs = 'read_discrete_inputs', holdings = 'read_holdings', inputs = 'read_inputs' }
local WRITES = { coil = 'write_coil', holding = 'write_holding' }
local MANY_WRITES = { multiple_coils = 'write_multiple_coils', multiple_holdings = 'write_multiple_holdings' }

local function failed(result)
  if about.api == 'v3' then return { errmsg = result, err = result } end
  return { errcode = result, errmsg = outcome.err_to_str(result) }
end

-- What a query lacks, in words.
local function lacks(place, name) return name .. ' is missed for #' .. place end

local function read_all(queries, call)
  local results = {}
  for place, query in ipairs(queries) do
    if query.type == nil then return nil, lacks(place, 'read type') end
    local operation = READS[query.type]
    if operation == nil then return nil, "unknown read type '" .. tostring(query.type) .. "' for #" .. place end
    for _, name in ipairs({ 'addr', 'reg', 'count' }) do
      if query[name] == nil then return nil, lacks(place, name) end
    end
    local data, problem = call(operation, query.addr, query.reg, query.count, query.timeout)
    results[place] = data and { data = data } or failed(problem)
  end
  return results
end

local function write_all(queries, call)
  local results = {}
  for place, query in ipairs(queries) do
    if query.type == nil then return nil, lacks(place, 'write type') end
    local operation = WRITES[query.type] or MANY_WRITES[query.type]
    if operation == nil then return nil, "unknown write type '" .. tostring(query.type) .. "' for #" .. place end
    for _, name in ipairs({ 'addr', 'reg' }) do
      if query[name] == nil then return nil, lacks(place, name) end
    end
    local given = query.value
    if MANY_WRITES[query.type] then
      given = query.values
      if given == nil then return nil, lacks(place, 'values') end
      if type(given) ~= 'table' then return nil, 'values must be a table for #' .. place end
    elseif given == nil then
      return nil, lacks(place, 'value')
    end
    local problem = call(operation, query.addr, query.reg, given, query.timeout)
    results[place] = (problem == nil or problem == 0) and {} or failed(problem)
  end
  return results
end

local Client = {}
Client.__index = Client
for name, operation in pairs(operations) do
  Client[name] = function(self, ...) return operation(self.line, ...) end
end
function Client:read(queries)
  return read_all(queries, function(name, ...) return operations[name](self.line, ...) end)
end
function Client:write(queries)
  return write_all(queries, function(name, ...) return operations[name](self.line, ...) end)
end

local modules = {}

-- The line that `rs485.init` or `rs232.init` has chosen.
local chosen = about.line
function modules.choose(line) chosen = line end

modules.modbus = { err_to_str = outcome.err_to_str }
for name, operation in pairs(operations) do
  modules.modbus[name] = function(...) return operation(chosen, ...) end
end

local function with_port(address)
  if address:match('%]:%d+$') or (not address:match(':.*:') and address:match(':%d+$')) then return address end
  return address .. ':502'
end

function modules.modbus.new(uri)
  if type(uri) ~= 'string' then return nil, 'expected a connection URI such as port://rs485, found ' .. type(uri) end
  local scheme, rest = uri:match('^(%w+)://([^/?#]+)')
  if scheme == 'port' then return setmetatable({ line = rest }, Client) end
  if scheme == 'tcp' then return setmetatable({ line = 'tcp://' .. with_port(rest) }, Client) end
  return nil, 'expected port://NAME or tcp://HOST:PORT, found ' .. uri
end

modules.modbustcp = { err_to_str = outcome.err_to_str }
function modules.modbustcp.new(address)
  return setmetatable({ line = 'tcp://' .. with_port(tostring(address)) }, Client)
end

-- A gateway's lines have names; the path and the settings of a port are the operator's.
modules.modbusrtu = { err_to_str = outcome.err_to_str }
function modules.modbusrtu.new(path)
  if type(path) ~= 'string' or path == '' then
    return nil, outcome.status('invalid_argument', 'expected the path of a port')
  end
  return setmetatable({ line = about.line }, Client)
end

modules.queries = {
  read = function(queries) return read_all(queries, function(name, ...) return operations[name](chosen, ...) end) end,
  write = function(queries) return write_all(queries, function(name, ...) return operations[name](chosen, ...) end) end,
}
return modules
