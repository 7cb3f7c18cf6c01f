-- Values of the state with a TTL of their own.
-- KEYS: 5 expiries (sorted set of type\nkey by the ms at which the value ends). An entry may be older than its value:
--       a value that replaces another one without a TTL leaves it.

local MAX_ENDED = 64 -- one call removes at most so many; reads drop the others

-- The ms at which a value ends by its own TTL; nil without one.
local function expiry_of(value)
  local accepted, elements = string.match(value, '^%d+ (%d+)\n(.)')
  -- The body is an array. The seventh element is the TTL in eleven digits, or empty. If there are nine, the other two take 26 bytes:
  -- an empty text, and the id of a connection (event_codec.py).
  local after = elements == '\153' and 26 or 0
  if elements ~= '\151' and after == 0 then return nil end
  local ttl = string.match(string.sub(value, -11 - after, -1 - after), '^%d+$')
  return ttl and accepted + ttl
end

-- Removes values that have ended. Returns nothing.
local function remove_ended()
  for _, field in ipairs(redis.call('ZRANGE', KEYS[5], '-inf', now, 'BYSCORE', 'LIMIT', 0, MAX_ENDED)) do
    local value = redis.call('HGET', KEYS[3], field)
    local expiry = value and expiry_of(value)
    if expiry and expiry <= now then
      redis.call('HDEL', KEYS[3], field)
      redis.call('ZREM', KEYS[4], field)
    end
    redis.call('ZREM', KEYS[5], field)
  end
end

-- The state version of a value; 0 if there is none. `state_ttl`: TTL (ms) of the state.
local function version_of(field, state_ttl)
  local value = redis.call('HGET', KEYS[3], field)
  if not value then return 0 end
  local version, accepted = string.match(value, '^(%d+) (%d+)\n')
  local expiry = expiry_of(value)
  if accepted + state_ttl <= now or (expiry and expiry <= now) then return 0 end
  return tonumber(version)
end
