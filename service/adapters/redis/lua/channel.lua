-- The beginning of every script on a channel: opens the channel, and checks that this is still the server that wrote it.
--
-- KEYS: meta (string), stream, state (hash: type\nkey -> "version ms\nbody"), state order (sorted set by state version),
--       and of all but publish.lua 5 expiries (values.lua) and 6 tombstones (removed.lua)
-- ARGV: 1 generation of the server, as the caller knows it
--       2 prefix of epochs that begin for this caller, a space, and the TTL (ms) of the position of an empty channel. Anyone who
--         may subscribe can name any number of channels, so it is short; subscribed nodes renew it (renew_empty.lua).
--       3 TTL (ms) of the position of any other channel
-- meta, in MessagePack: e epoch, o offset, r state version, g generation, t TTL of the stream, u TTL of the state, x and y times
--       at which the expiry of each was set last (all four in ms), i id at the offset, b offset at which the epoch began (nil
--       if an older version began it). A hash, or text, costs three times as much.
--
-- A generation is "<server>" or "<server>:<term>". If one of the two changes, accepted events may be missing here:
--   server  changes with the server's process, and with its role.
--   term    rises when a node connects to this server after another one, which has accepted events meanwhile (term.lua).
-- A caller with an outdated generation gets STALE with the true one, and calls again. Its first call begins no epoch: otherwise
-- two callers with different generations would begin epochs in turn, forever.
-- The true generation is in INFO. Reading it costs more than all the rest, so a script does so only before it begins an epoch.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function encode_meta(channel)
  return cmsgpack.pack(
    channel.e, channel.o, channel.r, ARGV[1], channel.t, channel.u, channel.x, channel.y, channel.i, channel.b)
end

local function foreign_meta()
  return redis.error_reply('WRONGTYPE the position was not written by this version')
end

