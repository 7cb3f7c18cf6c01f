-- Has a connection's user be shown with this info, and tells of it if that is another one.
-- KEYS: 4 where to tell
-- ARGV: 1 user, 2 connection, 3 info ('' for none), 4 most users told of one by one, 5 PUBLISH or SPUBLISH, 6 message
-- Returns {0, users now, 1 if it was told}

local user, connection, info = ARGV[1], ARGV[2], ARGV[3]
local list = redis.call('HGET', KEYS[1], user)
local rest, known = without(list or '', connection)
if not known then return no_change() end
local before = shown(user, list)
redis.call('HSET', KEYS[1], user, rest == '' and connection or rest .. ' ' .. connection)
show(user, connection, info)
if before == info then return no_change() end
return change(0, tonumber(ARGV[4]), ARGV[5], KEYS[4], ARGV[6])
