local host = ...
local system = {}

function system.uptime() return host.uptime() end

function system.delay(delay)
  host.sleep(math.min(delay or 1000, 5000))
end

return system
