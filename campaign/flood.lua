-- wrk's script for floods: COUNT requests, each with the token and the path that MIX says for its number.
--
--   wrk ... -s flood.lua URL -- MIX FIRST COUNT
--
-- MIX: distinct    a new user each time, numbered from FIRST
--      strangers   a new token of nobody each time
--      invented    one ordinary user, a new user_id each time
--      mixed       of twenty: sixteen of 5,000 users, two new users, one stranger, one whom whoami keeps waiting
--
-- It ends when each of the COUNT requests was answered: one that is cut off would leave its token unknown.
-- At the end one line of JSON says how many answers had each status of the module.

local thread_of_wrk

function setup(thread) thread_of_wrk = thread end

function init(args)
   mix, first, count = args[1], tonumber(args[2]), tonumber(args[3])
   -- wrk calls `request` once before it starts, to see how many requests that gives, and does not send it.
   asked, answered = -1, 0
   statuses = {}
end

local function head(path, name, secret)
   return "GET " .. path .. " HTTP/1.1\r\nHost: example.org\r\nUser-Agent: Element/1.11.94\r\nAuthorization: Bearer mat_"
      .. name .. "_" .. secret .. "\r\n\r\n"
end

local SYNC = "/_matrix/client/v3/sync"
local EXTRA = "GET " .. SYNC .. " HTTP/1.1\r\nHost: example.org\r\n\r\n"

function request()
   -- wrk asks for more before the loop stops. These have no token, and `response` does not count them.
   if asked == count then return EXTRA end
   asked = asked + 1
   if asked == 0 then return EXTRA end
   local n = first + asked - 1
   if mix == "distinct" then return head(SYNC, string.format("u%09d", n), "Xk3fQ9") end
   if mix == "strangers" then return head(SYNC, "stranger", string.format("%09dr5", n)) end
   if mix == "invented" then
      return head(SYNC .. "?user_id=%40invented" .. n .. "%3Aexample.org", "alice", "Xk3fQ9")
   end
   local kind = n % 20
   if kind < 16 then return head(SYNC, string.format("u%09d", n % 5000), "Xk3fQ9") end
   if kind < 18 then return head(SYNC, string.format("w%09d", n), "Xk3fQ9") end
   if kind == 18 then return head(SYNC, "stranger", string.format("%09dr5", n)) end
   return head("/held", string.format("h%09d", n), "Xk3fQ9")
end

function response(code, headers)
   if answered == count or headers["X-Status"] == "ANONYMOUS" then return end
   local status = code .. " " .. (headers["X-Status"] or "-")
   statuses[status] = (statuses[status] or 0) + 1
   answered = answered + 1
   if answered == count then
      wrk.thread:stop()
      -- The process sleeps through its -d all the same: who reads this line wakes it by SIGINT.
      io.stderr:write("over\n")
      io.stderr:flush()
   end
end

function done(summary)
   local parts = {}
   for status, number in pairs(thread_of_wrk:get("statuses")) do
      parts[#parts + 1] = string.format('"%s":%d', status, number)
   end
   local e = summary.errors
   print(string.format('{"statuses":{%s},"seconds":%.1f,"broken":%d}', table.concat(parts, ","),
      summary.duration / 1e6, e.connect + e.read + e.write + e.timeout))
end
