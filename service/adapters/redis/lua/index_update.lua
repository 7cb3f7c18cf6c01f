-- Updates the index of a tenant's channels, and returns expired entries for the caller to check (index_settle.lua).
--
-- KEYS: 1 names (sorted set, every score 0, so that names are in order), 2 expiries (the same names, by the ms of their expiry)
-- ARGV: 1 TTL of an entry (ms), 2 time (ms) for which an expired entry belongs to the caller, 3 maximum of those,
--       4… "+name" is present, "-name" has lost a subscriber, "!name" cannot be listed
-- Returns {new expiry of the expired entries, name, …}

-- How long the index outlives its last entry. More than a day: a publish adds its channel again once a day.
local MARGIN = 2 * 86400000

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function set_expiry(expiry, name)
  redis.call('ZADD', KEYS[2], string.format('%d', expiry), name)
end

for index = 4, #ARGV do
  local sign, name = string.sub(ARGV[index], 1, 1), string.sub(ARGV[index], 2)
  -- Reads the expiry. ZSCORE would need another right in the ACL.
  local expiry = tonumber(redis.call('ZADD', KEYS[2], 'XX', 'INCR', 0, name) or 0)
  if sign == '+' then
    redis.call('ZADD', KEYS[1], 0, name)
    -- The expiry always changes, so that a node that is checking the entry does not remove it.
    set_expiry(math.max(expiry + 1, now + ARGV[1]), name)
  elseif sign == '!' or (expiry > 0 and expiry <= now + ARGV[1]) then
    set_expiry(now, name)
  end
end

local claimed = string.format('%d', now + ARGV[2])
local expired = redis.call('ZRANGE', KEYS[2], '-inf', now, 'BYSCORE', 'LIMIT', 0, ARGV[3])
for _, name in ipairs(expired) do redis.call('ZADD', KEYS[2], claimed, name) end

local last = redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')[2]
if last then
  local ttl = string.format('%d', math.max(0, last - now) + MARGIN)
  redis.call('PEXPIRE', KEYS[1], ttl)
  redis.call('PEXPIRE', KEYS[2], ttl)
end
return {claimed, unpack(expired)}
