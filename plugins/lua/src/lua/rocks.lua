-- Small parts of libraries that blueprints take from elsewhere.
local host = ...

-- `net.url`: a URL to which `/` adds a part of the path.
local Url = {}
Url.__index = Url
function Url.__tostring(self) return self.origin .. self.path .. self.rest end
function Url.__div(self, part)
  local path = self.path:gsub('/$', '') .. '/' .. tostring(part):gsub('^/', '')
  return setmetatable({ origin = self.origin, path = path, rest = self.rest }, Url)
end
function Url:build() return tostring(self) end

-- A table of fields, or a text.
function Url:setQuery(query)
  local text = type(query) == 'table' and host.module('http').form(query) or tostring(query)
  self.rest = (text == '' and '' or '?' .. text) .. (self.rest:match('#.*$') or '')
  return self
end

local function parse(text)
  local origin, path, rest = text:match('^(%a[%w+.-]*://[^/?#]*)([^?#]*)(.*)$')
  if origin == nil then origin, path, rest = '', text:match('^([^?#]*)(.*)$') end
  return setmetatable({ origin = origin, path = path, rest = rest }, Url)
end

-- `hashings.sha256`: an object that is fed and asked.
local Hash = {}
Hash.__index = Hash
function Hash:new(text) return setmetatable({ fed = text or '' }, Hash) end
function Hash:update(text)
  self.fed = self.fed .. text
  return self
end
function Hash:digest() return host.sha256(self.fed) end
function Hash:hexdigest()
  return (self:digest():gsub('.', function(char) return string.format('%02X', char:byte()) end))
end
function Hash:copy() return Hash:new(self.fed) end

return {
  ['net.url'] = { parse = parse },
  ['hashings.sha256'] = Hash,
}
