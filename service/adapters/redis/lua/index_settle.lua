-- Removes or renews expired entries of the index, unless a node has added them again meanwhile.
-- KEYS: as in index_update.lua
-- ARGV: 1 their expiry, as index_update.lua returned it, 2… pairs of a name and the ms for which it is valid (0 removes it)

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

for index = 2, #ARGV, 2 do
  local name, valid_for = ARGV[index], tonumber(ARGV[index + 1])
  local expiry = redis.call('ZADD', KEYS[2], 'XX', 'INCR', 0, name) -- reads it, as in index_update.lua
  if expiry and tonumber(expiry) == tonumber(ARGV[1]) then
    if valid_for > 0 then
      redis.call('ZADD', KEYS[2], string.format('%d', now + valid_for), name)
    else
      redis.call('ZREM', KEYS[1], name)
      redis.call('ZREM', KEYS[2], name)
    end
  end
end
return 0
