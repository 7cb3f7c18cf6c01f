-- Tells the reign of a server, and begins one for a caller that has seen another server since it was here.
-- KEYS: 1 reign ("<number> <milliseconds at which it began>")
-- ARGV: 1 the highest reign that the caller knows, 2 milliseconds since when the caller may have had something accepted by
--       another server, or "" if it has seen none, 3 the number that a reign has to be above
-- Returns {reign (0 if there never was one), microseconds since 1970}
--
-- Numbers only rise, from server to server too, so that nobody mistakes an old one for a new one. Nodes that come here together
-- begin one reign: what has begun after all that a caller had accepted elsewhere will do for it.

local time = redis.call('TIME')
local micros = time[1] * 1000000 + time[2]
local now = math.floor(micros / 1000)
local reign, began = string.match(redis.call('GET', KEYS[1]) or '', '^(%d+) (%d+)$')
reign, began = tonumber(reign) or 0, tonumber(began) or 0
local known, since = tonumber(ARGV[1]), tonumber(ARGV[2])

if since and (began <= now - since or began > now) then
  reign, began = math.max(reign + 1, known + 1, tonumber(ARGV[3]) + 1, micros), now
  redis.call('SET', KEYS[1], string.format('%d %d', reign, began))
elseif reign < known then
  reign = known
  redis.call('SET', KEYS[1], string.format('%d %d', reign, began))
end
return {reign, micros}
