-- Appends events. ARGV[4] is the window of idempotency keys in milliseconds, then for each event: its idempotency key
-- or '', its size, how many values its fields are, and these. Answers the ids, each with '=' before it where it was
-- there already, and where the topic ends.
local window = tonumber(ARGV[4])
local events, bytes, gone, last = ends()
local ids, at = {}, 5
go_on_from(last)
while at <= #ARGV do
  local key, size, values = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local once = base .. 'once/' .. topic .. '/' .. key
  local id = key ~= '' and redis.call('GET', once)
  -- Where a window has become shorter the server remembers longer.
  if id and now() - moment(id) <= window then
    ids[#ids + 1] = '=' .. id
  else
    events = events + 1
    last = redis.call('XADD', stream, new_id(), 'at', whole(events) .. ' ' .. whole(bytes),
      unpack(ARGV, at + 3, at + 2 + values))
    bytes = bytes + size
    ids[#ids + 1] = last
    if key ~= '' and window > 0 then redis.call('SET', once, last, 'PX', window) end
  end
  at = at + 3 + values
end
note_ends(events, bytes, gone, last)
return { ids, events, bytes - gone }
