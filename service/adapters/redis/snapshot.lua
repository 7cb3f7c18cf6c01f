-- Reads a channel as of one moment.
-- ARGV: 4 epoch and 5 offset of the position to resume from (or ""), 6 events and 7 bytes that may be read
-- Returns {epoch, offset, id, rev, {type\nkey, value, …}, events from that offset on or nil}

local channel, stale = open(redis.call('GET', KEYS[1]), true)
if stale then return stale end
keep_empty(channel, EMPTY)
expire_stream(channel.t)
expire_state(channel.u)

local events = nil
local since = tonumber(ARGV[5])
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
return {channel.e, channel.o, channel.i, channel.r, redis.call('HGETALL', KEYS[3]), events or false}
