
-- The moment is the server's, in milliseconds since 1970.

local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function moment(id)
  return tonumber(string.match(id, '^(%d+)-'))
end

-- The id of a new event: of the moment, and never below the last one.
local function new_id()
  return '*'
end

-- The server's list says since when somebody has an event, and for how long nobody has done anything about it.
local function note_taken() end
local function least_idle(idle) return idle end
local function idle_for(_, _, listed) return listed end
