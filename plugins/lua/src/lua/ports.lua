-- The ports of Enapter's modules.
local host, about, outcome = ...
local ports = {}

-- A line to choose for the `modbus` of v1; the settings are the operator's.
local function line(name)
  local port = { err_to_str = outcome.err_to_str }
  function port.init()
    host.module('modbus').choose(name)
    return 0
  end
  return port
end
ports.rs485, ports.rs232 = line('rs485'), line('rs232')

return ports
