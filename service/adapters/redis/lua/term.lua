-- Reads the term of a server, and begins a new one for a caller that has used another server since.
-- KEYS: 1 term ("<number> <ms at which it began>")
-- ARGV: 1 the highest term that the caller knows, 2 ms since when another server may have accepted something for the caller, or
--       "" if there was none, 3 a number that a new term must exceed
-- Returns {term (0 if there never was one), microseconds since the Unix epoch}
--
-- Terms only rise, also across servers, so that no node mistakes an old term for a new one. Nodes that connect at the
-- same time share one term. It is new enough for a caller if it began after everything that another server had accepted
-- for that caller.

local time = redis.call('TIME')
local micros = time[1] * 1000000 + time[2]
local now = math.floor(micros / 1000)
local term, began = string.match(redis.call('GET', KEYS[1]) or '', '^(%d+) (%d+)$')
term, began = tonumber(term) or 0, tonumber(began) or 0
local known, since = tonumber(ARGV[1]), tonumber(ARGV[2])

if since and (began <= now - since or began > now) then
  term, began = math.max(term + 1, known + 1, tonumber(ARGV[3]) + 1, micros), now
  redis.call('SET', KEYS[1], string.format('%d %d', term, began))
elseif term < known then
  term = known
  redis.call('SET', KEYS[1], string.format('%d %d', term, began))
end
return {term, micros}
