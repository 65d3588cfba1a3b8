-- In v1 a text that is no JSON is an error, in v3 a second result.
local host, about = ...
local json = {}

function json.encode(value)
  local text, problem = host.json_encode(value)
  if problem and about.api ~= 'v3' then error(problem, 2) end
  return text, problem
end

function json.decode(text)
  if type(text) ~= 'string' then
    local problem = 'json.decode: expected a string, found ' .. type(text)
    if about.api ~= 'v3' then error(problem, 2) end
    return nil, problem
  end
  local value, problem = host.json_decode(text)
  if problem and about.api ~= 'v3' then error(problem, 2) end
  return value, problem
end

return json
