-- Stores how many connections a node has, unless all nodes together would then exceed the limit.
-- KEYS: 1 claims (hash: node -> "connections serial expiry")
-- ARGV: 1 node, 2 connections, 3 serial, 4 limit (-1 for none), 5 TTL (ms)
-- Returns how many connections all nodes would have with this claim

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local claimed, serial, limit, ttl = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local total, newest = claimed, -1

local rows = redis.call('HGETALL', KEYS[1])
for index = 1, #rows, 2 do
  local connections, stored, expiry = string.match(rows[index + 1], '^(%d+) (%d+) (%d+)$')
  if rows[index] == ARGV[1] then
    newest = tonumber(stored)
  elseif tonumber(expiry) <= now then
    redis.call('HDEL', KEYS[1], rows[index])
  else
    total = total + tonumber(connections)
  end
end

-- An older claim of the node may arrive later. So a claim of 0 stays until it expires: it keeps the serial.
if serial > newest and (limit < 0 or total <= limit) then
  redis.call('HSET', KEYS[1], ARGV[1], string.format('%d %d %d', claimed, serial, now + ttl))
  redis.call('PEXPIRE', KEYS[1], ttl)
end
return total
