-- Begins every script on a channel: where its stream stands, and whether this is still the store that wrote it.
--
-- KEYS: meta (hash), stream, state (hash: type\nkey -> "rev ms\nbody"), state order (sorted set by rev)
-- ARGV: 1 generation of the server as the caller knows it, 2 an epoch to begin with, 3 milliseconds that a position is kept
-- meta: e epoch, o offset, i id at the offset, r rev, g generation, t ttl of the stream, u ttl of the state (milliseconds)
--
-- The generation changes whenever the server may have lost what it had accepted: another process, or another role. Asking the
-- server for it costs more than all the rest, so we ask only before something is begun in its name. A caller whose knowledge
-- was old gets STALE with the true one and comes back; it begins nothing, or two callers would do so in turn for ever.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function stale()
  local info = redis.call('INFO', 'server', 'replication')
  local true_one = string.sub(string.match(info, 'run_id:(%w+)'), 1, 20)
  -- A master that was a replica before remembers whose: only then its replication id tells its lives apart. The id of one
  -- that never was changes when the first replica comes, too, and nothing is lost by that.
  if not string.match(info, 'master_replid2:0+%s') then
    true_one = true_one .. string.sub(string.match(info, 'master_replid:(%w+)'), 1, 20)
  end
  return true_one ~= ARGV[1] and redis.error_reply('STALE ' .. true_one)
end

local function open(create)
  local meta = redis.call('HMGET', KEYS[1], 'e', 'o', 'i', 'r', 'g', 't', 'u')
  if not meta[1] and not create then return nil end
  local epoch = meta[1]
  if meta[5] ~= ARGV[1] then
    local refusal = stale()
    if refusal then return nil, refusal end
    epoch = ARGV[2]
  end
  if not meta[1] then
    -- First what a full server refuses: after any other write it lets a script finish.
    redis.call('HSET', KEYS[1], 'e', epoch, 'o', 0, 'r', 0, 'g', ARGV[1])
    -- What a meta that was lost left behind cannot be continued.
    redis.call('DEL', KEYS[2], KEYS[3], KEYS[4])
    redis.call('PEXPIRE', KEYS[1], ARGV[3])
    return {e = epoch, o = 0, i = '', r = 0, t = 0, u = 0, fresh = 1}
  end
  if epoch ~= meta[1] then redis.call('HSET', KEYS[1], 'e', epoch, 'g', ARGV[1]) end
  return {
    e = epoch, o = tonumber(meta[2]), i = meta[3] or '', r = tonumber(meta[4]),
    t = tonumber(meta[6] or 0), u = tonumber(meta[7] or 0), fresh = 0,
  }
end

-- Drops the events that are older than the stream's ttl. Their IDs are <offset>-<milliseconds>.
local function expire_stream(ttl)
  if ttl <= 0 then return end
  while true do
    local some = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 64)
    local live = nil
    for _, entry in ipairs(some) do
      local accepted = tonumber(string.match(entry[1], '-(%d+)$'))
      if accepted + ttl > now then live = entry[1] break end
    end
    if live then
      if live ~= some[1][1] then redis.call('XTRIM', KEYS[2], 'MINID', live) end
      return
    end
    if #some == 0 then return end
    if #some < 64 then redis.call('DEL', KEYS[2]) return end
    redis.call('XTRIM', KEYS[2], 'MINID', string.match(some[#some][1], '^(%d+)') + 1)
  end
end

-- Drops the values that are older than the state's ttl: those with the lowest revs.
local function expire_state(ttl)
  if ttl <= 0 then return end
  while true do
    local first = redis.call('ZRANGE', KEYS[4], 0, 0)[1]
    if not first then return end
    local value = redis.call('HGET', KEYS[3], first)
    local accepted = value and tonumber(string.match(value, '^%d+ (%d+)\n'))
    if accepted and accepted + ttl > now then return end
    redis.call('ZREM', KEYS[4], first)
    redis.call('HDEL', KEYS[3], first)
  end
end
