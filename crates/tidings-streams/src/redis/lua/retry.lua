-- Publishes a dead letter again, for its group alone. ARGV: 4 its id. Answers 'unknown', 'group' where its group is
-- gone, or the new id.
local letter = redis.call('XRANGE', dead, ARGV[4], ARGV[4])[1]
if not letter then return 'unknown' end
local told, at = {}, 1
local fields = letter[2]
while fields[at] ~= 'at' do
  told[fields[at]], at = fields[at + 1], at + 2
end
on(told.topic)
of(told.group)
if not is_whole() then return 'group' end

-- Its moment has come, and its idempotency key stands for the event that was published.
local left, original, size = {}, told.id, 0
for place = at + 2, #fields, 2 do
  local name, value = fields[place], fields[place + 1]
  if name == 'retried' then
    original = string.match(value, '^%S+ (%S+)')
  elseif name ~= 'not-before' and name ~= 'idempotency-key' then
    left[#left + 1], left[#left + 2] = name, value
  end
end
local retried = ARGV[4] .. ' ' .. original .. ' ' .. told.group
local events, bytes, gone = ends()
local id = redis.call('XADD', stream, new_id(), 'at', whole(events + 1) .. ' ' .. whole(bytes), 'retried', retried,
  unpack(left))
note_ends(events + 1, bytes + size_of(left) + #retried, gone, id)
redis.call('XDEL', dead, ARGV[4])
return id
