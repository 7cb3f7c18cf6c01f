-- Tombstones of events that were taken back. Redis cannot replace an entry of a stream, so the entry is deleted, and its tombstone
-- is in the sorted set KEYS[6], by offset: "<ID of the entry>\n<body>". Readers put it where the stream has a hole.

-- Tombstones at the beginning of a history that are kept: they have no entry before them that would expire or be trimmed.
local MAX_LEADING = 1000

local function offset_of(entry)
  return tonumber(string.match(entry[1], '^%d+'))
end

-- A tombstone in the form of a stream's entry.
local function as_entry(member)
  local newline = string.find(member, '\n', 1, true)
  return {string.sub(member, 1, newline - 1), {'b', string.sub(member, newline + 1)}}
end

-- The entries of a stream from one offset to another, with the tombstones between them.
local function with_tombstones(entries, low, high)
  if #entries > high - low then return entries end
  local members = redis.call('ZRANGE', KEYS[6], string.format('%d', low), string.format('%d', high), 'BYSCORE')
  if #members == 0 then return entries end
  local merged, index = {}, 1
  for _, member in ipairs(members) do
    local stone = as_entry(member)
    while entries[index] and offset_of(entries[index]) < offset_of(stone) do
      merged[#merged + 1], index = entries[index], index + 1
    end
    if not entries[index] or offset_of(entries[index]) > offset_of(stone) then merged[#merged + 1] = stone end
  end
  while entries[index] do merged[#merged + 1], index = entries[index], index + 1 end
  return merged
end

-- The offset at which the history begins: that of the oldest entry, or of the first of the tombstones directly before it.
local function first_offset(channel)
  if redis.call('ZCARD', KEYS[6]) == 0 then return channel.o - redis.call('XLEN', KEYS[2]) + 1 end
  local oldest = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
  local first = oldest and offset_of(oldest) or channel.o + 1
  local members = redis.call(
    'ZRANGE', KEYS[6], string.format('%d', first - 1), '-inf', 'BYSCORE', 'REV', 'LIMIT', 0, MAX_LEADING)
  for _, member in ipairs(members) do
    local stone = as_entry(member)
    local accepted = tonumber(string.match(stone[1], '-(%d+)$'))
    if offset_of(stone) ~= first - 1 or (channel.t > 0 and accepted + channel.t <= now) then break end
    first = first - 1
  end
  return first
end
