-- Makes dead letters of what nobody settled in time, in every group of a topic. ARGV: 4 deliveries of an event at most,
-- 5 where dead letters go, 6 a number from 0 to 1 that decides where the look begins in groups that have much due.
-- Answers how many there were, and whether there may be more.
local deliveries, at = tonumber(ARGV[4]), now()
-- Due events of a group that are looked at in one call, and dead letters that it makes.
local LOOK_MAX, BURY_MAX = 1000, 100
local buried, bytes, more = 0, 0, 0

each_group(function()
  if redis.call('EXISTS', state) == 0 then return end
  local beyond = redis.call('ZCOUNT', due, '-inf', at) - LOOK_MAX
  local from = math.floor(math.max(0, beyond + 1) * tonumber(ARGV[6]))
  for _, one in ipairs(redis.call('ZRANGEBYSCORE', due, '-inf', at, 'LIMIT', from, LOOK_MAX)) do
    local id = id_of(one)
    local event = known(id)
    if not event.w and event.a >= deliveries then
      if buried >= BURY_MAX or bytes >= BYTES_MAX then
        more = 1
        return
      end
      local letter, size = bury(id, event, ARGV[5], at, NOT_SETTLED)
      if letter then buried, bytes = buried + 1, bytes + size end
    end
  end
end)
if buried > 0 then ring() end
return { buried, more }
