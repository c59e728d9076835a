-- Makes a group, removes one, pauses one or lets it go on, or makes it go on from elsewhere. ARGV: 4 what, 5 where
-- from: 'earliest', 'latest' or an id; or whether it is to be paused.

-- The event to go on from, and the id before it.
local function target()
  local _, _, _, last = ends()
  local found
  if ARGV[5] == 'earliest' then
    found = first_from('-')
  elseif ARGV[5] ~= 'latest' then
    found = first_from(ARGV[5])
  end
  if not found then return nil, last end
  local before = redis.call('XREVRANGE', stream, '(' .. found.id, '-', 'COUNT', 1)[1]
  return found, before and before[1] or '0-0'
end

local function make(before, paused)
  redis.call('XGROUP', 'CREATE', stream, group, before, 'MKSTREAM')
  redis.call('HDEL', state, 'swept')
  redis.call('HSET', state, 'epoch', redis.call('INCR', base .. 'epoch'), 'paused', paused)
end

local function create()
  if is_whole() then return 0 end
  local events, bytes, gone, last, is_there = ends()
  local found, before = target()
  local is_new = go_on_from(last)
  if is_new then gone = bytes end
  -- Refused by the server where somebody else has made a group of that name: nothing of it is written before.
  make(before, 0)
  redis.call('DEL', due, open, lanes)
  redis.call('HSET', state, 'again', 0)
  if is_new or not is_there then note_ends(events, bytes, gone, last) end
  return 1
end

local function drop()
  if redis.call('EXISTS', stream) == 1 then redis.call('XGROUP', 'DESTROY', stream, group) end
  redis.call('DEL', due, open, lanes)
end

-- How many open events there are below an event, and at or behind it those that were never delivered.
local function open_around(found)
  local below, untouched, from = 0, 0, '-'
  repeat
    local lines = redis.call('XPENDING', stream, group, from, '+', 1000)
    for _, one in ipairs(lines) do
      from = '(' .. one[1]
      local time, sequence = string.match(one[1], '^(%d+)-(%d+)$')
      local is_below = not found or tonumber(time) < found.time
        or (tonumber(time) == found.time and tonumber(sequence) < found.sequence)
      if is_below then
        below = below + 1
      elseif known(one[1]).a == 0 then
        untouched = untouched + 1
      end
    end
  until #lines < 1000
  return below, untouched
end

-- Answers: the last id of the topic, where it stood and where it stands, or '' for behind that one, what comes again,
-- what is skipped.
local function seek(is_preview)
  local is = redis.call('HMGET', state, 'epoch', 'paused')
  if not is_whole() then return false end
  local events, _, _, last = ends()
  local found, before = target()
  local stood = first_from('(' .. standing())
  local from = stood and stood.number or events + 1
  local to = found and found.number or events + 1
  if found then
    local time, sequence = string.match(found.id, '^(%d+)-(%d+)$')
    found.time, found.sequence = tonumber(time), tonumber(sequence)
  end
  local below, untouched = open_around(found)
  local again = math.max(0, from - to) - untouched
  local skipped = below + math.max(0, to - from)
  if not is_preview then
    drop()
    make(before or last, is[2])
    ring()
  end
  return { last, stood and stood.id or '', found and found.id or '', whole(again), whole(skipped) }
end

if ARGV[4] == 'create' then return create() end
if ARGV[4] == 'seek' or ARGV[4] == 'preview' then return seek(ARGV[4] == 'preview') end
if redis.call('EXISTS', state) == 0 then return false end
if ARGV[4] == 'remove' then
  drop()
  redis.call('DEL', state)
else
  redis.call('HSET', state, 'paused', ARGV[5])
end
ring()
return 1
