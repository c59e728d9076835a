-- Appends events. ARGV[4] is the window of idempotency keys in milliseconds, or '' where no event has one. Without it
-- follow 5 the bytes of all, 6 how many values each event's fields are or 0 where each has nothing but a payload, and
-- for each event which one of these it is with the bytes of those before it, and its fields or its payload. With it
-- follows for each event: its idempotency key or '', its size, how many values its fields are, and these. Answers the
-- ids, each with '=' before it where it was there already, and where the topic ends.
local call = redis.call
local events, bytes, gone, last = ends()
local ids = {}
if go_on_from(last) then gone = bytes end

local function plain()
  local values, before, count = tonumber(ARGV[6]), whole(events) .. ' ' .. whole(bytes) .. ' ', 0
  local id = new_id()
  for at = 7, #ARGV, math.max(values, 1) + 1 do
    count = count + 1
    if values == 0 then
      ids[count] = call('XADD', stream, id, 'at', before .. ARGV[at], 'payload', ARGV[at + 1])
    else
      ids[count] = call('XADD', stream, id, 'at', before .. ARGV[at], unpack(ARGV, at + 1, at + values))
    end
  end
  events, bytes, last = events + count, bytes + tonumber(ARGV[5]), ids[count] or last
end

local function keyed()
  local window, once, at = tonumber(ARGV[4]), base .. 'once/' .. topic .. '/', 5
  while at <= #ARGV do
    local key, size, values = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
    local id = key ~= '' and call('GET', once .. key)
    -- Where a window has become shorter the server remembers longer.
    if id and now() - moment(id) <= window then
      ids[#ids + 1] = '=' .. id
    else
      events = events + 1
      last = call('XADD', stream, new_id(), 'at', whole(events) .. ' ' .. whole(bytes),
        unpack(ARGV, at + 3, at + 2 + values))
      bytes = bytes + size
      ids[#ids + 1] = last
      if key ~= '' and window > 0 then call('SET', once .. key, last, 'PX', window) end
    end
    at = at + 3 + values
  end
end

if ARGV[4] == '' then plain() else keyed() end
note_ends(events, bytes, gone, last)
return { ids, events, bytes - gone }
