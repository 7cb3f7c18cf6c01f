-- Adds a connection, and publishes the event if it is the user's first or brings other info.
-- KEYS: 4 Pub/Sub channel
-- ARGV: 1 user, 2 connection, 3 info ('' for none), 4 TTL of the entry (ms), 5 TTL of the keys (ms), 6 maximum of users with
--       events, 7 PUBLISH or SPUBLISH, 8 message
-- Returns {1 if the user has joined, users now, 1 if the event was published}

local user, connection, info = ARGV[1], ARGV[2], ARGV[3]
local list = redis.call('HGET', KEYS[1], user)
local _, is_known = without(list or '', connection)
redis.call('ZADD', KEYS[2], now + ARGV[4], entry_of(user, connection))
local before = list and info_of(user, list) or info
if info == '' or is_updated(before) then info = before end
local is_news = not list or (not is_known and before ~= info)
if not is_known then
  redis.call('HSET', KEYS[1], user, list and list .. ' ' .. connection or connection)
  set_info(user, connection, info)
end
keep(ARGV[5])
if not is_news then return no_change() end
return announce(list and 0 or 1, tonumber(ARGV[6]), ARGV[7], KEYS[4], ARGV[8])
