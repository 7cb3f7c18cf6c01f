-- Reads the members, by name.
-- ARGV: 1 maximum of members
-- Returns {users, user, connections that have not expired, info or '', user, …}

local users = redis.call('HKEYS', KEYS[1])
table.sort(users)
local members = {#users}
for index = 1, math.min(#users, tonumber(ARGV[1])) do
  local user, live = users[index], 0
  local list = redis.call('HGET', KEYS[1], user)
  for connection in string.gmatch(list, '%S+') do
    local expiry = redis.call('ZSCORE', KEYS[2], entry_of(user, connection))
    if expiry and tonumber(expiry) > now then live = live + 1 end
  end
  members[#members + 1] = user
  members[#members + 1] = live
  members[#members + 1] = info_of(user, list)
end
return members
