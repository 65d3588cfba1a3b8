-- Shows any value as text, in the form that the `inspect` library has made usual.
local ORDER = { number = 1, boolean = 2, string = 3, table = 4, ['function'] = 5, userdata = 6, thread = 7 }
local RESERVED = {}
for word in
  ([[and break do else elseif end false for function goto if in local nil not or repeat return then true
     until while]]):gmatch('%a+')
do
  RESERVED[word] = true
end

local function before(one, other)
  local kind, of_other = type(one), type(other)
  if kind == of_other and (kind == 'number' or kind == 'string') then return one < other end
  return (ORDER[kind] or 100) < (ORDER[of_other] or 100)
end

local ESCAPES = { ['\a'] = '\\a', ['\b'] = '\\b', ['\f'] = '\\f', ['\n'] = '\\n', ['\r'] = '\\r', ['\t'] = '\\t', ['\v'] = '\\v', ['\127'] = '\\127' }

local function quoted(text)
  local escaped = text:gsub('\\', '\\\\'):gsub('[%c\127]', function(char)
    return ESCAPES[char] or ('\\' .. char:byte())
  end)
  if escaped:find('"') and not escaped:find("'") then return "'" .. escaped .. "'" end
  return '"' .. escaped:gsub('"', '\\"') .. '"'
end

local function is_name(key)
  return type(key) == 'string' and key:match('^[%a_][%w_]*$') ~= nil and not RESERVED[key]
end

-- How often each table appears: those that do so twice get a number.
local function count(value, seen)
  if type(value) ~= 'table' then return end
  seen[value] = (seen[value] or 0) + 1
  if seen[value] > 1 then return end
  for key, item in next, value do
    count(key, seen)
    count(item, seen)
  end
  count(getmetatable(value), seen)
end

local function show(root, options)
  options = options or {}
  local newline, indent, depth = options.newline or '\n', options.indent or '  ', options.depth or math.huge
  local process = options.process
  local seen, numbers, last = {}, {}, {}
  count(root, seen)
  local out, level = {}, 0
  local function put(text) out[#out + 1] = text end
  local function line() put(newline .. indent:rep(level)) end
  local function number_of(value)
    local known = numbers[value]
    if known then return known end
    last[type(value)] = (last[type(value)] or 0) + 1
    numbers[value] = last[type(value)]
    return numbers[value]
  end
  local put_value

  local function put_table(value)
    if numbers[value] then return put('<table ' .. numbers[value] .. '>') end
    if level >= depth then return put('{...}') end
    if seen[value] and seen[value] > 1 then put('<' .. number_of(value) .. '>') end
    local length = rawlen(value)
    for place = 1, length do
      if rawget(value, place) == nil then
        length = place - 1
        break
      end
    end
    local keys = {}
    for key in next, value do
      if not (math.type(key) == 'integer' and key >= 1 and key <= length) then keys[#keys + 1] = key end
    end
    table.sort(keys, before)
    local meta = getmetatable(value)
    put('{')
    level = level + 1
    for place = 1, length do
      put(place > 1 and ', ' or ' ')
      put_value(rawget(value, place))
    end
    for place, key in ipairs(keys) do
      if place > 1 or length > 0 then put(',') end
      line()
      if is_name(key) then
        put(key)
      else
        put('[')
        put_value(key)
        put(']')
      end
      put(' = ')
      put_value(rawget(value, key))
    end
    local has_meta = type(meta) == 'table'
    if has_meta then
      if length + #keys > 0 then put(',') end
      line()
      put('<metatable> = ')
      put_value(meta)
    end
    level = level - 1
    if #keys > 0 or has_meta then
      line()
    elseif length > 0 then
      put(' ')
    end
    put('}')
  end

  function put_value(value)
    local kind = type(value)
    if kind == 'string' then return put(quoted(value)) end
    if kind == 'number' or kind == 'boolean' or kind == 'nil' then return put(tostring(value)) end
    if kind == 'table' then return put_table(value) end
    put('<' .. kind .. ' ' .. number_of(value) .. '>')
  end

  local function processed(value, path, known)
    if value == nil or known[value] then return known[value] end
    local made = process(value, path)
    if type(made) ~= 'table' then return made end
    local copy = {}
    known[value] = copy
    for key, item in next, made do
      local own = processed(key, path, known)
      if own ~= nil then copy[own] = processed(item, path, known) end
    end
    return setmetatable(copy, getmetatable(made))
  end
  if process then
    root = processed(root, {}, {})
    seen = {}
    count(root, seen)
  end

  put_value(root)
  return table.concat(out)
end

return setmetatable({ inspect = show }, { __call = function(_, ...) return show(...) end })
