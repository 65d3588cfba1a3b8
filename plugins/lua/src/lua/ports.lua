-- The ports of Enapter's modules. The gateway has Modbus lines; whatever else a
-- module has says of each call that it is not available.
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

-- A line to choose for the `modbus` of v1; its settings are the operator's.
local function line(name)
  local port = absent('serial ports without Modbus')
  function port.init()
    host.module('modbus').choose(name)
    return 0
  end
  return port
end
ports.rs485, ports.rs232 = line('rs485'), line('rs232')

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
  serial = 'serial ports without Modbus',
}) do
  ports[name] = absent(what)
end
ports.can.DROP_OLDEST, ports.can.DROP_NEWEST = 0, 1
ports.digitalin.LOW, ports.digitalin.HIGH = 0, 1
ports.digitalout.LOW, ports.digitalout.HIGH = 0, 1

return ports
