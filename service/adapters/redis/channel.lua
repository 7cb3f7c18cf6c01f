-- Begins every script on a channel: where its stream stands, and whether this is still the store that wrote it.
--
-- KEYS: meta (string), stream, state (hash: type\nkey -> "rev ms\nbody"), state order (sorted set by rev)
-- ARGV: 1 generation of the server as the caller knows it, 2 what an epoch begins with that is begun for this caller,
--       3 milliseconds that a position is kept
-- EMPTY is for how many milliseconds a position is kept of a channel in which nothing was ever published (scripts.py): whoever
-- may subscribe can name any number of them. Nodes keep it for longer while they have subscribers (keep.lua).
-- meta, in MessagePack: e epoch, o offset, r rev, g generation, t ttl of the stream, u ttl of the state, x and y when each of
--       the two had its expiry set (all four in milliseconds), i id at the offset. A hash, or text, costs thrice as much.
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

local function written(channel)
  return cmsgpack.pack(channel.e, channel.o, channel.r, ARGV[1], channel.t, channel.u, channel.x, channel.y, channel.i)
end

local function not_ours()
  return redis.error_reply('WRONGTYPE the position was not written by this version')
end

-- The channel that a meta tells of; without one a new channel, or nil.
local function open(meta, create)
  if not meta and not create then return nil end
  local e, o, r, g, t, u, x, y, i
  if meta then
    e, o, r, g, t, u, x, y, i = cmsgpack.unpack(meta)
    if type(e) ~= 'string' or type(i) ~= 'string' then return nil, not_ours() end
  end
  local began = g ~= ARGV[1]
  if began then
    local refusal = stale()
    if refusal then return nil, refusal end
    -- The time makes it another one than any that this caller has begun before.
    e = string.format('%s%x', ARGV[2], time[1] * 1000000 + time[2])
  end
  local channel = {
    e = e, o = o or 0, r = r or 0, t = t or 0, u = u or 0, x = x or 0, y = y or 0, i = i or '',
  }
  -- First what a full server refuses: after any other write it lets a script finish.
  if not meta then
    if not redis.call('SET', KEYS[1], written(channel), 'NX', 'PX', EMPTY) then
      return nil, not_ours()
    end
    -- What a meta that was lost left behind cannot be continued.
    redis.call('DEL', KEYS[2], KEYS[3], KEYS[4])
  elseif began then
    redis.call('SET', KEYS[1], written(channel), 'KEEPTTL')
  end
  return channel
end

-- Whether nothing was ever published in a channel.
local function is_empty(channel)
  return channel.o == 0 and channel.r == 0
end

-- Somebody is told of the position: it is to hold for so long at least.
local function keep_empty(channel, milliseconds)
  if is_empty(channel) then redis.call('PEXPIRE', KEYS[1], milliseconds, 'GT') end
end

-- Drops the events that are older than the stream's ttl. Their IDs are <offset>-<milliseconds>.
local function expire_stream(ttl)
  if ttl <= 0 then return end
  local count = 1 -- mostly the oldest one lives
  while true do
    local some = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', count)
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
    if #some < count then redis.call('DEL', KEYS[2]) return end
    redis.call('XTRIM', KEYS[2], 'MINID', string.match(some[#some][1], '^(%d+)') + 1)
    count = 64
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
