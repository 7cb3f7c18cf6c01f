-- Reads one user.
-- ARGV: 1 user
-- Returns {info or '', number of connections that have not expired, these connections…, the expired ones…}; {} without the user

local user = ARGV[1]
local list = redis.call('HGET', KEYS[1], user)
if not list then return {} end
local live, expired = sorted(user, list)
local found = {info_of(user, list), #live}
for _, connections in ipairs({live, expired}) do
  for _, connection in ipairs(connections) do found[#found + 1] = connection end
end
return found
