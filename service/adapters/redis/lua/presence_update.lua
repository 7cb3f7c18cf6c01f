-- Replaces a user's info, on behalf of one connection, and publishes the event if the info has changed.
-- KEYS: 4 Pub/Sub channel
-- ARGV: 1 user, 2 connection, 3 info ('' for none), 4 maximum of users with events, 5 PUBLISH or SPUBLISH, 6 message
-- Returns {0, users now, 1 if the event was published}; {} without an entry of the connection

local user, connection, info = ARGV[1], ARGV[2], ARGV[3]
local list = redis.call('HGET', KEYS[1], user)
local rest, is_known = without(list or '', connection)
if not is_known then return {} end
local before = info_of(user, list)
redis.call('HSET', KEYS[1], user, rest == '' and connection or rest .. ' ' .. connection)
set_info(user, connection, info)
if before == info then return no_change() end
return announce(0, tonumber(ARGV[4]), ARGV[5], KEYS[4], ARGV[6])
