-- Reads a page of a stream.
-- ARGV: 4 after and 5 before (offsets, or ""), 6 limit, 7 bytes after which the page ends early
-- Returns {epoch, offset, id, events, 1 if there are more}

local channel, stale = open(redis.call('GET', KEYS[1]), true)
if stale then return stale end
keep_empty(channel, EMPTY_TTL)
expire_stream(channel.t)

local first = first_offset(channel)
local after, before, limit = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local low = after and math.max(first, after + 1) or first
local high = before and math.min(channel.o, before - 1) or channel.o
local size = math.max(0, high - low + 1)
if after then high = math.min(high, low + limit - 1) else low = math.max(low, high - limit + 1) end
local events
events, low, high = read_page(low, high, after ~= nil, tonumber(ARGV[7]))
if low <= high then size = limit + 1 end
return {channel.e, channel.o, channel.i, events, size > limit and 1 or 0}
