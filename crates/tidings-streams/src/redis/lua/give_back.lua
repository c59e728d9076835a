-- Puts back events that were read by the server's own command and are not to be handed out, or not yet: as if they had
-- been looked at only. ARGV: 4 the longest wait of an event, 5 who read them, 6 in which epoch, then ids. Said late or
-- twice it takes nothing from anybody: only what that consumer has still, and of which nothing is noted.
local epoch = redis.call('HGET', state, 'epoch')
if not epoch then return false end
if epoch ~= ARGV[6] then return 0 end
for at = 7, #ARGV do
  local id = ARGV[at]
  local taken = line(id)
  if taken and taken[2] == ARGV[5] and is_untouched(id) then
    local entry = redis.call('XRANGE', stream, id, id)[1]
    if entry then put_back(id, entry[2], tonumber(ARGV[4])) end
  end
end
ring()
return 1
