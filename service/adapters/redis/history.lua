-- Reads a page of a stream.
-- ARGV: 4 after and 5 before (offsets, or ""), 6 limit
-- Returns {epoch, offset, id, events, "1" if there are more, "1" if the channel is new}

local channel, stale = open(true)
if stale then return stale end
expire_stream(channel.t)

local first = channel.o - redis.call('XLEN', KEYS[2]) + 1
local after, before, limit = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local low = after and math.max(first, after + 1) or first
local high = before and math.min(channel.o, before - 1) or channel.o
local size = math.max(0, high - low + 1)
if after then high = math.min(high, low + limit - 1) else low = math.max(low, high - limit + 1) end
local events = {}
if low <= high then events = redis.call('XRANGE', KEYS[2], low .. '-0', high .. '-18446744073709551615') end
return {channel.e, channel.o, channel.i, events, size > limit and 1 or 0, channel.fresh}
