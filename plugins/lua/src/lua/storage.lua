local host, about, outcome = ...
local storage = { err_to_str = outcome.err_to_str }

function storage.read(key)
  return outcome.answer(host.storage_get(tostring(key)))
end

function storage.write(key, value)
  if value == nil then return storage.remove(key) end
  return outcome.status(host.storage_set(tostring(key), tostring(value)))
end

function storage.remove(key)
  return outcome.status(host.storage_delete(tostring(key)))
end

return storage
