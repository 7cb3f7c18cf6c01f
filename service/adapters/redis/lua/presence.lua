-- Begins every script on a channel's presence.
--
-- KEYS: 1 users (hash: user -> "c1 c2 …", the one with the newest token last), 2 expiries (sorted set of "connection user" by
--       milliseconds), 3 infos (hash: "connection user" -> JSON), further ones as each script says
--
-- A user is present as long as the hash of users holds it, and what is told follows that hash alone: `joined` when a user
-- enters it, `left` when it goes. An entry that has expired changes nothing before somebody strikes it out.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function entry_of(user, connection)
  return connection .. ' ' .. user
end

-- The list without a connection, and whether that was in it.
local function without(list, connection)
  local rest, found = {}, false
  for one in string.gmatch(list, '%S+') do
    if one == connection then found = true else rest[#rest + 1] = one end
  end
  return table.concat(rest, ' '), found
end

-- Everything of a channel goes when no node has spoken of it for so long.
local function keep(milliseconds)
  for index = 1, 3 do redis.call('PEXPIRE', KEYS[index], milliseconds) end
end

-- What is shown of a user with such a list: the info of the last connection in it, '' for none.
local function shown(user, list)
  return redis.call('HGET', KEYS[3], entry_of(user, string.match(list, '%S+$'))) or ''
end

local function show(user, connection, info)
  if info ~= '' then
    redis.call('HSET', KEYS[3], entry_of(user, connection), info)
  else
    redis.call('HDEL', KEYS[3], entry_of(user, connection))
  end
end

-- Tells the channel, unless it has more users than are told of one by one. Returns what the caller returns; `changed` is 1 if a
-- user has come or gone.
local function change(changed, most, command, channel, message)
  local users = redis.call('HLEN', KEYS[1])
  if users > most then return {changed, users, 0} end
  redis.call(command, channel, message)
  return {changed, users, 1}
end

local function no_change()
  return {0, redis.call('HLEN', KEYS[1]), 0}
end
