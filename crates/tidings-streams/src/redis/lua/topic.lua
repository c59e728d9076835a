-- What a topic holds: events, bytes, first id, last id, groups. Nothing: there is none.
local _, bytes, gone, last, is_there = ends()
if not is_there then return false end
local first, groups = first_from('-'), 0
each_group(function() groups = groups + 1 end)
local has_stream = redis.call('EXISTS', stream) == 1
return { has_stream and redis.call('XLEN', stream) or 0, has_stream and whole(bytes - gone) or '0',
  first and first.id or '', first and last or '', groups }
