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
-- Reads in parts, up to the limit in bytes, because Redis serves no other client meanwhile. A page before an offset is
-- read from its end.
local parts, bytes, max_bytes = {}, 0, tonumber(ARGV[7])
while low <= high and bytes < max_bytes do
  local from, to = low, high
  if after then to = math.min(high, low + 49) else from = math.max(low, high - 49) end
  local part = redis.call('XRANGE', KEYS[2], from .. '-0', to .. '-18446744073709551615')
  part = with_tombstones(part, from, to)
  for _, entry in ipairs(part) do bytes = bytes + #entry[2][2] end
  if after then parts[#parts + 1], low = part, to + 1 else table.insert(parts, 1, part) high = from - 1 end
end
local events = {}
for _, part in ipairs(parts) do
  for _, entry in ipairs(part) do events[#events + 1] = entry end
end
if low <= high then size = limit + 1 end
return {channel.e, channel.o, channel.i, events, size > limit and 1 or 0}
