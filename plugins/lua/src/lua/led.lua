-- A gateway has no LED of the device's own.
local function nothing() end
return { on = nothing, off = nothing, blink = nothing }
