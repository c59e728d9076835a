-- Puts back events that were read by the server's own command and are not to be handed out, or not yet: as if they had
-- been looked at only. ARGV: 4 the longest wait of an event, then ids.
if redis.call('EXISTS', state) == 0 then return false end
for at = 5, #ARGV do
  local entry = redis.call('XRANGE', stream, ARGV[at], ARGV[at])[1]
  if entry then put_back(entry[1], entry[2], tonumber(ARGV[4])) end
end
ring()
return 1
