-- Reads a channel as of one moment.
-- ARGV: 4 epoch and 5 offset of the position to resume from (or ""), 6 events and 7 bytes that may be read, 8 microseconds that
--       an epoch must have lasted to be ended for the sake of a position
-- Returns {epoch, offset, id, rev, {type\nkey, value, …}, events from that offset on or nil, offset at which the epoch began
--          or nil}

local channel, stale = open(redis.call('GET', KEYS[1]), true)
if stale then return stale end
keep_empty(channel, EMPTY)
expire_stream(channel.t)
expire_state(channel.u)

local events = nil
local since = tonumber(ARGV[5])
-- Whoever has been further, or in a later epoch, knows that the channel was set back. But anyone can say so.
if since and (ARGV[4] ~= channel.e or since > channel.o) then
  local rare = rarely()
  local age = time[1] * 1000000 + time[2] - rare.number(channel.e)
  if (ARGV[4] == channel.e or rare.is_later(ARGV[4], channel.e)) and age >= tonumber(ARGV[8]) then
    rare.begin_anew(channel, '')
  end
end
if ARGV[4] == channel.e and since < channel.o and channel.o - since <= tonumber(ARGV[6]) then
  events = {}
  local bytes, from = 0, since
  while events and from <= channel.o do
    local some = redis.call('XRANGE', KEYS[2], from .. '-0', '+', 'COUNT', 100)
    for _, entry in ipairs(some) do
      if string.match(entry[1], '^(%d+)') + 0 > since then bytes = bytes + #entry[2][2] end
      events[#events + 1] = entry
    end
    -- A body is longer than its data; what that comes to is for the caller to judge.
    if bytes > tonumber(ARGV[7]) + 512 * #events then events = nil end
    if #some < 100 then break end
    from = string.match(some[#some][1], '^(%d+)') + 1
  end
end
return {channel.e, channel.o, channel.i, channel.r, redis.call('HGETALL', KEYS[3]), events or false, channel.b or false}
