-- The libraries `enapter.ucm` and `enapter.sma`, as scripts require them.
local host, about, outcome = ...
local libraries = {}

local LONGEST_NAME = 15
local TYPES = { string = true, number = true, boolean = true }

-- Configuration that arrives by commands of the cloud and is kept in storage.
local config = {}
libraries['enapter.ucm.config'] = config

-- In words, or nil: storage tells of failures in the manner of the API's generation.
local function problem_of(status)
  if status == nil or status == 0 then return nil end
  return outcome.err_to_str(status)
end

function config.init(options, callbacks)
  assert(next(options) ~= nil, 'expected at least one config option')
  assert(not config.initialized, 'config is initialized already')
  for name, option in pairs(options) do
    assert(#name <= LONGEST_NAME, 'config option `' .. name .. '`: expected at most ' .. LONGEST_NAME .. ' characters')
    assert(TYPES[option.type], 'config option `' .. name .. '`: expected the type string, number or boolean')
  end
  enapter.register_command_handler('write_configuration', config.build_write_configuration_command(options, callbacks))
  enapter.register_command_handler('read_configuration', config.build_read_configuration_command(options))
  config.options = options
  config.initialized = true
end

local function option_of(name)
  return assert(config.options[name], 'config option `' .. name .. '` was not given to config.init')
end

function config.is_all_options_set(values)
  for name in pairs(config.options) do
    if values[name] == nil then return false end
  end
  return true
end

function config.read(name)
  local option = option_of(name)
  local text, status = storage.read(name)
  local problem = text == nil and problem_of(status)
  if problem then return nil, 'error reading from storage: ' .. problem end
  if text == nil then return option.default, nil end
  return config.deserialize(name, text), nil
end

function config.read_all()
  local values = {}
  for name in pairs(config.options) do
    local value, problem = config.read(name)
    if problem then return nil, 'cannot read `' .. name .. '`: ' .. problem end
    values[name] = value
  end
  return values, nil
end

function config.write(name, value)
  local status
  if value == nil then
    status = storage.remove(name)
  else
    status = storage.write(name, config.serialize(name, value))
  end
  local problem = problem_of(status)
  if problem then return 'error writing to storage: ' .. problem end
end

function config.serialize(_, value)
  if value ~= nil then return tostring(value) end
end

function config.deserialize(name, text)
  local kind = option_of(name).type
  if kind == 'number' then return tonumber(text) end
  if kind == 'string' then return text end
  if text == 'true' then return true end
  if text == 'false' then return false end
end

function config.build_write_configuration_command(options, callbacks)
  callbacks = callbacks or {}
  local function run(ctx, which, values)
    local problem = callbacks[which] and callbacks[which](values)
    if problem then ctx.error(which:gsub('_write', '') .. ' handler failed: ' .. problem) end
  end
  return function(ctx, arguments)
    local values = {}
    for name, option in pairs(options) do
      assert(not option.required or arguments[name] ~= nil, '`' .. name .. '` argument required')
      values[name] = arguments[name] or option.default
    end
    run(ctx, 'before_write', values)
    for name in pairs(options) do
      local problem = config.write(name, arguments[name])
      if problem then ctx.error('cannot write `' .. name .. '`: ' .. problem) end
    end
    run(ctx, 'after_write', values)
  end
end

function config.build_read_configuration_command()
  return function(ctx)
    local values, problem = config.read_all()
    if problem then ctx.error(problem) end
    return values
  end
end

libraries['enapter.ucm'] = { config = config }

-- Commands to another device: a driver of a gateway speaks for its own only.
local NO_PEER = 'commands to other devices are not available'
local peers = {
  new = function()
    return { execute_command = function() return nil, nil, NO_PEER end }
  end,
}

local function peer(self, command, arguments)
  local state, payload, problem = (rawget(_G, 'ucm') or peers).new(self.ucm_id, 'gio'):execute_command(command, arguments, { timeout = self.timeout })
  if problem then return nil, problem end
  if state ~= 'completed' then return nil, 'command failed: ' .. tostring(state) end
  return payload
end

local function closed(payload, problem)
  if problem then return nil, problem end
  if type(payload.closed) ~= 'boolean' then return nil, 'unexpected response from io' end
  return payload.closed
end

libraries['enapter.ucm.generics.rl6'] = {
  new = function()
    local rl6 = {}
    function rl6:setup(id, channel, timeout)
      self.ucm_id, self.channel, self.timeout = id, math.tointeger(channel), timeout or 1000
    end
    function rl6:open() return select(2, peer(self, 'open_channel', { channel = self.channel })) end
    function rl6:close() return select(2, peer(self, 'close_channel', { channel = self.channel })) end
    function rl6:is_closed() return closed(peer(self, 'is_channel_closed', { channel = self.channel })) end
    return rl6
  end,
}

libraries['enapter.ucm.generics.di7'] = {
  new = function()
    local di7 = {}
    function di7:setup(id, input, timeout) self.ucm_id, self.input, self.timeout = id, math.tointeger(input), timeout end
    function di7:is_closed() return closed(peer(self, 'is_closed', { input = self.input })) end
    return di7
  end,
}

libraries['enapter.ucm.generics.can'] = {
  new = function()
    local can = { subscriptions = {} }
    local function read(name)
      local subscription = can.subscriptions[name]
      if subscription == nil then return nil, nil, 'no subscription ' .. name end
      local ids = {}
      for _, message in ipairs(subscription.messages) do
        if message.msg_id then ids[#ids + 1] = message.msg_id end
      end
      local given = { cursor = subscription.cursor, msg_ids = table.concat(ids, ',') }
      local payload, problem = peer(can, 'read', given)
      return subscription, payload, problem
    end
    function can:setup(id, subscriptions, timeout)
      self.ucm_id, self.timeout, self.subscriptions = id, timeout or 1000, {}
      local first
      for name, messages in pairs(subscriptions) do
        self.subscriptions[name] = { messages = messages }
        local _, _, problem = read(name)
        first = first or problem
      end
      return first
    end
    function can:get(name)
      local subscription, payload, problem = read(name)
      if problem then return nil, problem end
      subscription.cursor = payload.cursor
      local values = {}
      for place, message in ipairs(subscription.messages) do
        local data = payload.results[place]
        if data and #data > 0 then
          local is_right, parsed = pcall(message.parser, message.multi_msg and data or data[#data])
          if not is_right then return nil, 'cannot parse ' .. string.format('0x%x', message.msg_id) .. ': ' .. tostring(parsed) end
          if message.name then
            values[message.name] = parsed
          else
            for number, own in ipairs(message.names) do
              values[own] = parsed[number]
            end
          end
        end
      end
      return values, nil
    end
    return can
  end,
}

-- SMA's registers over Modbus TCP: pairs of them, with values that mean "none".
local Sma = {}
Sma.__index = Sma
libraries['enapter.sma.modbustcp'] = Sma

function Sma.new(address, unit)
  assert(type(address) == 'string', 'expected the address as a string, found ' .. type(address))
  assert(type(unit) == 'number', 'expected the unit as a number, found ' .. type(unit))
  return setmetatable({ addr = address, unit_id = unit }, Sma)
end

function Sma:connect() self.modbus = modbustcp.new(self.addr) end

function Sma:read_holdings(address, count)
  local registers, problem = self.modbus:read_holdings(self.unit_id, address, count, 1000)
  if registers then return registers end
  enapter.log('read error: ' .. tostring(problem), 'error')
end

-- Registers as one number of a format of string.unpack.
local function number(self, address, count, format)
  local registers = self:read_holdings(address, count)
  if registers == nil then return nil end
  return (string.unpack(format, string.pack('>' .. ('I2'):rep(count), table.unpack(registers, 1, count))))
end

function Sma:read_u32(address)
  local value = number(self, address, 2, '>I4')
  if value == 0xFFFFFFFF or value == 0x00FFFFFD then return nil end
  return value
end

function Sma:read_s32(address)
  local value = number(self, address, 2, '>i4')
  if value == -0x80000000 then return nil end
  return value
end

function Sma:read_u64(address) return number(self, address, 4, '>I8') end

for _, kind in ipairs({ 'u32', 's32', 'u64' }) do
  local read = Sma['read_' .. kind]
  Sma['read_' .. kind .. '_fix0'] = read
  for digits, divisor in ipairs({ 10, 100, 1000 }) do
    Sma['read_' .. kind .. '_fix' .. digits] = function(self, address)
      local value = read(self, address)
      return value and value / divisor
    end
  end
end
Sma.read_u32_enum = Sma.read_u32

-- What queries of `enapter.ucm.qmodbus` and of v3's clients have in common lies beside them.
libraries['enapter.ucm.qmodbus'] = host.module('modbus').queries

return { libraries = libraries, peers = peers }
