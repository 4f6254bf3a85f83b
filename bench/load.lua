-- wrk's script: syncs of many users. wrk ... -s load.lua URL -- MIX USERS COUNT PAUSE
--
-- MIX: uniform   a user below USERS at random for each request
--      each      every user below USERS once, in turn, then the last
--      rotation  of 500 devices one at random sends two requests; after 10 it has a new token; USERS tokens in all
--
-- COUNT 0 goes on until wrk ends; else a line on stderr says that so many are answered. PAUSE is the mean time in seconds
-- that a connection waits between requests, exponentially distributed; 0 is none. At the end comes one line of JSON.

local thread_of_wrk

function setup(thread) thread_of_wrk = thread end

function init(args)
   mix, users, count, pause = args[1], tonumber(args[2]), tonumber(args[3]), tonumber(args[4])
   asked, answered, bad = 0, 0, 0
   math.randomseed(7)
   -- wrk takes a script's function as a wish to be delayed.
   if pause == 0 then delay = nil end
end

function delay() return math.baseline(-math.log(1 - math.random()) * pause * 1000 + 0.5) end

local DEVICES = 500
local generation, left, again = {}, {}, nil

local function rotating()
   if again then
      local n = again
      again = nil
      return n
   end
   local device
   repeat device = math.random(0, DEVICES - 1) until (generation[device] or 0) < users / DEVICES or asked >= count
   local number = generation[device] or 0
   if number >= users / DEVICES then return device end
   left[device] = (left[device] or 10) - 2
   if left[device] == 0 then
      generation[device], left[device] = number + 1, 10
   end
   again = device + number * DEVICES
   return again
end

local HEAD = "GET /_matrix/client/v3/sync?since=s72594_4483_1934_109_23_1_42_7_0_12&timeout=30000&filter=0 HTTP/1.1\r\n"
   .. "Host: matrix.example.org\r\nUser-Agent: Element/1.11.94 (Linux; x86_64)\r\nAccept: application/json\r\n"
   .. "Accept-Encoding: gzip, deflate, br\r\nAuthorization: Bearer mat_u"
local TAIL = "_Xk3fQ9vLwZ8pRt5yB2mN7cD4hJ\r\n\r\n"

function request()
   local n
   if mix == "rotation" then n = rotating()
   elseif mix == "each" then n = math.min(asked, users - 1)
   else n = math.random(0, users - 1) end
   asked = asked + 1
   return HEAD .. string.format("%09d", n) .. TAIL
end

function response(status)
   if status ~= 200 then bad = bad + 1 end
   answered = answered + 1
   if answered == count then
      wrk.thread:stop()
      -- The process sleeps through its -d all the same: who reads this line wakes it by SIGINT.
      io.stderr:write("over\n")
      io.stderr:flush()
   end
end

function done(summary, latency)
   local e = summary.errors
   print(string.format('{"requests":%d,"seconds":%.3f,"broken":%d,"p50":%.3f,"p99":%.3f,"p999":%.3f}', summary.requests,
      summary.duration / 1e6, e.connect + e.read + e.write + e.timeout + (thread_of_wrk:get("bad") or 0),
      latency:percentile(50) / 1000, latency:percentile(99) / 1000, latency:percentile(99.9) / 1000))
end
