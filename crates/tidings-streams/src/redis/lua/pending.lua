-- Lists open events. ARGV: 4 from which id, 5 how many. Answers nothing where there is no group, else for each: id,
-- attempts, consumer or '', idle, whether it waits, its moment, and what the last failure said.
if redis.call('EXISTS', state) == 0 then return false end
local listed = {}
for _, one in ipairs(redis.call('XPENDING', stream, group, ARGV[4], '+', ARGV[5])) do
  local id, event = one[1], known(one[1])
  local score = redis.call('ZSCORE', due, member(id))
  local consumer, idle = one[2], idle_for(group, id, one[3])
  if consumer == NOBODY then consumer = '' end
  if event.w then idle = 0 end
  listed[#listed + 1] = { id, event.a, consumer, idle, event.w or 0, whole(score or event.d or 0), event.e or '' }
end
return listed
