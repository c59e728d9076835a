-- Lists groups. Answers where the topic ends, and for each group: name, whether it is paused, deliveries beyond the
-- first, open events, events that are not settled, the moment of the oldest of those or '', the next event's id or ''.
local listed = {}
local at = now()
local events, _, _, last = ends()
each_group(function(looked_at, pending)
  local is = redis.call('HMGET', state, 'epoch', 'paused', 'again')
  if not is[1] then return end
  local next = first_from('(' .. looked_at)
  local untouched = next and events - next.number + 1 or 0
  local oldest = next and moment(next.id) or ''
  if pending > 0 then oldest = moment(redis.call('XPENDING', stream, group)[2]) end
  listed[#listed + 1] = { group, is[2], is[3], pending, whole(untouched + pending),
    oldest == '' and '' or whole(math.max(0, at - oldest)), next and next.id or '' }
end)
return { last, listed }
