-- Enters a connection, and tells of the user's coming if it is the first.
-- KEYS: 4 where to tell
-- ARGV: 1 user, 2 connection, 3 info ('' for none), 4 ttl (ms), 5 keep (ms), 6 most users told of one by one,
--       7 PUBLISH or SPUBLISH, 8 message
-- Returns {1 if the user has come, users now, 1 if it was told}

local user, connection, info = ARGV[1], ARGV[2], ARGV[3]
local entry = entry_of(user, connection)
local list = redis.call('HGET', KEYS[1], user)
local _, known = without(list or '', connection)
redis.call('ZADD', KEYS[2], now + ARGV[4], entry)
if not known then
  redis.call('HSET', KEYS[1], user, list and list .. ' ' .. connection or connection)
  if info ~= '' then redis.call('HSET', KEYS[3], entry, info) end
end
keep(ARGV[5])
if list then return no_change() end
return change(tonumber(ARGV[6]), ARGV[7], KEYS[4], ARGV[8])
