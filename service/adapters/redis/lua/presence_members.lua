-- Reads who is there, by name.
-- ARGV: 1 most members
-- Returns {users, user, connections that have not expired, info or '', user, …}

local users = redis.call('HKEYS', KEYS[1])
table.sort(users)
local found = {#users}
for index = 1, math.min(#users, tonumber(ARGV[1])) do
  local user, live = users[index], 0
  local list = redis.call('HGET', KEYS[1], user)
  for connection in string.gmatch(list, '%S+') do
    local expiry = redis.call('ZSCORE', KEYS[2], entry_of(user, connection))
    if expiry and tonumber(expiry) > now then live = live + 1 end
  end
  found[#found + 1] = user
  found[#found + 1] = live
  found[#found + 1] = shown(user, list)
end
return found
