-- The beginning of every script on a channel's presence.
--
-- KEYS: 1 users (hash: user -> "c1 c2 …", the connection with the newest token last), 2 expiries (sorted set of
--       "connection user" by ms), 3 infos (hash: "connection user" -> JSON); each script adds its own
--
-- A user is a member while the hash of users has them, and the events follow that hash alone: `joined` when a user enters it,
-- `left` when a user leaves it. An expired entry changes nothing until a script removes it.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function entry_of(user, connection)
  return connection .. ' ' .. user
end

-- The list without a connection, and whether the list had it.
local function without(list, connection)
  local rest, found = {}, false
  for one in string.gmatch(list, '%S+') do
    if one == connection then found = true else rest[#rest + 1] = one end
  end
  return table.concat(rest, ' '), found
end

-- Expires all keys of a channel that no node renews for this long.
local function keep(milliseconds)
  for index = 1, 3 do redis.call('PEXPIRE', KEYS[index], milliseconds) end
end

-- The info of a user with this list of connections: that of the last one, or ''.
local function info_of(user, list)
  return redis.call('HGET', KEYS[3], entry_of(user, string.match(list, '%S+$'))) or ''
end

-- The connections of a user's list that have not expired, and those that have.
local function sorted(user, list)
  local live, expired = {}, {}
  for connection in string.gmatch(list, '%S+') do
    local expiry = redis.call('ZSCORE', KEYS[2], entry_of(user, connection))
    local side = expiry and tonumber(expiry) > now and live or expired
    side[#side + 1] = connection
  end
  return live, expired
end

-- Whether a client has set the info: it ends with a space (service/core/presence.py).
local function is_updated(info)
  return string.byte(info, -1) == 32
end

local function set_info(user, connection, info)
  if info ~= '' then
    redis.call('HSET', KEYS[3], entry_of(user, connection), info)
  else
    redis.call('HDEL', KEYS[3], entry_of(user, connection))
  end
end

-- Publishes the event, unless the channel has too many users. Returns the script's reply; `changed` is 1 if a user has joined
-- or left.
local function announce(changed, max_users, command, channel, message)
  local users = redis.call('HLEN', KEYS[1])
  if users > max_users then return {changed, users, 0} end
  redis.call(command, channel, message)
  return {changed, users, 1}
end

local function no_change()
  return {0, redis.call('HLEN', KEYS[1]), 0}
end
