-- Accepts an event once: receipt, offset or rev, stream or state, delivery.
-- KEYS: 5 receipt
-- ARGV: 5 "d" or "l", 6 id, 7 body, 8 entries kept, 9 ttl (ms), 10 idempotency window (ms), 11 PUBLISH or SPUBLISH,
--       12 where to, 13 type\nkey (latest)
-- Returns {"1" if it was accepted before, epoch, offset or rev, "1" if the channel is new}

local receipt = redis.call('GET', KEYS[5])
if receipt then
  local epoch, place = string.match(receipt, '^(%S+) (%d+)$')
  return {1, epoch, tonumber(place), 0}
end
local channel, stale = open(true)
if stale then return stale end

local entries, ttl = tonumber(ARGV[8]), tonumber(ARGV[9])
local place
if ARGV[5] == 'd' then
  place = channel.o + 1
  redis.call('HSET', KEYS[1], 'o', place, 'i', ARGV[6], 't', ttl)
  if entries > 0 then
    redis.call('XADD', KEYS[2], 'MAXLEN', entries, string.format('%d-%d', place, now), 'b', ARGV[7])
    redis.call('PEXPIRE', KEYS[2], ttl)
    if place % 16 == 0 then expire_stream(ttl) end
  else
    redis.call('DEL', KEYS[2])
  end
else
  place = channel.r + 1
  redis.call('HSET', KEYS[1], 'r', place, 'u', ttl)
  if entries > 0 then
    redis.call('HSET', KEYS[3], ARGV[13], string.format('%d %d\n', place, now) .. ARGV[7])
    redis.call('ZADD', KEYS[4], place, ARGV[13])
    for _ = entries + 1, redis.call('ZCARD', KEYS[4]) do
      redis.call('HDEL', KEYS[3], redis.call('ZPOPMIN', KEYS[4])[1])
    end
    redis.call('PEXPIRE', KEYS[3], ttl)
    redis.call('PEXPIRE', KEYS[4], ttl)
    if place % 16 == 0 then expire_state(ttl) end
  end
end
redis.call('PEXPIRE', KEYS[1], math.max(tonumber(ARGV[4]), ttl, tonumber(ARGV[10])))
redis.call('SET', KEYS[5], channel.e .. ' ' .. place, 'PX', ARGV[10])
redis.call(ARGV[11], ARGV[12], ARGV[5] .. channel.e .. ' ' .. place .. '\n' .. ARGV[7])
return {0, channel.e, place, channel.fresh}
