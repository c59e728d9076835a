-- What scripts about groups and dead letters go on with.

local dead, NOT_SETTLED = base .. 'dead', 'not settled in time'

-- Whom the server's group lists what waits and was never delivered for: no consumer's name has brackets.
local NOBODY = '(waiting)'

-- So much of an event's fields a call takes or moves; one piece more may come.
local BYTES_MAX = 8388608
-- Values that one command is given: Lua's stack takes 8,000.
local VALUES_MAX = 2000
-- Open events of a group: `ledger::OPEN_MAX`.
local OPEN_MAX = 16384
-- The longest wait of an event: `settings::WAIT_MAX`.
local WAIT_MAX = 604800000
-- Dead letters that one call makes of what nobody settled in time.
local BURY_MAX = 100

local group, state, due, open, lanes
local function of(name)
  local place = topic .. '/' .. name
  group, state, due = name, base .. 'group/' .. place, base .. 'due/' .. place
  open, lanes = base .. 'open/' .. place, base .. 'lanes/' .. place
end

of(ARGV[3])

-- An id as a member of sorted sets, where those of one moment are in the order of their texts.
local function member(id)
  local dash = string.find(id, '-', 1, true)
  return string.sub(id, 1, dash) .. string.sub('000000', #id - dash) .. string.sub(id, dash + 1)
end

local function id_of(member)
  return (string.gsub(member, '%-0+(%d)', '-%1'))
end

-- Which event of the topic it is, and the bytes of those before it: beyond those that were there before its batch.
local function place_of(entry)
  local number, before, of_batch, before_of_batch = string.match(entry[2][2], '^(%d+) (%d+) ?(%d*) ?(%d*)$')
  number, before = number + (tonumber(of_batch) or 0), before + (tonumber(before_of_batch) or 0)
  return { id = entry[1], number = number, before = before }
end

-- The first event from an id on, or behind it with '(' before it.
local function first_from(id)
  local entry = redis.call('XRANGE', stream, id, '+', 'COUNT', 1)[1]
  return entry and place_of(entry)
end

local function ring()
  redis.call('XADD', bell, 'MAXLEN', 1, '*', 'rung', 1)
end

-- What is known of an open event beside the server's own list: `a` attempts, `w` whether it waits, `d` from when on it
-- is due where nobody had it yet, `f` and `l` its first and last failure, `e` what was said then, `k` its lane. An
-- event without it is with somebody, for the first time.
local function known(id)
  local packed = redis.call('HGET', open, id)
  return packed and cmsgpack.unpack(packed) or { a = 1 }, packed
end

local function note(id, event)
  redis.call('HSET', open, id, cmsgpack.pack(event))
end

-- Most events are acknowledged at once, so that nothing is noted of those that are with somebody for the first time and
-- have no lane: the server's list says since when. This member of the sorted set stands for all of them, at a moment
-- when none of them is due yet, or the first one is.
local UNTOUCHED = '*'
-- Lines of the server's list that are looked at in one go.
local LINES = 100

local function is_untouched(id)
  return redis.call('HEXISTS', open, id) == 0 and not redis.call('ZSCORE', due, member(id))
end

local function expect_due(till)
  redis.call('ZADD', due, 'LT', till, UNTOUCHED)
end

-- How many events of a group are open. None where the server has no such group.
local function count_open()
  return redis.pcall('XPENDING', stream, group)[1] or 0
end

-- Calls for each of those events that is due, until it says that it has had enough. They were handed out in the order
-- of their ids: `swept` is the last one before all of which they are settled, or something is noted.
local function sweep(at, idle, call_for)
  local from, earliest, enough = redis.call('HGET', state, 'swept') or '-', nil, false
  repeat
    local lines, swept = redis.call('XPENDING', stream, group, from, '+', LINES), nil
    for _, one in ipairs(lines) do
      local id = one[1]
      if is_untouched(id) then
        local rest = idle - idle_for(group, id, one[3])
        if rest > 0 then
          earliest = math.min(earliest or at + rest, at + rest)
        elseif not call_for(id) then
          enough = true
          break
        end
      end
      if not earliest then swept = id end
    end
    if swept then
      from = '(' .. swept
      redis.call('HSET', state, 'swept', from)
    end
  until enough or earliest or #lines < LINES
  if enough then return end
  redis.call('ZREM', due, UNTOUCHED)
  if earliest then expect_due(earliest) end
end

local function failed(event, at, reason)
  event.f, event.l, event.e = event.f or at, at, reason
end

-- The server's line about an open event: id, consumer, idle, deliveries.
local function line(id)
  return redis.call('XPENDING', stream, group, id, id, 1)[1]
end

local function head(lane)
  return redis.call('ZRANGEBYLEX', lanes, '[' .. lane .. ' ', '(' .. lane .. '!', 'LIMIT', 0, 1)[1]
end

-- An event is open no more. Where others of its lane wait for it, the next one is due at its moment.
local function close_lane(id, event)
  local lane = event.k
  redis.call('ZREM', lanes, lane .. ' ' .. member(id))
  local next = head(lane)
  if not next then return end
  next = string.sub(next, #lane + 2)
  if not redis.call('ZSCORE', due, next) then
    redis.call('ZADD', due, known(id_of(next)).d or 0, next)
    ring()
  end
end

local function forget(id, event)
  redis.call('XACK', stream, group, id)
  redis.call('ZREM', due, member(id))
  redis.call('HDEL', open, id)
  if event.k then close_lane(id, event) end
end

local function size_of(fields)
  local size = 0
  for at = 1, #fields do size = size + #fields[at] end
  return size
end

-- What an event's fields say that decides whether it can be taken.
local function brief(fields)
  local from, retry, key, next = 0, nil, nil, 3
  if fields[next] == 'not-before' then from, next = tonumber(fields[next + 1]), next + 2 end
  if fields[next] == 'retried' then retry, next = fields[next + 1], next + 2 end
  if fields[next] == 'key' then key = fields[next + 1] end
  return from, retry, key
end

-- Notes an open event as one that was looked at and is not with anybody, where it is this group's.
local function put_back(id, fields, longest)
  local from, retry = brief(fields)
  if retry and string.match(retry, '^%S+ %S+ (.+)$') ~= group then return redis.call('XACK', stream, group, id) end
  if from > 0 then from = math.min(from, moment(id) + longest) end
  redis.call('XCLAIM', stream, group, NOBODY, 0, id, 'RETRYCOUNT', 0, 'JUSTID')
  note(id, { a = 0, w = 1, d = from })
  -- What was due before it was looked at comes before it.
  redis.call('ZADD', due, math.max(from, now()), member(id))
end

-- Puts an event back that was read by the server's own command and not to be handed out: whoever was to give it back
-- has ended before that. Whether it was so.
local function put_back_unhanded(id, event, fields, at)
  local special = fields[3]
  if event.a ~= 1 or event.w or event.k or (special ~= 'not-before' and special ~= 'retried') then return false end
  local from, retry = brief(fields)
  if from > 0 then from = math.min(from, moment(id) + WAIT_MAX) end
  local is_anothers = retry and string.match(retry, '^%S+ %S+ (.+)$') ~= group
  if not is_anothers and from <= at then return false end
  put_back(id, fields, WAIT_MAX)
  return true
end

-- One more delivery. Nothing: the event is gone, or not to be had yet.
local function deliver(id, event, consumer, at, till)
  local entry = redis.call('XCLAIM', stream, group, consumer, 0, id, 'RETRYCOUNT', event.a + 1)[1]
  if not entry then return forget(id, event) end
  if put_back_unhanded(id, event, entry[2], at) then return end
  event.a = event.a + 1
  if not event.w then failed(event, at, NOT_SETTLED) end
  event.w, event.d = nil, nil
  note(id, event)
  note_taken(group, id)
  redis.call('ZADD', due, till, member(id))
  return entry[2]
end

-- A dead letter, and its size. Nothing: the event is gone.
local function bury(id, event, stream_of_dead, at, reason)
  local entry, taken = redis.call('XRANGE', stream, id, id)[1], line(id)
  if not entry or not taken then return forget(id, event) end
  failed(event, at, reason)
  local letter = redis.call('XADD', dead, '*', 'stream', stream_of_dead, 'topic', topic, 'group', group,
    'consumer', taken[2], 'attempts', event.a, 'first-failed', event.f, 'last-failed', event.l,
    'error', event.e, 'id', id, unpack(entry[2]))
  forget(id, event)
  return letter, size_of(entry[2])
end

-- Gives up what nobody settled in time: as a dead letter, or by putting it back where nobody was given it. Answers the
-- letter, if there is one, and the size.
local function give_up(id, event, stream_of_dead, at)
  if event.a == 1 and not event.w and not event.k then
    local entry = redis.call('XRANGE', stream, id, id)[1]
    if entry and put_back_unhanded(id, event, entry[2], at) then return nil, size_of(entry[2]) end
  end
  return bury(id, event, stream_of_dead, at, NOT_SETTLED)
end

-- Where the server's group stands: the last id that it has looked at, and how many it has open.
local function standing()
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local fields = {}
    for at = 1, #info, 2 do fields[info[at]] = info[at + 1] end
    if fields.name == group then return fields['last-delivered-id'], fields.pending end
  end
end

-- Whether there is a group. Of one that somebody removed with the server's own tools, or with its stream, keys are left.
local function is_whole()
  return redis.call('EXISTS', state) == 1 and redis.call('EXISTS', stream) == 1 and standing() ~= nil
end

-- Calls once for each group of the topic, with its last id and the number of its open events.
local function each_group(call)
  if redis.call('EXISTS', stream) == 0 then return end
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local fields = {}
    for at = 1, #info, 2 do fields[info[at]] = info[at + 1] end
    of(fields.name)
    call(fields['last-delivered-id'], fields.pending)
  end
end
