-- Tells how far a channel has come, without making it.
-- Returns {epoch, offset, rev}

local channel, stale = open(redis.call('GET', KEYS[1]), false)
if stale then return stale end
if not channel then return {'', 0, 0} end
return {channel.e, channel.o, channel.r}
