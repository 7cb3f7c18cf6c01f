-- Accepts an event once: stores it and its result, and publishes it.
-- KEYS: the last is the result of this id. Before it, for "l", 5 expiries (values.lua), 6 removals (sorted set by state version of
--       "epoch version\nbody")
-- ARGV: 4 "d" or "l", 5 entries to keep, 6 TTL (ms), 7 idempotency window (ms), at most ARGV 3, 8 PUBLISH or SPUBLISH,
--       9 Pub/Sub channel, 10 id, 11 body, 12 type\nkey (latest); the rest may be absent: 13 TTL (ms) of the value, at most
--       ARGV 6, or "", 14 "1" to remove the value, 15 state version that the value must have (0: no value), or ""
-- Returns "epoch number", where the number is the offset or the state version. Or a list: {"epoch number"} of the first publish
-- for a duplicate; {"epoch number", 1} for an accepted event whose channel may be missing in its tenant's index.
-- Or an integer: the value has this state version, and not the one of ARGV 15. Then nothing is accepted.

-- An expiry is set again only after this many ms, and is longer by as many, because PEXPIRE costs Redis as much as the
-- event.
local SLACK = 10000
local DAY = 86400000
local MAX_REMOVED_VALUES = 1000 -- as in core/broker.py

local result_key = KEYS[#KEYS]
local known = redis.call('MGET', KEYS[1], result_key)
local channel, stale = open(known[1], true)
if stale then return stale end

if known[2] and string.match(known[2], '^%S+ %d+$') then
  local epoch, zero, number = string.match(known[2], '^(%S+) (0?)(%d+)$')
  number = tonumber(number)
  local is_lost = false
  if ARGV[4] == 'd' and zero == '' then
    local id = number <= channel.o and rare_functions().id_at(channel, number)
    is_lost = number > channel.o or (id and id ~= ARGV[10])
  elseif ARGV[4] == 'l' and zero ~= '' then
    is_lost = number > channel.r
  end
  if not is_lost then return {known[2]} end
  -- The channel was set back and the event is gone, so it is accepted again.
  if epoch == channel.e then rare_functions().begin_epoch(channel, '') end
end

if ARGV[15] and ARGV[15] ~= '' then
  local version = version_of(ARGV[12], channel.u)
  if version ~= tonumber(ARGV[15]) then return version end
end

local ttl = tonumber(ARGV[6])
-- At most the TTL: otherwise a stream that readers have emptied could begin again without an expiry.
local slack = ttl < SLACK and ttl or SLACK
local number
-- Whether the index may lack the channel: when everything had expired, and once a day, as entries of the index expire too.
local is_unindexed = false

-- A command that can fail (on a key of another type, or an ID not above the last) comes before those that count the event.
if ARGV[4] == 'd' then
  number = channel.o + 1
  if ARGV[5] ~= '0' then
    local added = redis.pcall('XADD', KEYS[2], 'MAXLEN', ARGV[5], string.format('%d-%d', number, now), 'b', ARGV[11])
    if type(added) == 'table' and added.err then
      if not string.find(added.err, 'equal or smaller', 1, true) then return added end
      -- The meta was restored from an older copy than the stream.
      rare_functions().begin_epoch(channel, '')
      number = channel.o + 1
      redis.call('XADD', KEYS[2], 'MAXLEN', ARGV[5], string.format('%d-%d', number, now), 'b', ARGV[11])
    end
    if ttl ~= channel.t or now < channel.x or now >= channel.x + slack then
      redis.call('PEXPIRE', KEYS[2], ttl + slack)
      is_unindexed = channel.x + channel.t <= now or math.floor(now / DAY) > math.floor(channel.x / DAY)
      channel.x = now
    end
    if number % 16 == 0 then expire_stream(ttl) end
  else
    channel.x = 0
  end
  channel.o, channel.i, channel.t = number, ARGV[10], ttl
elseif ARGV[14] == '1' then
  number = channel.r + 1
  -- Kept for nodes that miss the message.
  redis.call('ZADD', KEYS[6], number, string.format('%s %d\n', channel.e, number) .. ARGV[11])
  redis.call('PEXPIRE', KEYS[6], ARGV[7])
  for _ = math.min(ARGV[5], MAX_REMOVED_VALUES) + 1, redis.call('ZCARD', KEYS[6]) do redis.call('ZPOPMIN', KEYS[6]) end
  redis.call('HDEL', KEYS[3], ARGV[12])
  redis.call('ZREM', KEYS[4], ARGV[12])
  redis.call('ZREM', KEYS[5], ARGV[12])
  channel.r = number
else
  number = channel.r + 1
  if ARGV[5] ~= '0' then
    if ARGV[13] and ARGV[13] ~= '' then
      remove_ended()
      redis.call('ZADD', KEYS[5], now + ARGV[13], ARGV[12])
      redis.call('PEXPIRE', KEYS[5], ttl + slack)
    end
    local is_new_field = redis.call('ZADD', KEYS[4], number, ARGV[12]) == 1
    redis.call('HSET', KEYS[3], ARGV[12], string.format('%d %d\n', number, now) .. ARGV[11])
    local held = redis.call('ZCARD', KEYS[4])
    for _ = ARGV[5] + 1, held do
      redis.call('HDEL', KEYS[3], redis.call('ZPOPMIN', KEYS[4])[1])
    end
    -- The state may have become empty before its keys expired. Then they are new, and have no expiry.
    local is_new = is_new_field and held == 1
    if is_new or ttl ~= channel.u or now < channel.y or now >= channel.y + slack then
      redis.call('PEXPIRE', KEYS[3], ttl + slack)
      redis.call('PEXPIRE', KEYS[4], ttl + slack)
      is_unindexed = is_new or channel.y + channel.u <= now or math.floor(now / DAY) > math.floor(channel.y / DAY)
      channel.y = now
    end
    if number % 16 == 0 then expire_state(ttl) end
  end
  channel.r, channel.u = number, ttl
end
local result = string.format('%s %d', channel.e, number)
local meta_ttl = string.format('%d', math.max(ARGV[3], channel.t, channel.u))
redis.call('SET', KEYS[1], encode_meta(channel), 'PX', meta_ttl)
if ARGV[4] == 'd' and ARGV[5] == '0' then redis.call('DEL', KEYS[2]) end
-- A leading zero marks a state version, because offsets and state versions are counted separately.
local stored = ARGV[4] == 'd' and result or string.format('%s 0%d', channel.e, number)
redis.call('SET', result_key, stored, 'PX', ARGV[7])
redis.call(ARGV[8], ARGV[9], ARGV[4] .. result .. '\n' .. ARGV[11])
if is_unindexed then return {result, 1} end
return result
