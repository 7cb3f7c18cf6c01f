-- Reads the newest position and state version of a channel, and does not create it. If the channel lacks something that
-- the caller has delivered, begins a new epoch.
-- ARGV: 4 epoch ("" if the caller has delivered nothing), 5 offset, 6 id and 7 state version that the caller has delivered,
--       8 1 if the caller is certain that the channel was set back, unless the stream shows otherwise,
--       9 the lowest offset that was given twice, or "",
--       10 age (ms) up to which accepted events belong to the new epoch, or ""
-- Returns {epoch, offset, state version}

local channel, stale = open(redis.call('GET', KEYS[1]), false)
if stale then return stale end
if not channel then return {'', 0, 0} end
if ARGV[4] ~= '' then
  local rare = rare_functions()
  if rare.lacks(channel, ARGV[4], tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[7]), ARGV[8] == '1') then
    rare.begin_epoch(channel, ARGV[4], tonumber(ARGV[9]), tonumber(ARGV[10]))
  end
end
return {channel.e, channel.o, channel.r}
