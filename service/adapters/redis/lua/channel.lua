-- Begins every script on a channel: where its stream stands, and whether this is still the store that wrote it.
--
-- KEYS: meta (string), stream, state (hash: type\nkey -> "rev ms\nbody"), state order (sorted set by rev)
-- ARGV: 1 generation of the server as the caller knows it, 2 what an epoch begins with that is begun for this caller, a space,
--       and the milliseconds that a position is kept of a channel in which nothing was ever published: whoever may subscribe can
--       name any number of them, and nodes keep it for longer while they have subscribers (keep.lua),
--       3 milliseconds that a position is kept
-- meta, in MessagePack: e epoch, o offset, r rev, g generation, t ttl of the stream, u ttl of the state, x and y when each of
--       the two had its expiry set (all four in milliseconds), i id at the offset, b offset at which the epoch began (nil if it
--       was begun by an older version). A hash, or text, costs thrice as much.
--
-- A generation is "<server>" or "<server>:<reign>". The server changes with another process, or another role: it may have lost
-- what it had accepted. The reign rises when somebody has seen another server in between (reign.lua): what that one had
-- accepted is not here. Asking the server for what it is costs more than all the rest, so we ask only before something is
-- begun in its name. A caller whose knowledge was old gets STALE with the true generation and comes back; it begins nothing,
-- or two callers would do so in turn for ever.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function written(channel)
  return cmsgpack.pack(
    channel.e, channel.o, channel.r, ARGV[1], channel.t, channel.u, channel.x, channel.y, channel.i, channel.b)
end

local function not_ours()
  return redis.error_reply('WRONGTYPE the position was not written by this version')
end

-- What few calls need. To make functions takes time, so these are made when they are needed.
local function rarely()
  -- The server and the reign in a generation; without one the reign is 0.
  local function parts(generation)
    local server, reign = string.match(generation or '', '^(%w*):?(%d*)$')
    return server, tonumber(reign) or 0
  end

  -- What to say to a caller, unless it knows who this server is and what has been written in a channel.
  local function stale(written_by)
    local server, reign = parts(ARGV[1])
    local _, written_in = parts(written_by)
    local info = redis.call('INFO', 'server', 'replication')
    local true_one = string.sub(string.match(info, 'run_id:(%w+)'), 1, 20)
    -- A master that was a replica before remembers whose: only then its replication id tells its lives apart. The id of one
    -- that never was changes when the first replica comes, too, and nothing is lost by that.
    if not string.match(info, 'master_replid2:0+%s') then
      true_one = true_one .. string.sub(string.match(info, 'master_replid:(%w+)'), 1, 20)
    end
    if true_one == server and written_in <= reign then return nil end
    reign = math.max(reign, written_in)
    return redis.error_reply('STALE ' .. true_one .. (reign > 0 and string.format(':%d', reign) or ''))
  end

  -- The number in an epoch (core/epoch.py); 0 for one of another kind.
  local function number(epoch)
    return #epoch == 21 and tonumber(string.sub(epoch, 9), 16) or 0
  end

  local function is_later(epoch, than)
    return number(than) > 0 and number(epoch) > number(than)
  end

  -- An epoch that begins now, after another.
  local function next_epoch(before)
    local _, reign = parts(ARGV[1])
    return string.format('%s%x', string.match(ARGV[2], '^%w+'), math.max(time[1] * 1000000 + time[2], reign, number(before) + 1))
  end

  -- The id of a stream's entry: the second part of its body (wire.py), behind the byte that says how many there are.
  local function id_of(entry)
    local fine, _, _, id = pcall(cmsgpack.unpack_limit, entry[2][2], 2, 1)
    return fine and id or nil
  end

  -- The id of the event at an offset; nil if it is not kept.
  local function id_at(channel, offset)
    if offset == channel.o then return channel.i end
    local at = string.format('%d', offset)
    local entry = redis.call('XRANGE', KEYS[2], at .. '-0', at .. '-18446744073709551615', 'COUNT', 1)[1]
    return entry and id_of(entry)
  end

  -- Begins a new epoch of a channel that was set back: somebody knows more of it, in this epoch or a later one. What has been
  -- accepted since belongs to it: from the offset `again` on, and before that what is younger than `age` milliseconds.
  local function begin_anew(channel, known_epoch, again, age)
    -- What was put back may be older than what it was put beside; places go on above both.
    local some = redis.call('XRANGE', KEYS[2], string.format('%d-0', channel.o + 1), '+', 'COUNT', 100)
    while #some > 0 do
      local last = some[#some]
      channel.o, channel.i = tonumber(string.match(last[1], '^%d+')), id_of(last) or ''
      some = redis.call('XRANGE', KEYS[2], string.format('%d-0', channel.o + 1), '+', 'COUNT', 100)
    end
    local highest = redis.call('ZRANGE', KEYS[4], -1, -1, 'WITHSCORES')[2]
    channel.r = math.max(channel.r, tonumber(highest or 0))
    local first = math.min(again or channel.o + 1, channel.o + 1)
    while age and first > 1 do
      local at = string.format('%d', first - 1)
      local before = redis.call('XRANGE', KEYS[2], at .. '-0', at .. '-18446744073709551615', 'COUNT', 1)[1]
      if not before or now - string.match(before[1], '-(%d+)$') > age then break end
      first = first - 1
    end
    channel.e, channel.b = next_epoch(is_later(known_epoch, channel.e) and known_epoch or channel.e), first - 1
    redis.call('SET', KEYS[1], written(channel), 'KEEPTTL')
  end

  -- Whether a channel lacks something of what a node has delivered. `sure`: also if it cannot show that it does not.
  local function lacks(channel, epoch, offset, id, rev, sure)
    if epoch ~= channel.e then return is_later(epoch, channel.e) end
    if channel.o < offset or channel.r < rev then return true end
    if offset == 0 or id == '' then return sure end
    local kept = id_at(channel, offset)
    if kept == nil then return sure end
    return kept ~= id
  end

  return {stale = stale, next_epoch = next_epoch, is_later = is_later, number = number, id_at = id_at,
          begin_anew = begin_anew, lacks = lacks}
end

-- The channel that a meta tells of; without one a new channel, or nil.
local function open(meta, create)
  if not meta and not create then return nil end
  local e, o, r, g, t, u, x, y, i, b
  if meta then
    e, o, r, g, t, u, x, y, i, b = cmsgpack.unpack(meta)
    if type(e) ~= 'string' or type(i) ~= 'string' then return nil, not_ours() end
  end
  local began = g ~= ARGV[1]
  if began then
    local rare = rarely()
    local refusal = rare.stale(g)
    if refusal then return nil, refusal end
    e, b = rare.next_epoch(e or ''), o or 0
  end
  local channel = {
    e = e, o = o or 0, r = r or 0, t = t or 0, u = u or 0, x = x or 0, y = y or 0, i = i or '', b = b,
  }
  -- First what a full server refuses: after any other write it lets a script finish.
  if not meta then
    if not redis.call('SET', KEYS[1], written(channel), 'NX', 'PX', string.match(ARGV[2], ' (%d+)$')) then
      return nil, not_ours()
    end
    -- What a meta that was lost left behind cannot be continued.
    redis.call('DEL', KEYS[2], KEYS[3], KEYS[4])
  elseif began then
    redis.call('SET', KEYS[1], written(channel), 'KEEPTTL')
  end
  return channel
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
