-- Removes the oldest events. ARGV: 4 most events, 5 longest age, 6 most bytes, each '' for any; 7 whether only to say
-- what would be, 8 whether also to take what groups have not settled, 9 most events to remove. Answers how many events
-- are removed, of how many bytes, and how many are kept for groups.
local events, bytes, gone, last, is_there = ends()
local first = is_there and first_from('-')
if not first then return { 0, 0, 0 } end

local function sequence(id)
  return tonumber(string.match(id, '-(%d+)$'))
end

-- The same among those of one moment, for the first of which it does not hold: by halves of the sequence between. What
-- comes behind them it holds for.
local function find_in(time, holds)
  local newest = place_of(redis.call('XREVRANGE', stream, time, time, 'COUNT', 1)[1])
  if not holds(newest) then return first_from('(' .. newest.id) end
  local found, low, high = newest, sequence(first_from(time).id), sequence(newest.id)
  while high - low > 1 do
    local middle = math.floor((low + high) / 2)
    -- Somebody else's ids may be beyond what is counted exactly.
    if middle <= low or middle >= high then break end
    local place = first_from(string.format('%s-%.0f', time, middle))
    if holds(place) then
      found, high = place, middle
    else
      low = sequence(place.id)
    end
  end
  return found
end

-- The first event that something holds for, where it holds for all behind it: by halves of the time between, for events
-- are found by their moments only, and then of the sequence.
local function find(holds)
  if holds(first) then return first end
  local low, high = moment(first.id), moment(last)
  while low < high do
    local middle = math.ceil((low + high) / 2)
    local place = first_from(whole(middle))
    if place and not holds(place) then
      low = moment(place.id)
    else
      high = middle - 1
    end
  end
  return find_in(whole(low), holds)
end

local ending = { number = events + 1, before = bytes }
local function later(one, other)
  return one.number > other.number and one or other
end

local wanted = first
if ARGV[4] ~= '' then
  local most = tonumber(ARGV[4])
  wanted = later(wanted, find(function(place) return events - place.number + 1 <= most end) or ending)
end
if ARGV[5] ~= '' then
  wanted = later(wanted, first_from(whole(math.max(0, now() - tonumber(ARGV[5])))) or ending)
end
if ARGV[6] ~= '' then
  local most = tonumber(ARGV[6])
  wanted = later(wanted, find(function(place) return bytes - place.before <= most end) or ending)
end

local floor = wanted
if ARGV[8] ~= '1' and wanted.number > first.number then
  each_group(function(looked_at, pending)
    local lowest
    if pending > 0 then
      lowest = first_from(redis.call('XPENDING', stream, group)[2])
    else
      lowest = first_from('(' .. looked_at)
    end
    if lowest and lowest.number < floor.number then floor = lowest end
  end)
end
local kept = wanted.number - floor.number
local most = tonumber(ARGV[9])
if floor.number - first.number > most then
  floor = find(function(place) return place.number >= first.number + most end) or ending
end
local removed, of_bytes = floor.number - first.number, floor.before - gone
if removed == 0 or ARGV[7] == '1' then return { removed, removed == 0 and 0 or whole(of_bytes), kept } end

if floor.id then
  redis.call('XTRIM', stream, 'MINID', floor.id)
else
  redis.call('XTRIM', stream, 'MAXLEN', 0)
end
note_ends(events, bytes, floor.before, last)
if ARGV[8] == '1' then
  each_group(function()
    repeat
      local lines = redis.call('XPENDING', stream, group, '-', floor.id and '(' .. floor.id or '+', 100)
      for _, one in ipairs(lines) do forget(one[1], (known(one[1]))) end
    until #lines == 0
  end)
  ring()
end
return { removed, whole(of_bytes), kept }
