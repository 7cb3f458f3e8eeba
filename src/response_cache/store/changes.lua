-- Returns the stamps above one; all of them when that lies below the floor.
-- KEYS: 1 stamps, 2 their head. ARGV: 2 the stamp. Reply: highest, floor, then members and their stamps in turn.
local function text(number) return string.format('%.0f', number) end
local head = redis.call('ZMSCORE', KEYS[1], 'h', 'f')
local highest, floor = tonumber(head[1] or nil), tonumber(head[2] or nil)
if not highest or not floor then
  highest, floor = now, now
  redis.call('DEL', KEYS[1])
  redis.call('ZADD', KEYS[1], text(now), 'h', text(now), 'f')
  redis.call('SET', KEYS[2], text(now) .. ' ' .. text(now))
end
local from = '(' .. ARGV[2]
if tonumber(ARGV[2]) < floor then from = '-inf' end
local reply = {text(highest), text(floor)}
for _, part in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], from, '+inf', 'WITHSCORES')) do reply[#reply + 1] = part end
return reply
