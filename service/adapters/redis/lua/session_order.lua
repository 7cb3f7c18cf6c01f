-- Keeps a user's connections in the order in which they came, and lets the oldest go when there are too many.
-- KEYS: 1 line (sorted set of connections by arrival in microseconds), 2 expiries (sorted set of the same by milliseconds)
-- ARGV: 1 most, 2 ttl (ms), 3… "+connection" has come, "=connection" is still there, "-connection" has gone
-- Returns the connections that have fallen out at the front

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local arrival = time[1] * 1000000 + time[2]

local function strike_out(connections)
  if #connections == 0 then return end
  redis.call('ZREM', KEYS[1], unpack(connections))
  redis.call('ZREM', KEYS[2], unpack(connections))
end

strike_out(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now))
-- One that has fallen out is not to come back by being there still; after a loss of the data all are.
local lost = redis.call('EXISTS', KEYS[1]) == 0
for index = 3, #ARGV do
  local sign, connection = string.sub(ARGV[index], 1, 1), string.sub(ARGV[index], 2)
  if sign == '-' then
    strike_out({connection})
  else
    if sign == '+' or lost then redis.call('ZADD', KEYS[1], 'NX', arrival + index, connection) end
    if redis.call('ZSCORE', KEYS[1], connection) then redis.call('ZADD', KEYS[2], now + ARGV[2], connection) end
  end
end

local above = redis.call('ZCARD', KEYS[1]) - ARGV[1]
local oldest = above > 0 and redis.call('ZRANGE', KEYS[1], 0, above - 1) or {}
strike_out(oldest)
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return oldest
