-- Puts off the expiry of entries.
-- ARGV: 1 ttl (ms), 2 keep (ms), 3… entries
-- Returns the places (from 1) of those that are not there

local words, missing = {}, {}
for index = 3, #ARGV do
  words[#words + 1] = now + ARGV[1]
  words[#words + 1] = ARGV[index]
end
-- One command for all; only when it has not found every one is each looked for.
if redis.call('ZADD', KEYS[2], 'XX', 'CH', unpack(words)) < #ARGV - 2 then
  for index = 3, #ARGV do
    if not redis.call('ZSCORE', KEYS[2], ARGV[index]) then missing[#missing + 1] = index - 2 end
  end
end
keep(ARGV[2])
return missing
