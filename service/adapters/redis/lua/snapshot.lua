-- Reads a channel at one moment.
-- KEYS: 5 expiries (values.lua)
-- ARGV: 4 epoch and 5 offset of the position to resume from (or ""), 6 maximum of events and 7 of bytes to read,
--       8 age (microseconds) that an epoch must have before a position may end it, 9 number of last events to read
-- Returns {epoch, offset, id, state version, {type\nkey, value, …}, events from that offset on or nil, offset at which the
--          epoch began or nil, time in ms, last events or nil}. Some of the values may have ended.

local channel, stale = open(redis.call('GET', KEYS[1]), true)
if stale then return stale end
keep_empty(channel, EMPTY_TTL)
expire_stream(channel.t)
expire_state(channel.u)
if channel.r > 0 then remove_ended() end

local events = nil
local since = tonumber(ARGV[5])
-- A position ahead of the stream, or in a later epoch, shows that the channel was set back. But a client can invent
-- such a position.
if since and (ARGV[4] ~= channel.e or since > channel.o) then
  local rare = rare_functions()
  local age = time[1] * 1000000 + time[2] - rare.start_of(channel.e)
  if (ARGV[4] == channel.e or rare.is_later(ARGV[4], channel.e)) and age >= tonumber(ARGV[8]) then
    rare.begin_epoch(channel, '')
  end
end
if ARGV[4] == channel.e and since < channel.o and channel.o - since <= tonumber(ARGV[6]) then
  events = {}
  local bytes, from = 0, since
  while events and from <= channel.o do
    local part = redis.call('XRANGE', KEYS[2], from .. '-0', '+', 'COUNT', 100)
    for _, entry in ipairs(part) do
      if string.match(entry[1], '^(%d+)') + 0 > since then bytes = bytes + #entry[2][2] end
      events[#events + 1] = entry
    end
    -- A body is longer than its data, so this bound is wider than the caller's, which the caller checks.
    if bytes > tonumber(ARGV[7]) + 512 * #events then events = nil end
    if #part < 100 then break end
    from = string.match(part[#part][1], '^(%d+)') + 1
  end
  events = events and with_tombstones(events, math.max(1, since), channel.o)
end
local state = redis.call('HGETALL', KEYS[3])
local count, last = tonumber(ARGV[9]), false
if count > 0 then
  -- Bodies are longer than their data, as above.
  last = read_page(math.max(first_offset(channel), channel.o - count + 1), channel.o, false, ARGV[7] + 512 * count)
end
return {channel.e, channel.o, channel.i, channel.r, state, events or false, channel.b or false, now, last}
