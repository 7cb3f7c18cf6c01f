-- Extends the expiry of entries.
-- ARGV: 1 TTL of the entries (ms), 2 TTL of the keys (ms), 3… entries
-- Returns the numbers (from 1) of the entries that are missing

local scores, missing = {}, {}
for index = 3, #ARGV do
  scores[#scores + 1] = now + ARGV[1]
  scores[#scores + 1] = ARGV[index]
end
-- One command for all entries. Each is looked up only if that command has not changed all of them.
if redis.call('ZADD', KEYS[2], 'XX', 'CH', unpack(scores)) < #ARGV - 2 then
  for index = 3, #ARGV do
    if not redis.call('ZSCORE', KEYS[2], ARGV[index]) then missing[#missing + 1] = index - 2 end
  end
end
keep(ARGV[2])
return missing
