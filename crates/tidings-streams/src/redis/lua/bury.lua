-- Makes dead letters of what nobody settled in time, in every group of a topic. ARGV: 4 deliveries of an event at most,
-- 5 where dead letters go, 6 a number from 0 to 1 that decides where the look begins in groups that have much due,
-- 7 for how long a consumer has done nothing that the server's groups may forget, or '' to forget none,
-- 8 how long each may take. Answers how many dead letters there were, and whether there may be more.
local deliveries, at, idle = tonumber(ARGV[4]), now(), tonumber(ARGV[8])
-- Due events of a group that are looked at in one call, and consumers that it forgets.
local LOOK_MAX, FORGET_MAX = 1000, 1000
local buried, bytes, more = 0, 0, 0

-- The server keeps each name that ever received, and processes come with new ones. One that comes back is listed again.
local function forget_consumers(idle)
  local forgotten = 0
  for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
    if forgotten >= FORGET_MAX then return end
    local fields = {}
    for at = 1, #info, 2 do fields[info[at]] = info[at + 1] end
    if fields.pending == 0 and fields.idle >= idle then
      redis.call('XGROUP', 'DELCONSUMER', stream, group, fields.name)
      forgotten = forgotten + 1
    end
  end
end

-- Whether there was room for it.
local function give_up_one(id, event)
  if buried >= BURY_MAX or bytes >= BYTES_MAX then
    more = 1
    return false
  end
  local letter, size = give_up(id, event, ARGV[5], at)
  if letter then buried = buried + 1 end
  bytes = bytes + (size or 0)
  return true
end

each_group(function(_, pending)
  if redis.call('EXISTS', state) == 0 then return end
  if ARGV[7] ~= '' then
    forget_consumers(least_idle(tonumber(ARGV[7])))
    -- What the server's own tools have done with open events is looked at from the beginning.
    redis.call('HDEL', state, 'swept')
    if pending > 0 then expect_due(at) end
  end
  -- Of what was delivered once nothing is noted.
  local first = redis.call('ZSCORE', due, UNTOUCHED)
  if deliveries <= 1 and first and tonumber(first) <= at then
    sweep(at, idle, function(id) return give_up_one(id, (known(id))) end)
  end
  local beyond = redis.call('ZCOUNT', due, '-inf', at) - LOOK_MAX
  local from = math.floor(math.max(0, beyond + 1) * tonumber(ARGV[6]))
  for _, one in ipairs(redis.call('ZRANGEBYSCORE', due, '-inf', at, 'LIMIT', from, LOOK_MAX)) do
    if one ~= UNTOUCHED then
      local id = id_of(one)
      local event = known(id)
      if not event.w and event.a >= deliveries and not give_up_one(id, event) then return end
    end
  end
end)
if buried > 0 then ring() end
return { buried, more }
