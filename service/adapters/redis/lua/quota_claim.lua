-- Enters how many connections a node has, if that keeps all nodes together under the cap.
-- KEYS: 1 holdings (hash: node -> "connections serial expiry")
-- ARGV: 1 node, 2 connections, 3 serial, 4 most (-1 for no cap), 5 ttl (ms)
-- Returns how many connections all nodes would have with that

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local held, serial, most, ttl = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local total, newest = held, -1

local rows = redis.call('HGETALL', KEYS[1])
for index = 1, #rows, 2 do
  local connections, entered, expiry = string.match(rows[index + 1], '^(%d+) (%d+) (%d+)$')
  if rows[index] == ARGV[1] then
    newest = tonumber(entered)
  elseif tonumber(expiry) <= now then
    redis.call('HDEL', KEYS[1], rows[index])
  else
    total = total + tonumber(connections)
  end
end

-- What a node said earlier may arrive later. An entry of 0 stays until it expires, so as to know that.
if serial > newest and (most < 0 or total <= most) then
  redis.call('HSET', KEYS[1], ARGV[1], string.format('%d %d %d', held, serial, now + ttl))
  redis.call('PEXPIRE', KEYS[1], ttl)
end
return total
