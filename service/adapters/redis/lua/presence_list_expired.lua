-- Lists expired entries.
-- ARGV: 1 maximum of entries
-- Returns {entry, info of the user or '', 1 if no connection of the user is alive, entry, …}

local found = {}
for _, entry in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, ARGV[1])) do
  local user = string.sub(entry, string.find(entry, ' ', 1, true) + 1)
  local list = redis.call('HGET', KEYS[1], user) or ''
  found[#found + 1] = entry
  found[#found + 1] = list == '' and '' or info_of(user, list)
  found[#found + 1] = #live(user, list) == 0 and 1 or 0
end
return found
