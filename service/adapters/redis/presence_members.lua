-- Reads who is there, by name.
-- ARGV: 1 most members
-- Returns {users, user, connections that have not expired, info or '', user, …}

local users = redis.call('HKEYS', KEYS[1])
table.sort(users)
local found = {#users}
for index = 1, math.min(#users, tonumber(ARGV[1])) do
  local user, live, newest = users[index], 0, nil
  for connection in string.gmatch(redis.call('HGET', KEYS[1], user), '%S+') do
    local entry = entry_of(user, connection)
    local expiry = redis.call('ZSCORE', KEYS[2], entry)
    if expiry and tonumber(expiry) > now then live, newest = live + 1, entry end
  end
  found[#found + 1] = user
  found[#found + 1] = live
  found[#found + 1] = newest and redis.call('HGET', KEYS[3], newest) or ''
end
return found
