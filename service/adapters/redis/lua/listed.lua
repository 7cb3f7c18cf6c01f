-- Tells whether a channel has subscribers, history or state, without making it.
-- ARGV: 4 NUMSUB or SHARDNUMSUB, 5 where it is published
-- Returns {"1" if it is to be listed, milliseconds for which it is, by its history or state, epoch ("" if it has no position),
-- offset, id}

local channel, stale = open(redis.call('GET', KEYS[1]), false)
if stale then return stale end
local subscribers = redis.call('PUBSUB', ARGV[4], ARGV[5])[2]
if not channel then
  local there = subscribers > 0 and 1 or 0
  return {there, 0, '', 0, ''}
end
expire_stream(channel.t)
expire_state(channel.u)
-- From when the expiry of each was set last; readers may drop what is older.
local holds = math.max(channel.x + channel.t, channel.y + channel.u) - now
local listed = subscribers + redis.call('XLEN', KEYS[2]) + redis.call('HLEN', KEYS[3]) > 0
return {listed and 1 or 0, math.max(0, holds), channel.e, channel.o, channel.i}
