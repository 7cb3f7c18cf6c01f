-- Finds what has expired, for one node at a time.
-- KEYS: 4 lease
-- ARGV: 1 lease (ms), 2 most entries
-- Returns entries

local gone = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, ARGV[2])
if #gone == 0 or not redis.call('SET', KEYS[4], '1', 'NX', 'PX', ARGV[1]) then return {} end
return gone
