-- Drops the history and the state of a channel, and begins a new epoch. Offsets and state versions continue.
-- ARGV: 4 PUBLISH or SPUBLISH, 5 Pub/Sub channel, 6 body of the message that shows nodes the new epoch
-- Returns {epoch ("" if nothing was ever published), offset, id}

local channel, stale = open(redis.call('GET', KEYS[1]), false)
if stale then return stale end
if not channel or (channel.o == 0 and channel.r == 0) then return {'', 0, ''} end
redis.call('DEL', KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6])
channel.e, channel.b = rare_functions().new_epoch(channel.e), channel.o
channel.x, channel.y = 0, 0 -- the next publish sets the expiries again
redis.call('SET', KEYS[1], encode_meta(channel), 'KEEPTTL')
-- At the newest position, where no event can follow: so each node reads the channel, and delivers the message to nobody.
local at = channel.o > 0 and string.format('d%s %d', channel.e, channel.o) or string.format('l%s %d', channel.e, channel.r)
redis.call(ARGV[4], ARGV[5], at .. '\n' .. ARGV[6])
return {channel.e, channel.o, channel.i}
