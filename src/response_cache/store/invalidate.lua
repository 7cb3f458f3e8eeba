-- Raises the stamps of targets in one step. Members: 'h' the highest stamp, 'f' the floor, and each target
-- as 'g' (gone) or 's' (stale) with its hash; 'f' < 'g' keeps the floor first among equals.
-- KEYS: 1 stamps, 2 their head: the highest stamp and the floor as text, for look-ups.
-- ARGV: 2 the most targets, 3 how many leave at once, 4 the channel to tell, 5... members. Reply: the stamp.
local function text(number) return string.format('%.0f', number) end
local head = redis.call('ZMSCORE', KEYS[1], 'h', 'f')
local highest, floor = tonumber(head[1] or nil), tonumber(head[2] or nil)
if not highest or not floor then
  highest, floor = now, now
  redis.call('DEL', KEYS[1])
  redis.call('ZADD', KEYS[1], text(now), 'h', text(now), 'f')
end
local stamp = text(math.max(highest + 1, now))
for index = 5, #ARGV do redis.call('ZADD', KEYS[1], stamp, ARGV[index]) end
redis.call('ZADD', KEYS[1], stamp, 'h')
local excess = redis.call('ZCARD', KEYS[1]) - 2 - tonumber(ARGV[2])
if excess > 0 then
  local leaving = math.max(tonumber(ARGV[3]), excess)
  local last = redis.call('ZRANGE', KEYS[1], leaving, leaving, 'WITHSCORES')
  redis.call('ZREMRANGEBYRANK', KEYS[1], 1, leaving)
  redis.call('ZADD', KEYS[1], last[2], 'f')
  floor = tonumber(last[2])
end
redis.call('SET', KEYS[2], stamp .. ' ' .. text(floor))
redis.pcall('PUBLISH', ARGV[4], stamp)
return stamp
