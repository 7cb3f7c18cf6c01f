-- Reads the members, by name.
-- ARGV: 1 maximum of members
-- Returns {users, user, connections that have not expired, info or '', user, …}

local users = redis.call('HKEYS', KEYS[1])
table.sort(users)
local members = {#users}
for index = 1, math.min(#users, tonumber(ARGV[1])) do
  local user = users[index]
  local list = redis.call('HGET', KEYS[1], user)
  members[#members + 1] = user
  members[#members + 1] = #(sorted(user, list))
  members[#members + 1] = info_of(user, list)
end
return members
