-- Empty channels: those in which nothing was ever published.

local EMPTY = string.match(ARGV[2], ' (%d+)$')

-- Whether nothing was ever published in a channel.
local function is_empty(channel)
  return channel.o == 0 and channel.r == 0
end

-- Somebody is told of the position: it is to hold for so long at least.
local function keep_empty(channel, milliseconds)
  if is_empty(channel) then redis.call('PEXPIRE', KEYS[1], milliseconds, 'GT') end
end
