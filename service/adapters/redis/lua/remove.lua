-- Replaces durable events by their tombstones.
-- ARGV: 4… for each event its offset, its id, and the body of its tombstone
-- Returns for each event 1 if it is a tombstone now, else 0

-- The tombstones outlive the stream's last entry by at most this many ms, as the stream does.
local SLACK = 10000

local channel, stale = open(redis.call('GET', KEYS[1]), false)
if stale then return stale end
if channel then expire_stream(channel.t) end
local id_of = rare_functions().id_of
local results, is_changed = {}, false
for index = 4, #ARGV, 3 do
  local at, id, body = string.format('%d', ARGV[index]), ARGV[index + 1], ARGV[index + 2]
  local entry, member = nil, nil
  if channel then
    entry = redis.call('XRANGE', KEYS[2], at .. '-0', at .. '-18446744073709551615', 'COUNT', 1)[1]
    member = not entry and redis.call('ZRANGE', KEYS[6], at, at, 'BYSCORE')[1]
  end
  local found = entry or (member and as_entry(member))
  local is_same = found and id_of(found) == id
  if is_same and entry then
    redis.call('XDEL', KEYS[2], entry[1]) -- first: a full server refuses a ZADD only as the first write of a script
    redis.call('ZADD', KEYS[6], at, entry[1] .. '\n' .. body)
    is_changed = true
  end
  results[#results + 1] = is_same and 1 or 0
end
if is_changed then
  redis.call('PEXPIRE', KEYS[6], string.format('%d', math.max(channel.t, 1) + SLACK))
  local first = first_offset(channel)
  local outdated = redis.call('ZRANGE', KEYS[6], '-inf', string.format('(%d', first), 'BYSCORE', 'LIMIT', 0, MAX_LEADING)
  if #outdated > 0 then redis.call('ZREM', KEYS[6], unpack(outdated)) end
end
return results
