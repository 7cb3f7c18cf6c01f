-- Reads whether a channel has subscribers, history or state, and does not create it.
-- KEYS: 5 expiries (values.lua)
-- ARGV: 4 NUMSUB or SHARDNUMSUB, 5 Pub/Sub channel
-- Returns {1 if it can be listed, ms for which its history or state makes it so, epoch ("" without a position), offset, id}

local channel, stale = open(redis.call('GET', KEYS[1]), false)
if stale then return stale end
local subscribers = redis.call('PUBSUB', ARGV[4], ARGV[5])[2]
if not channel then
  local is_listed = subscribers > 0 and 1 or 0
  return {is_listed, 0, '', 0, ''}
end
expire_stream(channel.t)
expire_state(channel.u)
if channel.r > 0 then remove_ended() end
-- Computed from the times at which the expiries were last set. Readers may drop older entries earlier.
local valid_for = math.max(channel.x + channel.t, channel.y + channel.u) - now
local is_listed = subscribers + redis.call('XLEN', KEYS[2]) + redis.call('HLEN', KEYS[3]) > 0
return {is_listed and 1 or 0, math.max(0, valid_for), channel.e, channel.o, channel.i}
