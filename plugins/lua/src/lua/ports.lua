-- The ports of Enapter's modules. The gateway has Modbus lines, serial ports,
-- CAN buses, inputs and outputs; whatever else a module has says of each call that it is not available.
local host, about, outcome = ...
local ports = {}

local function absent(what)
  local module = { err_to_str = outcome.err_to_str }
  local function call() return nil, outcome.status('not_available', what .. ' are not available on this gateway') end
  -- A function that only does something has its failure in the first place.
  local function act() return (select(2, call())) end
  local ACTS = '^init$|^send$|^open|^close|^set|^impulse$|^write'
  return setmetatable(module, {
    __index = function(_, name)
      for pattern in ACTS:gmatch('[^|]+') do
        if name:match(pattern) then return act end
      end
      return call
    end,
  })
end

-- A serial port of v1: the line of its `modbus`, and bytes. Its settings are the operator's.
local function serial_port(name)
  local port = { err_to_str = outcome.err_to_str }
  local wanted
  -- What the script sets is looked at when it uses the port for something else than Modbus.
  local function look()
    local found = wanted and host.serial_settings(name)
    if found and found ~= wanted then
      host.log(('%s is set to %s by the gateway, and the script expects %s'):format(name, found, wanted), 'warning', false)
    end
    wanted = nil
  end
  function port.init(baud_rate, data_bits, parity, stop_bits)
    host.module('modbus').choose(name)
    if math.tointeger(baud_rate) and data_bits and parity and stop_bits then
      wanted = ('%d, %s, %s, %s'):format(baud_rate, math.tointeger(data_bits), parity, math.tointeger(stop_bits))
    end
    return 0
  end
  function port.send(data, do_flush)
    look()
    outcome.in_time()
    return outcome.status(host.serial_write(name, tostring(data), do_flush ~= false))
  end
  function port.receive(timeout, max_data_size)
    look()
    outcome.in_time()
    return outcome.answer(host.serial_read(name, max_data_size or 1024, tonumber(timeout) or 1000, false))
  end
  return port
end
ports.rs485, ports.rs232 = serial_port('rs485'), serial_port('rs232')

-- The same of v3, by `port://NAME`.
local Serial = {}
Serial.__index = Serial

function Serial:flush() return outcome.status(host.serial_discard(self.name)) end

function Serial:read(count, timeout)
  outcome.in_time()
  return outcome.answer(host.serial_read(self.name, count, tonumber(timeout) or 1000, true))
end

function Serial:write(data)
  outcome.in_time()
  return outcome.status(host.serial_write(self.name, tostring(data), false))
end

-- Who uses a port has it to itself anyway, until it is released.
function Serial:transaction(action)
  local results = table.pack(pcall(action))
  host.serial_release(self.name)
  if not results[1] then return nil, tostring(results[2]) end
  return table.unpack(results, 2, results.n)
end

ports.serial = {}
function ports.serial.new(uri)
  local name = type(uri) == 'string' and uri:match('^port://([^/?#]+)$')
  if not name then return nil, 'expected a connection such as port://rs485, found ' .. tostring(uri) end
  return setmetatable({ name = name }, Serial)
end

-- Inputs and outputs are granted under the names that v3 has for them: `rl-1`,
-- `do-1`, `di-1`, `ai-1`; v1 counts them.
local function told(_, ...) return outcome.status(...) end

local function switch(name, on) return told(host.output(name, 'set', on)) end
local function pulse(name, duration) return told(host.output(name, 'pulse', duration)) end
local function state(name) return outcome.answer(host.output(name, 'get')) end
local function contact(name) return outcome.answer(host.input(name, 'get')) end
local function opposite(value, ...)
  if value == nil then return nil, ... end
  return not value, ...
end

local function numbered(prefix)
  return function(id) return prefix .. tostring(math.tointeger(tonumber(id)) or id) end
end

local RELAYS = 6
local relay_name = numbered('rl-')

-- Switches them in turn; the first that fails is told.
local function switch_all(wanted)
  local first = outcome.status()
  for id = 1, RELAYS do
    local result = switch(relay_name(id), wanted(id))
    if first == outcome.status() then first = result end
  end
  return first
end

ports.rl6 = {
  err_to_str = outcome.err_to_str,
  get = function(id) return state(relay_name(id)) end,
  open = function(id) return switch(relay_name(id), false) end,
  close = function(id) return switch(relay_name(id), true) end,
  impulse = function(id, duration) return pulse(relay_name(id), duration) end,
  open_all = function() return switch_all(function() return false end) end,
  close_all = function() return switch_all(function() return true end) end,
  set_all = function(...)
    local wanted = { ... }
    return switch_all(function(id) return wanted[id] == true end)
  end,
}

ports.rl = {
  err_to_str = outcome.err_to_str,
  is_closed = function() return state('rl-1') end,
  open = function() return switch('rl-1', false) end,
  close = function() return switch('rl-1', true) end,
  impulse = function(duration) return pulse('rl-1', duration) end,
}

local input_name = numbered('di-')

