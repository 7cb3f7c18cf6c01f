-- Reads the events from one offset to another: from the first on, or from the last back. It reads in parts, up to a limit in
-- bytes, because Redis serves no other client meanwhile.
-- Returns the events, oldest first, and the offsets between which nothing was read.

local function read_page(low, high, is_forward, max_bytes)
  local parts, bytes = {}, 0
  while low <= high and bytes < max_bytes do
    local from, to = low, high
    if is_forward then to = math.min(high, low + 49) else from = math.max(low, high - 49) end
    local part = redis.call('XRANGE', KEYS[2], from .. '-0', to .. '-18446744073709551615')
    part = with_tombstones(part, from, to)
    for _, entry in ipairs(part) do bytes = bytes + #entry[2][2] end
    if is_forward then parts[#parts + 1], low = part, to + 1 else table.insert(parts, 1, part) high = from - 1 end
  end
  local events = {}
  for _, part in ipairs(parts) do
    for _, entry in ipairs(part) do events[#events + 1] = entry end
  end
  return events, low, high
end
