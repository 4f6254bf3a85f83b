-- In the access phase: a shared dict, and whoami through an internal location, so that its connections are kept.

local cjson = require "cjson.safe"
local users = ngx.shared.users

local _M = {}

local function ask()
   local reply = ngx.location.capture("/_whoami")
   local answer = reply.status == 200 and cjson.decode(reply.body)
   return answer and answer.user_id
end

function _M.user()
   local authorization = ngx.var.http_authorization
   if not authorization or authorization:sub(1, 7) ~= "Bearer " then return end
   local token = authorization:sub(8)
   local known = users:get(token)
   if not known then
      known = ask() or token
      users:set(token, known, 3600)
   end
   ngx.var.user = known
end

function _M.count() ngx.print(#users:get_keys(0)) end

return _M
