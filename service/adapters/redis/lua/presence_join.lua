-- Enters a connection, and tells of the user's coming if it is the first, or of other info that it brings.
-- KEYS: 4 where to tell
-- ARGV: 1 user, 2 connection, 3 info ('' for none), 4 ttl (ms), 5 keep (ms), 6 most users told of one by one,
--       7 PUBLISH or SPUBLISH, 8 message
-- Returns {1 if the user has come, users now, 1 if it was told}

local user, connection, info = ARGV[1], ARGV[2], ARGV[3]
local list = redis.call('HGET', KEYS[1], user)
local _, known = without(list or '', connection)
redis.call('ZADD', KEYS[2], now + ARGV[4], entry_of(user, connection))
local before = list and shown(user, list) or info
if info == '' then info = before end
local news = not list or (not known and before ~= info)
if not known then
  redis.call('HSET', KEYS[1], user, list and list .. ' ' .. connection or connection)
  show(user, connection, info)
end
keep(ARGV[5])
if not news then return no_change() end
return change(list and 0 or 1, tonumber(ARGV[6]), ARGV[7], KEYS[4], ARGV[8])
