-- Says what has become of entries that were due, unless somebody has entered them again meanwhile.
-- KEYS: as index.lua
-- ARGV: 1 their due, as index.lua returned it, 2… name and milliseconds that it holds ("0": it goes), in turn

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

for index = 2, #ARGV, 2 do
  local name, holds = ARGV[index], tonumber(ARGV[index + 1])
  local due = redis.call('ZADD', KEYS[2], 'XX', 'INCR', 0, name) -- reads it, as in index.lua
  if due and tonumber(due) == tonumber(ARGV[1]) then
    if holds > 0 then
      redis.call('ZADD', KEYS[2], string.format('%d', now + holds), name)
    else
      redis.call('ZREM', KEYS[1], name)
      redis.call('ZREM', KEYS[2], name)
    end
  end
end
return 0
