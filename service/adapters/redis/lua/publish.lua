-- Accepts an event once: receipt, offset or rev, stream or state, delivery.
-- KEYS: 5 receipt
-- ARGV: 4 "d" or "l", 5 entries kept, 6 ttl (ms), 7 idempotency window (ms), no more than 3, 8 PUBLISH or SPUBLISH,
--       9 where to, 10 id, 11 body, 12 type\nkey (latest)
-- Returns the receipt, "epoch place". In a list by itself: the event was accepted before. In a list with a second item: the
-- channel may not be in its tenant's index.

-- An expiry is set again when this many milliseconds have passed, and so much later: to Redis it costs as much as the event.
local SLACK = 10000
local DAY = 86400000

local known = redis.call('MGET', KEYS[1], KEYS[5])
local channel, stale = open(known[1], true)
if stale then return stale end

if known[2] and string.match(known[2], '^%S+ %d+$') then
  local epoch, zero, at = string.match(known[2], '^(%S+) (0?)(%d+)$')
  at = tonumber(at)
  local lost = false
  if ARGV[4] == 'd' and zero == '' then
    local id = at <= channel.o and rarely().id_at(channel, at)
    lost = at > channel.o or (id and id ~= ARGV[10])
  elseif ARGV[4] == 'l' and zero ~= '' then
    lost = at > channel.r
  end
  if not lost then return {known[2]} end
  -- The channel was set back: the event is not there, so it is accepted anew.
  if epoch == channel.e then rarely().begin_anew(channel, '') end
end

local ttl = tonumber(ARGV[6])
-- No longer than the ttl, or a stream that readers have dropped could begin again without an expiry.
local slack = ttl < SLACK and ttl or SLACK
local place
-- Whether nothing may have been left since the expiry was set last; and once a day, as entries of the index expire too.
local enters = false

-- A step that can fail (a key of another type, an ID that is not above the last) comes before those that count it.
if ARGV[4] == 'd' then
  place = channel.o + 1
  if ARGV[5] ~= '0' then
    local added = redis.pcall('XADD', KEYS[2], 'MAXLEN', ARGV[5], string.format('%d-%d', place, now), 'b', ARGV[11])
    if type(added) == 'table' and added.err then
      if not string.find(added.err, 'equal or smaller', 1, true) then return added end
      -- A position was put back beside a stream that has come further.
      rarely().begin_anew(channel, '')
      place = channel.o + 1
      redis.call('XADD', KEYS[2], 'MAXLEN', ARGV[5], string.format('%d-%d', place, now), 'b', ARGV[11])
    end
    if ttl ~= channel.t or now < channel.x or now >= channel.x + slack then
      redis.call('PEXPIRE', KEYS[2], ttl + slack)
      enters = channel.x + channel.t <= now or math.floor(now / DAY) > math.floor(channel.x / DAY)
      channel.x = now
    end
    if place % 16 == 0 then expire_stream(ttl) end
  else
    channel.x = 0
  end
  channel.o, channel.i, channel.t = place, ARGV[10], ttl
else
  place = channel.r + 1
  if ARGV[5] ~= '0' then
    redis.call('ZADD', KEYS[4], place, ARGV[12])
    redis.call('HSET', KEYS[3], ARGV[12], string.format('%d %d\n', place, now) .. ARGV[11])
    for _ = ARGV[5] + 1, redis.call('ZCARD', KEYS[4]) do
      redis.call('HDEL', KEYS[3], redis.call('ZPOPMIN', KEYS[4])[1])
    end
    if ttl ~= channel.u or now < channel.y or now >= channel.y + slack then
      redis.call('PEXPIRE', KEYS[3], ttl + slack)
      redis.call('PEXPIRE', KEYS[4], ttl + slack)
      enters = channel.y + channel.u <= now or math.floor(now / DAY) > math.floor(channel.y / DAY)
      channel.y = now
    end
    if place % 16 == 0 then expire_state(ttl) end
  end
  channel.r, channel.u = place, ttl
end
local receipt = string.format('%s %d', channel.e, place)
local kept = string.format('%d', math.max(ARGV[3], channel.t, channel.u))
redis.call('SET', KEYS[1], written(channel), 'PX', kept)
if ARGV[4] == 'd' and ARGV[5] == '0' then redis.call('DEL', KEYS[2]) end
-- A zero marks the place of a value: places of events and of values are counted apart.
local noted = ARGV[4] == 'd' and receipt or string.format('%s 0%d', channel.e, place)
redis.call('SET', KEYS[5], noted, 'PX', ARGV[7])
redis.call(ARGV[8], ARGV[9], ARGV[4] .. receipt .. '\n' .. ARGV[11])
if enters then return {receipt, 1} end
return receipt
