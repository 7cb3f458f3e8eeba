-- Drops the ticket's lease; with a mark the key is known as uncacheable and its entry is gone.
-- KEYS: 1 primary, 2 entry. ARGV: 2 selector, 3 token, 4 microseconds of the mark or 0,
--       5 the lease's selector. Reply: 1.
local lease_field = 'l:' .. ARGV[5]
local lease = redis.call('HGET', KEYS[1], lease_field)
if lease and string.match(lease, '^%x+') == ARGV[3] then redis.call('HDEL', KEYS[1], lease_field) end
local mark = tonumber(ARGV[4])
if mark > 0 then
  redis.call('HDEL', KEYS[1], 'v:' .. ARGV[2])
  redis.call('DEL', KEYS[2])
  redis.call('HSET', KEYS[1], 'mark', string.format('%.0f', now + mark))
  local keep_ms = math.ceil(mark / 1000) + 60000
  if redis.call('PTTL', KEYS[1]) < keep_ms then redis.call('PEXPIRE', KEYS[1], keep_ms) end
end
return 1
