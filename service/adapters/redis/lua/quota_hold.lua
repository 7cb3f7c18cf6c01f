-- Counts a session of long polls as one connection of its user, whichever node holds it.
-- KEYS: 1 claims (hash; a session's row has the form of a node's: field -> "1 holder expiry", so that quota_claim.lua counts it)
-- ARGV: 1 field of the session, 2 number of the node, 3 limit (-1 for none), 4 TTL (ms), 5 "take", "renew" or "release"
-- Returns {connections of all nodes with the session, number of the node that held it (0 for none)}

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local node, limit, ttl, change = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local total, holder = 1, 0

local rows = redis.call('HGETALL', KEYS[1])
for index = 1, #rows, 2 do
  local connections, number, expiry = string.match(rows[index + 1], '^(%d+) (%d+) (%d+)$')
  if tonumber(expiry) <= now then
    redis.call('HDEL', KEYS[1], rows[index])
  elseif rows[index] == ARGV[1] then
    holder = tonumber(number)
  else
    total = total + tonumber(connections)
  end
end

local is_own = holder == 0 or holder == node
if change == 'release' then
  if is_own then redis.call('HDEL', KEYS[1], ARGV[1]) end
elseif (change == 'take' and (holder ~= 0 or limit < 0 or total <= limit)) or (change == 'renew' and is_own) then
  redis.call('HSET', KEYS[1], ARGV[1], string.format('1 %.0f %.0f', node, now + ttl))
  redis.call('PEXPIRE', KEYS[1], ttl)
end
return {total, holder}
