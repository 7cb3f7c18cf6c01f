-- Tells whether a channel has subscribers, history or state, without making it.
-- ARGV: 4 NUMSUB or SHARDNUMSUB, 5 where it is published
-- Returns {"1" if it is to be listed, "1" if it is known at all, epoch, offset, id}

local channel, stale = open(redis.call('GET', KEYS[1]), false)
if stale then return stale end
local subscribers = redis.call('PUBSUB', ARGV[4], ARGV[5])[2]
if not channel then
  local there = subscribers > 0 and 1 or 0
  return {there, there, '', 0, ''}
end
expire_stream(channel.t)
expire_state(channel.u)
local listed = subscribers + redis.call('XLEN', KEYS[2]) + redis.call('HLEN', KEYS[3]) > 0
return {listed and 1 or 0, 1, channel.e, channel.o, channel.i}
