-- Settles deliveries. ARGV: 4 deliveries of an event at most, 5 where dead letters go, 6 how many waits follow, and the
-- wait after each failure, of which the last stands for all that come later. Then for each word: id, epoch and attempt
-- or '', what to do, and a text for it. Answers nothing where there is no group, else a letter and a text for each
-- word.
local deliveries, waits = tonumber(ARGV[4]), tonumber(ARGV[6])
local epoch = redis.call('HGET', state, 'epoch')
if not epoch then return false end

local at, rings = now(), false
local was_full = redis.call('ZCARD', due) >= OPEN_MAX or redis.call('ZCARD', lanes) >= OPEN_MAX
local settled, answers = {}, {}

local function unmark()
  if #settled > 0 then redis.call('ZREM', due, unpack(settled)) end
  settled = {}
end

local function acknowledge(id, event, packed)
  if redis.call('XACK', stream, group, id) == 0 then return 'u' end
  if event.k then
    unmark()
    forget(id, event)
    return 'a'
  end
  if packed then redis.call('HDEL', open, id) end
  settled[#settled + 1] = member(id)
  if #settled >= VALUES_MAX then unmark() end
  return 'a'
end

local function extend(id, event, by)
  local taken = line(id)
  local claimed = redis.call('XCLAIM', stream, group, taken[2], 0, id, 'RETRYCOUNT', event.a, 'JUSTID')
  if #claimed == 0 then
    forget(id, event)
    return 'u'
  end
  local till, before = at + by, redis.call('ZSCORE', due, member(id))
  note_taken(group, id)
  rings = rings or not before or till < tonumber(before)
  redis.call('ZADD', due, till, member(id))
  return 'e', whole(till)
end

local function fail(id, event, reason)
  if event.a >= deliveries then
    local letter = bury(id, event, ARGV[5], at, reason)
    if letter then return 'b', letter end
    return 'u'
  end
  local till = at + tonumber(ARGV[6 + math.min(event.a, waits)])
  failed(event, at, reason)
  event.w, rings = 1, true
  note(id, event)
  redis.call('ZADD', due, till, member(id))
  return 'r', whole(till)
end

local function settle(id, of_epoch, attempt, what, text)
  local event, packed = known(id)
  local is_current = of_epoch == '' or (of_epoch == epoch and tonumber(attempt) == event.a)
  if what == 'a' and is_current and not event.w then return acknowledge(id, event, packed) end
  unmark()
  if not line(id) then return 'u' end
  if event.w or not is_current then return 's' end
  if what == 'e' then return extend(id, event, tonumber(text)) end
  return fail(id, event, text)
end

-- Most words acknowledge a first delivery. Where all do, and each of another event, they are settled together: an event of
-- which nothing is known beside its moment is with somebody for the first time.
local function acknowledge_all()
  local ids, marks, seen, count = {}, {}, {}, 0
  for word = 7 + waits, #ARGV, 5 do
    local id = ARGV[word]
    if ARGV[word + 3] ~= 'a' or ARGV[word + 2] ~= '1' or ARGV[word + 1] ~= epoch or seen[id] then return false end
    count = count + 1
    ids[count], marks[count], seen[id] = id, member(id), true
  end
  if count == 0 then return false end
  local noted, moments = redis.call('HMGET', open, unpack(ids)), redis.call('ZMSCORE', due, unpack(marks))
  for at = 1, count do
    if noted[at] or not moments[at] then return false end
  end
  redis.call('XACK', stream, group, unpack(ids))
  redis.call('ZREM', due, unpack(marks))
  for at = 1, 2 * count, 2 do answers[at], answers[at + 1] = 'a', '' end
  return true
end

if not acknowledge_all() then
  for word = 7 + waits, #ARGV, 5 do
    local answer, text = settle(ARGV[word], ARGV[word + 1], ARGV[word + 2], ARGV[word + 3], ARGV[word + 4])
    answers[#answers + 1], answers[#answers + 2] = answer, text or ''
  end
  unmark()
end
if rings or was_full then ring() end
return answers
