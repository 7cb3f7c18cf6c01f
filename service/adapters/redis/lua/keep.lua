-- Keeps the position of a channel in which nothing was ever published, while somebody is subscribed.
-- ARGV: 4 milliseconds
-- Returns "1" if there is such a position

local channel, stale = open(redis.call('GET', KEYS[1]), false)
if stale then return stale end
if not channel or not is_empty(channel) then return 0 end
keep_empty(channel, ARGV[4])
return 1
