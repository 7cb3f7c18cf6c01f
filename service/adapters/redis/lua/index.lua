-- Notes which channels of a tenant may be listed, and finds those that have to be looked at again.
--
-- KEYS: 1 names (sorted set, every score 0, so that names are in order), 2 dues (the same names by the millisecond until which
--       an entry holds)
-- ARGV: 1 milliseconds that an entry holds, 2 milliseconds for which one that is due is left to the caller, 3 most of those,
--       4… "+name" is there, "-name" has lost a subscriber, "!name" is not worth listing
-- Returns {their due from now on, name, …}: for the caller to look at, and to settle (index_settle.lua)

-- How long the whole index outlives its last entry: a channel that is published to is entered again once a day.
local MARGIN = 2 * 86400000

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function put(due, name)
  redis.call('ZADD', KEYS[2], string.format('%d', due), name)
end

for index = 4, #ARGV do
  local sign, name = string.sub(ARGV[index], 1, 1), string.sub(ARGV[index], 2)
  local due = tonumber(redis.call('ZADD', KEYS[2], 'XX', 'INCR', 0, name) or 0) -- reads it, with a right that is there anyway
  if sign == '+' then
    redis.call('ZADD', KEYS[1], 0, name)
    -- Always another due than before: whoever is looking at the entry right now must not drop it.
    put(math.max(due + 1, now + ARGV[1]), name)
  elseif sign == '!' or (due > 0 and due <= now + ARGV[1]) then
    put(now, name)
  end
end

local claimed = string.format('%d', now + ARGV[2])
local found = redis.call('ZRANGE', KEYS[2], '-inf', now, 'BYSCORE', 'LIMIT', 0, ARGV[3])
for _, name in ipairs(found) do redis.call('ZADD', KEYS[2], claimed, name) end

local last = redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')[2]
if last then
  local left = string.format('%d', math.max(0, last - now) + MARGIN)
  redis.call('PEXPIRE', KEYS[1], left)
  redis.call('PEXPIRE', KEYS[2], left)
end
return {claimed, unpack(found)}
