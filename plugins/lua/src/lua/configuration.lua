-- What the user has set, by groups of the manifest's `configuration`.
local host, about, outcome = ...
local configuration = {}
local callbacks = {}

local function missing(group)
  local values = host.configuration[group] or {}
  for _, name in ipairs(about.required[group] or {}) do
    if values[name] == nil then return name end
  end
end

function configuration.is_all_required_set(group)
  return missing(group) == nil
end

function configuration.read(group)
  local name = missing(group)
  if name then return nil, 'required parameter ' .. name .. ' is not set' end
  local copy = {}
  for key, value in pairs(host.configuration[group] or {}) do
    copy[key] = value
  end
  return copy
end

function configuration.after_write(group, callback)
  callbacks[group] = callbacks[group] or {}
  table.insert(callbacks[group], callback)
end

-- Called by the runtime with the groups that have changed.
function host.configuration_written(groups)
  for _, group in ipairs(groups) do
    for _, callback in ipairs(callbacks[group] or {}) do
      callback()
    end
  end
end

return configuration
