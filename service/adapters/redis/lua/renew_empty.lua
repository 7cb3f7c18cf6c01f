-- Keeps the position of an empty channel while a node is subscribed.
-- ARGV: 4 TTL (ms)
-- Returns 1 if the channel is empty, else 0

local channel, stale = open(redis.call('GET', KEYS[1]), false)
if stale then return stale end
if not channel or not is_empty(channel) then return 0 end
keep_empty(channel, ARGV[4])
return 1
