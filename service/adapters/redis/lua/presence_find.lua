-- Reads one user.
-- ARGV: 1 user
-- Returns {info or '', connections that have not expired…}; {} without the user

local user = ARGV[1]
local list = redis.call('HGET', KEYS[1], user)
if not list then return {} end
return {info_of(user, list), unpack(live(user, list))}
