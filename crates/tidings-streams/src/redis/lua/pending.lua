-- Lists open events. ARGV: 4 from which id, 5 how many, 6 how long each may take. Answers nothing where there is no
-- group, else for each: id, attempts, consumer or '', idle, whether it waits, its moment, what the last failure said.
if redis.call('EXISTS', state) == 0 then return false end
local listed, at = {}, now()
for _, one in ipairs(redis.call('XPENDING', stream, group, ARGV[4], '+', ARGV[5])) do
  local id, event = one[1], known(one[1])
  local score = redis.call('ZSCORE', due, member(id))
  local consumer, idle = one[2], idle_for(group, id, one[3])
  if consumer == NOBODY then consumer = '' end
  local till = score or event.d or at - idle + ARGV[6]
  if event.w then idle = 0 end
  listed[#listed + 1] = { id, event.a, consumer, idle, event.w or 0, whole(till), event.e or '' }
end
return listed
