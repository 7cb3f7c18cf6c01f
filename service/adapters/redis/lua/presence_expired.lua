-- Finds expired entries, for one node at a time.
-- KEYS: 4 lease
-- ARGV: 1 TTL of the lease (ms), 2 maximum of entries
-- Returns entries

local expired = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, ARGV[2])
if #expired == 0 or not redis.call('SET', KEYS[4], '1', 'NX', 'PX', ARGV[1]) then return {} end
return expired
