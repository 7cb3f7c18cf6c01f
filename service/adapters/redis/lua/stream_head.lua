-- Tells how far a channel has come, without making it. One that lacks something of what the caller knows begins a new epoch.
-- ARGV: 4 epoch ("" if nothing is known), 5 offset, 6 id and 7 rev that the caller knows, 8 "1" if it knows that the channel
--       has been set back, unless the stream shows otherwise, 9 the lowest offset that was given again, as far as the caller
--       knows, or "", 10 milliseconds since when all that was accepted is not what the caller knows, or ""
-- Returns {epoch, offset, rev}

local channel, stale = open(redis.call('GET', KEYS[1]), false)
if stale then return stale end
if not channel then return {'', 0, 0} end
if ARGV[4] ~= '' then
  local rare = rarely()
  if rare.lacks(channel, ARGV[4], tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[7]), ARGV[8] == '1') then
    rare.begin_anew(channel, ARGV[4], tonumber(ARGV[9]), tonumber(ARGV[10]))
  end
end
return {channel.e, channel.o, channel.r}
