-- Accepts an event once: receipt, offset or rev, stream or state, delivery.
-- KEYS: 5 receipt
-- ARGV: 4 "d" or "l", 5 id, 6 body, 7 entries kept, 8 ttl (ms), 9 idempotency window (ms), 10 PUBLISH or SPUBLISH,
--       11 where to, 12 type\nkey (latest)
-- Returns {"1" if it was accepted before, epoch, offset or rev, "1" if the channel is new}

local receipt = redis.call('GET', KEYS[5])
local before, at = string.match(receipt or '', '^(%S+) (%d+)$')
if before then return {1, before, tonumber(at), 0} end
local channel, stale = open(true)
if stale then return stale end

-- A step that can fail (a key of another type, an ID that is not above the last) comes before those that count it.
local entries, ttl = tonumber(ARGV[7]), tonumber(ARGV[8])
local place
if ARGV[4] == 'd' then
  place = channel.o + 1
  if entries > 0 then
    redis.call('XADD', KEYS[2], 'MAXLEN', entries, string.format('%d-%d', place, now), 'b', ARGV[6])
    redis.call('PEXPIRE', KEYS[2], ttl)
    if place % 16 == 0 then expire_stream(ttl) end
  end
  redis.call('HSET', KEYS[1], 'o', place, 'i', ARGV[5], 't', ttl)
  if entries <= 0 then redis.call('DEL', KEYS[2]) end
else
  place = channel.r + 1
  if entries > 0 then
    redis.call('ZADD', KEYS[4], place, ARGV[12])
    redis.call('HSET', KEYS[3], ARGV[12], string.format('%d %d\n', place, now) .. ARGV[6])
    for _ = entries + 1, redis.call('ZCARD', KEYS[4]) do
      redis.call('HDEL', KEYS[3], redis.call('ZPOPMIN', KEYS[4])[1])
    end
    redis.call('PEXPIRE', KEYS[3], ttl)
    redis.call('PEXPIRE', KEYS[4], ttl)
    if place % 16 == 0 then expire_state(ttl) end
  end
  redis.call('HSET', KEYS[1], 'r', place, 'u', ttl)
end
redis.call('PEXPIRE', KEYS[1], math.max(tonumber(ARGV[3]), ttl, tonumber(ARGV[9])))
redis.call('SET', KEYS[5], channel.e .. ' ' .. place, 'PX', ARGV[9])
redis.call(ARGV[10], ARGV[11], ARGV[4] .. channel.e .. ' ' .. place .. '\n' .. ARGV[6])
return {0, channel.e, place, channel.fresh}
