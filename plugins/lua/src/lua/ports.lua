-- The ports of Enapter's modules. The gateway has Modbus lines and serial ports;
-- whatever else a module has says of each call that it is not available.
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

for name, what in pairs({
  ai4 = 'analog inputs',
  analogin = 'analog inputs',
  analogout = 'analog outputs',
  can = 'CAN buses',
  di7 = 'digital inputs',
  digitalin = 'digital inputs',
  digitalout = 'digital outputs',
  relay = 'relays',
  rl = 'relays',
  rl6 = 'relays',
}) do
  ports[name] = absent(what)
end
ports.can.DROP_OLDEST, ports.can.DROP_NEWEST = 0, 1
ports.digitalin.LOW, ports.digitalin.HIGH = 0, 1
ports.digitalout.LOW, ports.digitalout.HIGH = 0, 1

return ports
