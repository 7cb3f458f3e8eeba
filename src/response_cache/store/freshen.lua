-- Gives an entry a new head and leaves its body; drops the ticket's lease.
-- KEYS: 1 primary, 2 entry.
-- ARGV: 2 selector, 3 token, 4 at, 5 due, 6 expires, 7 begun, 8 id, 9 body id, 10 head,
--       11 the lease's selector, 12 the channel to tell, 13 what to tell those who wait.
-- Reply: 1 written, 0 another entry is there, or none.
local lease_field = 'l:' .. ARGV[11]
local primary = redis.call('HMGET', KEYS[1], lease_field, 'v:' .. ARGV[2])
if primary[1] and string.match(primary[1], '^%x+') == ARGV[3] then
  redis.call('HDEL', KEYS[1], lease_field)
  if string.sub(primary[1], -1) == 'w' then redis.pcall('PUBLISH', ARGV[12], ARGV[13]) end
end
local there = redis.call('HMGET', KEYS[2], 'body_id', 'at', 'expires')
if not primary[2] or there[1] ~= ARGV[9] or tonumber(there[3]) <= now or tonumber(there[2]) > tonumber(ARGV[4]) then return 0 end
redis.call('HSET', KEYS[2], 'at', ARGV[4], 'due', ARGV[5], 'expires', ARGV[6], 'begun', ARGV[7], 'id', ARGV[8], 'head', ARGV[10])
-- By the clock that the entry follows: another machine's may be far from it.
local left_ms = math.max(1000, math.floor((tonumber(ARGV[6]) - now) / 1000))
redis.call('PEXPIRE', KEYS[2], string.format('%.0f', left_ms))
redis.call('HSET', KEYS[1], 'v:' .. ARGV[2], ARGV[4])
local keep_ms = left_ms + 60000
if redis.call('PTTL', KEYS[1]) < keep_ms then redis.call('PEXPIRE', KEYS[1], string.format('%.0f', keep_ms)) end
return 1
