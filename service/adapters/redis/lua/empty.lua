-- Empty channels: those in which nothing was ever published.

local EMPTY_TTL = string.match(ARGV[2], ' (%d+)$')

local function is_empty(channel)
  return channel.o == 0 and channel.r == 0
end

-- Keeps the position of an empty channel for at least this long, because the caller gets it.
local function keep_empty(channel, milliseconds)
  if is_empty(channel) then redis.call('PEXPIRE', KEYS[1], milliseconds, 'GT') end
end
