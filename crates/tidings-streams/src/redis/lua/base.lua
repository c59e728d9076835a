-- What all scripts begin with. KEYS[1] says the slot; all other keys have its hash tag, and are named here.
-- ARGV[1] is what all keys begin with, ARGV[2] the topic, ARGV[3] the group; '' where there is none.

local base, topics = ARGV[1], KEYS[1]

local topic, stream, bell
local function on(name)
  topic, stream, bell = name, base .. 'stream/' .. name, base .. 'bell/' .. name
end
on(ARGV[2])

-- Numbers of more than 14 digits are not written as such else.
local function whole(number)
  return string.format('%d', number)
end

-- Where a topic ends: events and bytes that were ever published, bytes of those that are gone, the last id.
local function ends()
  local text = redis.call('HGET', topics, topic)
  if not text then return 0, 0, 0, '0-0', false end
  local events, bytes, gone, last = string.match(text, '^(%d+) (%d+) (%d+) (%S+)$')
  return tonumber(events), tonumber(bytes), tonumber(gone), last, true
end

local function note_ends(events, bytes, gone, last)
  redis.call('HSET', topics, topic, whole(events) .. ' ' .. whole(bytes) .. ' ' .. whole(gone) .. ' ' .. last)
end

-- A stream that somebody removed with the server's own tools goes on behind its last id: a new one would begin again
-- wherever the clock is, which may be the same millisecond, or an earlier one. Whether it was made anew: what it held is
-- gone then.
local function go_on_from(last)
  if last == '0-0' or redis.call('EXISTS', stream) == 1 then return false end
  redis.call('XADD', stream, last, 'at', '0 0')
  redis.call('XDEL', stream, last)
  return true
end
