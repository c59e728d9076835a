
-- The moment is what the suite says it is: the same functions as by the server's clock.

local function now()
  return tonumber(redis.call('GET', 'clock'))
end

local function moment(id)
  return tonumber(string.match(id, '^(%d+)-'))
end

local function new_id()
  return whole(now()) .. '-*'
end

local function note_taken(group, id)
  redis.call('HSET', base .. 'taken/' .. topic .. '/' .. group, id, whole(now()))
end

local function least_idle() return 0 end

local function idle_for(group, id)
  return now() - (redis.call('HGET', base .. 'taken/' .. topic .. '/' .. group, id) or 0)
end
