-- Takes over what is idle. ARGV: 4 consumer, 5 how many, 6 how long each may take, 7 deliveries of one at most, 8 where
-- dead letters go, 9 for how long nobody has done anything. Answers nothing where there is no group, else epoch, until
-- when, id, attempt and fields of each event, and how many are dead letters now.
local consumer, max, deliveries = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[7])
-- Lines of the server's list that are read at a time.
local LINES = 100

local is = redis.call('HMGET', state, 'epoch', 'paused')
if not is[1] then return false end
local at = now()
local till, taken, count, bytes, again, buried, letters = at + tonumber(ARGV[6]), {}, 0, 0, 0, 0, 0

local from = '-'
while is[2] ~= '1' and count < max and bytes < BYTES_MAX and buried < BURY_MAX do
  local lines = redis.call('XPENDING', stream, group, 'IDLE', least_idle(ARGV[9]), from, '+', LINES)
  for _, one in ipairs(lines) do
    if count >= max or bytes >= BYTES_MAX or buried >= BURY_MAX then break end
    local id, event = one[1], known(one[1])
    local fields, letter, size
    if event.w or idle_for(group, id, one[3]) < tonumber(ARGV[9]) then
      size = 0
    elseif event.a >= deliveries then
      letter, size = give_up(id, event, ARGV[8], at)
      buried, letters = buried + 1, letters + (letter and 1 or 0)
    else
      fields = deliver(id, event, consumer, at, till)
    end
    if fields then
      count, again, size = count + 1, again + 1, size_of(fields)
      taken[#taken + 1], taken[#taken + 2], taken[#taken + 3] = id, event.a, fields
    end
    bytes = bytes + (size or 0)
  end
  if #lines < LINES then break end
  from = '(' .. lines[#lines][1]
end
if again > 0 then redis.call('HINCRBY', state, 'again', again) end
if buried > 0 then ring() end
return { is[1], till, taken, letters }
