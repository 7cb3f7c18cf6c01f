-- Removes a connection, and publishes the event if it was the user's last.
-- KEYS: 4 Pub/Sub channel
-- ARGV: 1 user, 2 connection, 3 "1" to remove it only if it has expired, 4 maximum of users with events, 5 PUBLISH or SPUBLISH,
--       6 message
-- Returns {1 if the user has left, users now, 1 if the event was published}

local user, connection = ARGV[1], ARGV[2]
local entry = entry_of(user, connection)
if ARGV[3] == '1' then
  local expiry = redis.call('ZSCORE', KEYS[2], entry)
  if not expiry or tonumber(expiry) > now then return no_change() end
end
local list = redis.call('HGET', KEYS[1], user)
local rest, found = without(list or '', connection)
if found and rest ~= '' then  -- the user's info stays
  local before = info_of(user, list)
  redis.call('HSET', KEYS[1], user, rest)
  set_info(user, string.match(rest, '%S+$'), before)
end
redis.call('ZREM', KEYS[2], entry)
redis.call('HDEL', KEYS[3], entry)
if not found or rest ~= '' then return no_change() end
redis.call('HDEL', KEYS[1], user)
return announce(1, tonumber(ARGV[4]), ARGV[5], KEYS[4], ARGV[6])