-- Functions that few calls need. Lua makes functions at run time, so these are made on demand.
local function rare_functions()
  -- The server and the term of a generation; the term is 0 if there is none.
  local function parts(generation)
    local server, term = string.match(generation or '', '^(%w*):?(%d*)$')
    return server, tonumber(term) or 0
  end

  -- The STALE reply for a caller whose generation is outdated, else nil.
  local function stale(written_by)
    local server, term = parts(ARGV[1])
    local _, written_in = parts(written_by)
    local info = redis.call('INFO', 'server', 'replication')
    local true_server = string.sub(string.match(info, 'run_id:(%w+)'), 1, 20)
    -- Only for a master that was a replica before, the replication id identifies its life as a master; such a master
    -- has a second id. The id of another master also changes when its first replica connects, which loses nothing.
    if not string.match(info, 'master_replid2:0+%s') then
      true_server = true_server .. string.sub(string.match(info, 'master_replid:(%w+)'), 1, 20)
    end
    if true_server == server and written_in <= term then return nil end
    term = math.max(term, written_in)
    return redis.error_reply('STALE ' .. true_server .. (term > 0 and string.format(':%d', term) or ''))
  end

  -- When an epoch began (core/epoch.py); 0 if its text does not say.
  local function start_of(epoch)
    return #epoch == 21 and tonumber(string.sub(epoch, 9), 16) or 0
  end

  local function is_later(epoch, than)
    return start_of(than) > 0 and start_of(epoch) > start_of(than)
  end

  -- An epoch that begins now, after a previous one.
  local function new_epoch(previous)
    local _, term = parts(ARGV[1])
    local start = math.max(time[1] * 1000000 + time[2], term, start_of(previous) + 1)
    return string.format('%s%x', string.match(ARGV[2], '^%w+'), start)
  end

  -- The id of a stream entry: the second element of its body (event_codec.py), after the byte with the number of elements.
  local function id_of(entry)
    local is_valid, _, _, id = pcall(cmsgpack.unpack_limit, entry[2][2], 2, 1)
    return is_valid and id or nil
  end

  -- The id of the event at an offset; nil if the event is gone.
  local function id_at(channel, offset)
    if offset == channel.o then return channel.i end
    local at = string.format('%d', offset)
    local entry = redis.call('XRANGE', KEYS[2], at .. '-0', at .. '-18446744073709551615', 'COUNT', 1)[1]
    return entry and id_of(entry)
  end

  -- Begins a new epoch of a channel that was set back, which is also later than `known_epoch`. The events accepted
  -- since the loss belong to it: those from the offset `repeated` on, and earlier ones younger than `age` ms.
  local function begin_epoch(channel, known_epoch, repeated, age)
    -- The meta may have been restored from an older copy than the stream. Offsets and versions continue above both.
    local entries = redis.call('XRANGE', KEYS[2], string.format('%d-0', channel.o + 1), '+', 'COUNT', 100)
    while #entries > 0 do
      local last = entries[#entries]
      channel.o, channel.i = tonumber(string.match(last[1], '^%d+')), id_of(last) or ''
      entries = redis.call('XRANGE', KEYS[2], string.format('%d-0', channel.o + 1), '+', 'COUNT', 100)
    end
    local highest = redis.call('ZRANGE', KEYS[4], -1, -1, 'WITHSCORES')[2]
    channel.r = math.max(channel.r, tonumber(highest or 0))
    local first = math.min(repeated or channel.o + 1, channel.o + 1)
    while age and first > 1 do
      local at = string.format('%d', first - 1)
      local previous = redis.call('XRANGE', KEYS[2], at .. '-0', at .. '-18446744073709551615', 'COUNT', 1)[1]
      if not previous or now - string.match(previous[1], '-(%d+)$') > age then break end
      first = first - 1
    end
    channel.e, channel.b = new_epoch(is_later(known_epoch, channel.e) and known_epoch or channel.e), first - 1
    redis.call('SET', KEYS[1], encode_meta(channel), 'KEEPTTL')
  end

  -- Whether a channel lacks something that a node has delivered. `is_certain`: true also if the stream cannot show that
  -- it has it.
  local function lacks(channel, epoch, offset, id, version, is_certain)
    if epoch ~= channel.e then return is_later(epoch, channel.e) end
    if channel.o < offset or channel.r < version then return true end
    if offset == 0 or id == '' then return is_certain end
    local kept = id_at(channel, offset)
    if kept == nil then return is_certain end
    return kept ~= id
  end

  return {stale = stale, new_epoch = new_epoch, is_later = is_later, start_of = start_of, id_of = id_of, id_at = id_at,
          begin_epoch = begin_epoch, lacks = lacks}
end

-- Opens the channel of a meta. Without a meta: a new channel if `create`, else nil. Returns an error reply as second value.
local function open(meta, create)
  if not meta and not create then return nil end
  local e, o, r, g, t, u, x, y, i, b
  if meta then
    e, o, r, g, t, u, x, y, i, b = cmsgpack.unpack(meta)
    if type(e) ~= 'string' or type(i) ~= 'string' then return nil, foreign_meta() end
  end
  local is_other_generation = g ~= ARGV[1]
  if is_other_generation then
    local rare = rare_functions()
    local stale = rare.stale(g)
    if stale then return nil, stale end
    e, b = rare.new_epoch(e or ''), o or 0
  end
  local channel = {
    e = e, o = o or 0, r = r or 0, t = t or 0, u = u or 0, x = x or 0, y = y or 0, i = i or '', b = b,
  }
  -- This write comes first: a full server refuses the first write of a script, and after one it lets the script finish.
  if not meta then
    if not redis.call('SET', KEYS[1], encode_meta(channel), 'NX', 'PX', string.match(ARGV[2], ' (%d+)$')) then
      return nil, foreign_meta()
    end
    -- Leftovers of a lost meta cannot be continued.
    redis.call('DEL', KEYS[2], KEYS[3], KEYS[4])
  elseif is_other_generation then
    redis.call('SET', KEYS[1], encode_meta(channel), 'KEEPTTL')
  end
  return channel
end

-- Drops the events that are older than the stream's TTL. Their IDs are <offset>-<milliseconds>.
local function expire_stream(ttl)
  if ttl <= 0 then return end
  local count = 1 -- usually the oldest one is alive
  while true do
    local entries = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', count)
    local first_alive = nil
    for _, entry in ipairs(entries) do
      local accepted = tonumber(string.match(entry[1], '-(%d+)$'))
      if accepted + ttl > now then first_alive = entry[1] break end
    end
    if first_alive then
      if first_alive ~= entries[1][1] then redis.call('XTRIM', KEYS[2], 'MINID', first_alive) end
      return
    end
    if #entries == 0 then return end
    if #entries < count then redis.call('DEL', KEYS[2]) return end
    redis.call('XTRIM', KEYS[2], 'MINID', string.match(entries[#entries][1], '^(%d+)') + 1)
    count = 64
  end
end

-- Drops the values that are older than the state's TTL: those with the lowest versions.
local function expire_state(ttl)
  if ttl <= 0 then return end
  while true do
    local oldest = redis.call('ZRANGE', KEYS[4], 0, 0)[1]
    if not oldest then return end
    local value = redis.call('HGET', KEYS[3], oldest)
    local accepted = value and tonumber(string.match(value, '^%d+ (%d+)\n'))
    if accepted and accepted + ttl > now then return end
    redis.call('ZREM', KEYS[4], oldest)
    redis.call('HDEL', KEYS[3], oldest)
  end
end
