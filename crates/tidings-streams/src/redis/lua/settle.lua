-- Settles deliveries. ARGV: 4 deliveries of an event at most, 5 where dead letters go, 6 how many waits follow, and the
-- wait after each failure, of which the last stands for all that come later. Then for each word: id, epoch and attempt
-- or '', what to do, and a text for it. Or '*', an epoch, and the ids of first deliveries of it that are acknowledged.
-- Answers nothing where there is no group, else a letter and a text for each word, or 'a' alone where all are
-- acknowledged.
local deliveries, waits = tonumber(ARGV[4]), tonumber(ARGV[6])
local epoch = redis.call('HGET', state, 'epoch')
if not epoch then return false end

local at, rings = now(), false
local was_full = count_open() >= OPEN_MAX
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
  local till = at + by
  local before = redis.call('ZSCORE', due, member(id)) or redis.call('ZSCORE', due, UNTOUCHED)
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

local first, all = 7 + waits, true
local function answer(letter, text)
  all = all and letter == 'a'
  answers[#answers + 1], answers[#answers + 2] = letter, text or ''
end

local function nothing_timed()
  return redis.call('ZCARD', due) == (redis.call('ZSCORE', due, UNTOUCHED) and 1 or 0)
end

if ARGV[first] ~= '*' then
  for word = first, #ARGV, 5 do
    answer(settle(ARGV[word], ARGV[word + 1], ARGV[word + 2], ARGV[word + 3], ARGV[word + 4]))
  end
elseif ARGV[first + 1] == epoch and redis.call('HLEN', open) == 0 and nothing_timed() then
  -- Nothing is noted of any event: what the server lists is with somebody for the first time.
  local call, missed = redis.call, nil
  for word = first + 2, #ARGV do
    if call('XACK', stream, group, ARGV[word]) == 0 then
      missed = missed or {}
      missed[word] = true
    end
  end
  if missed then
    for word = first + 2, #ARGV do answer(missed[word] and 'u' or 'a') end
  else
    answer('a')
  end
else
  for word = first + 2, #ARGV do answer(settle(ARGV[word], ARGV[first + 1], '1', 'a', '')) end
end
unmark()
if rings or was_full then ring() end
return all and #answers > 0 and { 'a' } or answers
