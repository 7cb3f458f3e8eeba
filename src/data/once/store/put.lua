-- Keeps a value unless one is there.
-- KEYS[1] value. ARGV: 2 record, 3 ttl ms.
-- Reply: 1 stored | 0 exists.
local old = redis.call('GET', KEYS[1])
if old and now_ms < (tonumber(string.match(old, '^%d+ %d+ %d+ (%d+) ')) or 0) then
  return 0
end
local ttl = tonumber(ARGV[3])
local head = string.format('1 %.0f %.0f %.0f ', now_ms, now_ms, now_ms + ttl)
redis.call('SET', KEYS[1], head .. ARGV[2], 'PX', string.format('%.0f', ttl + 3600000))
return 1
