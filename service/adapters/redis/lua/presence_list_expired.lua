-- Lists expired entries.
-- ARGV: 1 maximum of entries
-- Returns {entry, info of the user or '', connections of the user, or 0 if one of them is alive, entry, …}

local found = {}
for _, entry in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, ARGV[1])) do
  local user = string.sub(entry, string.find(entry, ' ', 1, true) + 1)
  local list = redis.call('HGET', KEYS[1], user) or ''
  found[#found + 1] = entry
  found[#found + 1] = list == '' and '' or info_of(user, list)
  local live, expired = sorted(user, list)
  found[#found + 1] = #live == 0 and #expired or 0
end
return found
