-- Orders a user's connections by age, and removes the oldest above the limit.
-- KEYS: 1 order (sorted set of connections by the microseconds of their start), 2 expiries (the same by milliseconds)
-- ARGV: 1 limit, 2 TTL (ms), 3… "+connection" is new, "=connection" is still open, "-connection" has ended
-- Returns the removed connections

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local start = time[1] * 1000000 + time[2]

local function remove(connections)
  if #connections == 0 then return end
  redis.call('ZREM', KEYS[1], unpack(connections))
  redis.call('ZREM', KEYS[2], unpack(connections))
end

remove(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now))
-- An open connection that was removed must not be added again. After a loss of data, all open ones must be added.
local is_lost = redis.call('EXISTS', KEYS[1]) == 0
for index = 3, #ARGV do
  local sign, connection = string.sub(ARGV[index], 1, 1), string.sub(ARGV[index], 2)
  if sign == '-' then
    remove({connection})
  else
    if sign == '+' or is_lost then redis.call('ZADD', KEYS[1], 'NX', start + index, connection) end
    if redis.call('ZSCORE', KEYS[1], connection) then redis.call('ZADD', KEYS[2], now + ARGV[2], connection) end
  end
end

local excess = redis.call('ZCARD', KEYS[1]) - ARGV[1]
local oldest = excess > 0 and redis.call('ZRANGE', KEYS[1], 0, excess - 1) or {}
remove(oldest)
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return oldest