ports.di7 = {
  err_to_str = outcome.err_to_str,
  is_closed = function(id) return contact(input_name(id)) end,
  is_opened = function(id) return opposite(contact(input_name(id))) end,
  read_counter = function(id)
    local name = input_name(id)
    local count, kind, text = host.input(name, 'count')
    if count == nil then return nil, nil, outcome.status(kind, text) end
    return count, math.tointeger(host.input(name, 'since')), 0
  end,
  set_counter = function(id, count) return told(host.input(input_name(id), 'set_count', count)) end,
  -- In steps of 0.1 ms, of all inputs that are granted.
  set_debounce = function(time)
    local is_one_set, problem = false, nil
    for id = 1, 7 do
      local _, kind, text = host.input(input_name(id), 'set_debounce', (tonumber(time) or 0) / 10)
      if kind == nil then
        is_one_set = true
      elseif kind ~= 'not_granted' or problem == nil then
        problem = { kind, text }
      end
    end
    if is_one_set and (problem == nil or problem[1] == 'not_granted') then return outcome.status() end
    return outcome.status(problem[1], problem[2])
  end,
}

local analog_name = numbered('ai-')
local function measured(name) return outcome.answer(host.analog(name)) end

ports.ai4 = {
  err_to_str = outcome.err_to_str,
  read_volts = function(id) return measured(analog_name(id)) end,
  -- Enapter's documentation says amperes, whatever its name does.
  read_milliamps = function(id) return measured(analog_name(id)) end,
}

-- A class of v3 by `port://NAME`.
local function client(methods, example)
  methods.__index = methods
  return {
    new = function(uri)
      local name = type(uri) == 'string' and uri:match('^port://([^/?#]+)$')
      if not name then return nil, ('expected a connection such as port://%s, found %s'):format(example, tostring(uri)) end
      return setmetatable({ name = name }, methods)
    end,
  }
end

ports.relay = client({
  open = function(self) return switch(self.name, false) end,
  close = function(self) return switch(self.name, true) end,
  impulse = function(self, duration) return pulse(self.name, duration) end,
  is_closed = function(self) return state(self.name) end,
}, 'rl-1')

local function level(value, ...)
  if value == nil then return nil, ... end
  return value and 1 or 0, ...
end

ports.digitalout = client({
  set_state = function(self, wanted) return switch(self.name, wanted == 1 or wanted == true) end,
  get_state = function(self) return level(state(self.name)) end,
}, 'do-1')

ports.digitalin = client({
  get_state = function(self) return level(contact(self.name)) end,
  read_counter = function(self) return outcome.answer(host.input(self.name, 'count')) end,
  reset_counter = function(self) return told(host.input(self.name, 'set_count', 0)) end,
}, 'di-1')

ports.analogin = client({
  get_volts = function(self) return measured(self.name) end,
  get_amps = function(self) return measured(self.name) end,
  get_temperature = function(self) return measured(self.name) end,
}, 'ai-1')

-- CAN: v1 has one bus and a handler for each frame, v3 has objects. What the host
-- keeps is fetched some times a second.
local BUS, FETCH_MS, KEPT = 'can', 100, 1000

ports.can = { err_to_str = outcome.err_to_str, DROP_OLDEST = 0, DROP_NEWEST = 1 }

function ports.can.init(_, handler)
  if type(handler) ~= 'function' then return outcome.status() end
  local inbox, kind, text = host.can_subscribe(BUS, {}, KEPT, false)
  if inbox == nil then return outcome.status(kind, text) end
  scheduler.add(FETCH_MS, function()
    for _, frame in ipairs(host.can_pop(inbox)) do
      -- An error in one frame does not lose the others.
      local is_done, problem = pcall(handler, frame[1], frame[2])
      if not is_done then host.log(tostring(problem), 'error', false) end
    end
  end)
  return outcome.status()
end

function ports.can.send(id, data) return outcome.status(host.can_send(BUS, id, data)) end

local Monitor, Queue, Bus = {}, {}, {}
Monitor.__index, Queue.__index, Bus.__index = Monitor, Queue, Bus

function Bus:send(id, data) return outcome.status(host.can_send(self.name, id, data)) end

function Bus:monitor(ids)
  if type(ids) ~= 'table' then return nil, 'expected a list of ids' end
  local inbox, kind, text = host.can_subscribe(self.name, ids, 0, false)
  if inbox == nil then return nil, outcome.status(kind, text) end
  return setmetatable({ inbox = inbox, latest = {} }, Monitor)
end

function Bus:queue(ids, size, policy)
  if type(ids) ~= 'table' then return nil, 'expected a list of ids' end
  local queue = { inboxes = {} }
  for _, id in ipairs(ids) do
    local inbox, kind, text = host.can_subscribe(self.name, { id }, size, policy == ports.can.DROP_NEWEST)
    if inbox == nil then return nil, outcome.status(kind, text) end
    queue.inboxes[id] = inbox
  end
  return setmetatable(queue, Queue)
end

-- The latest values of these ids in their order; the monitor is empty then.
function Monitor:pop(ids)
  for _, frame in ipairs(host.can_pop(self.inbox)) do
    self.latest[frame[1]] = frame[2]
  end
  local found = {}
  for place, id in ipairs(type(ids) == 'table' and ids or { ids }) do
    found[place] = self.latest[id]
  end
  self.latest = {}
  return found
end

function Queue:pop(id)
  local inbox = self.inboxes[id]
  if inbox == nil then return nil, ('no queue for the id %s'):format(tostring(id)) end
  local found = {}
  for place, frame in ipairs(host.can_pop(inbox)) do
    found[place] = frame[2]
  end
  return found
end

function Queue:drops_count(id)
  local inbox = self.inboxes[id]
  if inbox == nil then return nil, ('no queue for the id %s'):format(tostring(id)) end
  return host.can_dropped(inbox)
end

ports.can.new = client(Bus, 'can-1').new

ports.analogout = absent('analog outputs')
ports.digitalin.LOW, ports.digitalin.HIGH = 0, 1
ports.digitalout.LOW, ports.digitalout.HIGH = 0, 1

return ports
