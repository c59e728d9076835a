-- What goes before events that are read by the server's own command, in one step with it: most events are first ones,
-- of which there is nothing to note, and a script takes three times as long to hand them on. ARGV: 4 how long each may
-- take, 5 how many there may be. Answers nothing where there is no group, else: epoch, until when, and whether they may
-- be handed out. If not they are to be given back.
local is = redis.call('HMGET', state, 'epoch', 'paused')
if not is[1] then return false end
local at = now()
local till = at + tonumber(ARGV[4])
local has_due = #redis.call('ZRANGEBYSCORE', due, '-inf', at, 'LIMIT', 0, 1) > 0
local is_free = is[2] ~= '1' and not has_due and count_open() + tonumber(ARGV[5]) <= OPEN_MAX
expect_due(till)
return { is[1], till, is_free and 1 or 0 }
