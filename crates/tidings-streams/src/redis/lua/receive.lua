-- Takes events for a consumer. ARGV: 4 consumer, 5 how many, 6 how long each may take, 7 deliveries of one at most, 8
-- where dead letters go, 9 whether the topic is ordered, 10 the longest wait of an event.
-- Answers nothing where there is no group, else: epoch, until when, whether more may be there at once, when the next is
-- due, the last id of the topic, the last id of the bell, id, attempt and fields of each event, and how many are dead
-- letters now.
local consumer, max, idle, deliveries = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local ordered, longest = ARGV[9] == '1', tonumber(ARGV[10])
-- New events that are looked at in one go.
local LOOK_MAX = 1000

local is = redis.call('HMGET', state, 'epoch', 'paused')
if not is[1] then return false end

local at = now()
local till = at + idle
local taken, count, bytes, again, looked, buried, letters = {}, 0, 0, 0, 0, 0, 0

local function take(id, attempt, fields)
  local at = 3 * count
  taken[at + 1], taken[at + 2], taken[at + 3] = id, attempt, fields
  count = count + 1
end

local function has_room()
  return count < max and bytes < BYTES_MAX and buried < BURY_MAX
end

-- Takes what is due again, or gives it up. Whether there was room for it.
local function take_again(id)
  if not has_room() then return false end
  local event = known(id)
  if not event.w and event.a >= deliveries then
    local letter, size = give_up(id, event, ARGV[8], at)
    buried, bytes, letters = buried + 1, bytes + (size or 0), letters + (letter and 1 or 0)
  else
    local fields = deliver(id, event, consumer, at, till)
    if fields then
      bytes = bytes + size_of(fields)
      take(id, event.a, fields)
      if event.a > 1 then again = again + 1 end
    end
  end
  return true
end

local function take_due()
  while has_room() do
    local found = redis.call('ZRANGEBYSCORE', due, '-inf', at, 'LIMIT', 0, math.min(max - count, 100))
    if #found == 0 then return end
    for _, next in ipairs(found) do
      if next == UNTOUCHED then
        sweep(at, idle, take_again)
      elseif not take_again(id_of(next)) then
        return
      end
    end
  end
end

local is_first_of_some = false

local function look_at(id, fields)
  -- Also of what is not taken: the server does nothing else meanwhile.
  bytes = bytes + (#fields == 4 and #fields[2] + #fields[4] or size_of(fields))
  local special = fields[3]
  if not ordered and special ~= 'not-before' and special ~= 'retried' then
    is_first_of_some = true
    note_taken(group, id)
    return take(id, 1, fields)
  end
  local from, retry, key = brief(fields)
  if retry and string.match(retry, '^%S+ %S+ (.+)$') ~= group then
    redis.call('XACK', stream, group, id)
    return
  end
  if from > 0 then from = math.min(from, moment(id) + longest) end
  local lane, parked = nil, false
  if ordered then
    lane = key and redis.sha1hex(key) or '-'
    parked = head(lane) ~= nil
    redis.call('ZADD', lanes, 0, lane .. ' ' .. member(id))
  end
  if from <= at and not parked then
    if lane then
      note(id, { a = 1, k = lane })
      redis.call('ZADD', due, till, member(id))
    else
      is_first_of_some = true
    end
    note_taken(group, id)
    return take(id, 1, fields)
  end
  redis.call('XCLAIM', stream, group, NOBODY, 0, id, 'RETRYCOUNT', 0, 'JUSTID')
  note(id, { a = 0, w = 1, d = from, k = lane })
  if not parked then redis.call('ZADD', due, from, member(id)) end
end

local function take_new()
  local room = OPEN_MAX - count_open()
  local most = math.min(LOOK_MAX, room)
  while count < max and looked < most and bytes < BYTES_MAX do
    -- What comes is as large as it is: after the first few, as many as fit if they are like those.
    local fit = looked == 0 and 16 or math.max(1, math.floor((BYTES_MAX - bytes) * looked / (bytes + 1)))
    local found = redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT',
      math.min(max - count, most - looked, fit, 64), 'STREAMS', stream, '>')
    if not found then break end
    for _, entry in ipairs(found[1][2]) do
      looked = looked + 1
      look_at(entry[1], entry[2])
    end
  end
  if is_first_of_some then expect_due(till) end
end

if is[2] ~= '1' then
  take_due()
  if count < max then take_new() end
end
if again > 0 then redis.call('HINCRBY', state, 'again', again) end
if buried > 0 then ring() end
if count > 0 then return { is[1], till, 1, '', '', '', taken, letters } end

local next = is[2] ~= '1' and redis.call('ZRANGE', due, 0, 0, 'WITHSCORES')[2] or ''
local more = max > 0 and (looked >= LOOK_MAX or bytes >= BYTES_MAX or buried >= BURY_MAX)
local _, _, _, last = ends()
local rung = redis.call('XREVRANGE', bell, '+', '-', 'COUNT', 1)[1]
next = next == '' and '' or whole(next - at)
return { is[1], till, more and 1 or 0, next, last, rung and rung[1] or '0-0', taken, letters }
