-- HTTP as Enapter's gateways offer it: redirects, cookies, basic authentication, forms.
local host, about, outcome = ...
local http = {}

local DEFAULT_TIMEOUT = 10
local MOST_REDIRECTS = 10

-- `content-type` as `Content-Type`.
local function canonical(name)
  return (name:lower():gsub('^%l', string.upper):gsub('%-%l', string.upper))
end

local function encoded(text)
  return (tostring(text):gsub('[^%w%-%._~]', function(char)
    if char == ' ' then return '+' end
    return string.format('%%%02X', char:byte())
  end))
end

local function form(fields)
  local names, parts = {}, {}
  for name in pairs(fields) do
    names[#names + 1] = name
  end
  table.sort(names, function(one, other) return tostring(one) < tostring(other) end)
  for _, name in ipairs(names) do
    parts[#parts + 1] = encoded(name) .. '=' .. encoded(fields[name])
  end
  return table.concat(parts, '&')
end

local function split(url)
  local scheme, authority, rest = url:match('^(%a[%w+.-]*)://([^/?#]*)(.*)$')
  return scheme, authority, rest
end

-- The target of a redirect, seen from where it came.
local function resolved(base, location)
  if location:match('^%a[%w+.-]*://') then return location end
  local scheme, authority, rest = split(base)
  if location:sub(1, 2) == '//' then return scheme .. ':' .. location end
  local origin = scheme .. '://' .. authority
  if location:sub(1, 1) == '/' then return origin .. location end
  local folder = rest:match('^([^?#]*/)') or '/'
  return origin .. folder .. location
end

local Headers = {}
local methods = {}
function methods.get(self, name)
  local values = rawget(self, canonical(name))
  return values and values[1] or ''
end
function methods.values(self, name) return rawget(self, canonical(name)) or {} end
Headers.__index = methods

local function headers_of(list)
  local headers = setmetatable({}, Headers)
  for _, header in ipairs(list) do
    local name = canonical(header[1])
    local values = rawget(headers, name) or {}
    values[#values + 1] = header[2]
    rawset(headers, name, values)
  end
  return headers
end

local function cookie_of(text)
  local name, value, rest = text:match('^%s*([^=;]+)=([^;]*)(.*)$')
  if name == nil then return nil end
  local cookie = { name = name:match('^(.-)%s*$'), value = value:match('^"?(.-)"?%s*$') }
  for key, attribute in rest:gmatch(';%s*([^=;]+)=?([^;]*)') do
    cookie[key:lower():gsub('%-', '_')] = attribute
  end
  return cookie
end

local Request = {}
Request.__index = Request

function Request:set_header(name, value) self.headers[canonical(name)] = tostring(value) end
function Request:set_basic_auth(user, password)
  self:set_header('Authorization', 'Basic ' .. host.base64(tostring(user) .. ':' .. tostring(password)))
end
function Request:add_cookie(name, value) self.cookies[#self.cookies + 1] = name .. '=' .. tostring(value) end

function http.request(method, url, body)
  local request = { method = method or 'GET', url = url, body = body, headers = {}, cookies = {} }
  return setmetatable(request, Request)
end

local Client = {}
Client.__index = Client

-- The host names these itself.
local OF_THE_HOST = { Host = true, ['Content-Length'] = true }

function Client:exchange(request, method, url, body)
  outcome.in_time()
  local _, authority = split(url)
  local list, cookies = {}, {}
  for _, cookie in ipairs(request.cookies) do
    cookies[#cookies + 1] = cookie
  end
  for name, value in pairs(self.jar and self.jar[authority] or {}) do
    cookies[#cookies + 1] = name .. '=' .. value
  end
  for name, value in pairs(request.headers) do
    local is_of_body = body == nil and name == 'Content-Type'
    if not OF_THE_HOST[name] and not is_of_body then list[#list + 1] = { name, value } end
  end
  table.sort(list, function(one, other) return one[1] < other[1] end)
  if #cookies > 0 then list[#list + 1] = { 'Cookie', table.concat(cookies, '; ') } end
  local status, headers, answer = host.fetch(method, (url:gsub(' ', '%%20')), list, body or '', self.timeout, self.options)
  if status == nil then return nil, answer end
  local response = { code = status, body = answer, headers = headers_of(headers), cookies = {} }
  for _, text in ipairs(response.headers:values('Set-Cookie')) do
    local cookie = cookie_of(text)
    if cookie then
      response.cookies[#response.cookies + 1] = cookie
      if self.jar then
        local own = self.jar[authority] or {}
        local is_over = cookie.max_age and (tonumber(cookie.max_age) or 1) <= 0
        own[cookie.name] = not is_over and cookie.value or nil
        self.jar[authority] = own
      end
    end
  end
  return response
end

local REDIRECTS = { [301] = true, [302] = true, [303] = true, [307] = true, [308] = true }

function Client:do_request(request)
  if type(request.url) ~= 'string' then return nil, 'expected a URL, found ' .. type(request.url) end
  local method, url, body = request.method, request.url, request.body
  if split(url) == nil then return nil, 'expected http://… or https://…, found ' .. url end
  for _ = 0, MOST_REDIRECTS do
    local response, problem = self:exchange(request, method, url, body)
    if response == nil then return nil, problem end
    local location = response.headers:get('Location')
    if not REDIRECTS[response.code] or location == '' then return response end
    if response.code < 304 and method ~= 'HEAD' and method ~= 'GET' then
      method, body = 'GET', nil
    end
    url = resolved(url, location)
  end
  return nil, 'stopped after ' .. MOST_REDIRECTS .. ' redirects'
end

function Client:get(url) return self:do_request(http.request('GET', url)) end

function Client:post(url, content_type, body)
  local request = http.request('POST', url, body or '')
  if content_type then request:set_header('Content-Type', content_type) end
  return self:do_request(request)
end

function Client:post_form(url, fields)
  return self:post(url, 'application/x-www-form-urlencoded', form(fields or {}))
end

function http.client(options)
  options = options or {}
  local client = {
    timeout = (tonumber(options.timeout) or DEFAULT_TIMEOUT) * 1000,
    jar = options.enable_cookie_jar and {} or nil,
    options = { insecure_tls = options.insecure_tls == true, http2 = options.http2 == true },
  }
  return setmetatable(client, Client)
end

local plain = http.client()
function http.get(url) return plain:get(url) end
function http.post(url, content_type, body) return plain:post(url, content_type, body) end
function http.post_form(url, fields) return plain:post_form(url, fields) end

return { http = http, form = form }
