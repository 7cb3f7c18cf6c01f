-- Strikes a connection out, and tells of the user's going if it was the last.
-- KEYS: 4 where to tell
-- ARGV: 1 user, 2 connection, 3 "1" if only what has expired is to go, 4 most users told of one by one,
--       5 PUBLISH or SPUBLISH, 6 message
-- Returns {1 if the user has gone, users now, 1 if it was told}

local user, connection = ARGV[1], ARGV[2]
local entry = entry_of(user, connection)
if ARGV[3] == '1' then
  local expiry = redis.call('ZSCORE', KEYS[2], entry)
  if not expiry or tonumber(expiry) > now then return no_change() end
end
local list = redis.call('HGET', KEYS[1], user)
local rest, found = without(list or '', connection)
if found and rest ~= '' then  -- what is shown of the user stays
  local before = shown(user, list)
  redis.call('HSET', KEYS[1], user, rest)
  show(user, string.match(rest, '%S+$'), before)
end
redis.call('ZREM', KEYS[2], entry)
redis.call('HDEL', KEYS[3], entry)
if not found or rest ~= '' then return no_change() end
redis.call('HDEL', KEYS[1], user)
return change(1, tonumber(ARGV[4]), ARGV[5], KEYS[4], ARGV[6])
