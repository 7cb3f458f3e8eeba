-- Removes a value.
-- KEYS[1] value.
-- Reply: 1 removed | 0 nothing was there.
local old = redis.call('GET', KEYS[1])
if not old then
  return 0
end
redis.call('DEL', KEYS[1])
return now_ms < (tonumber(string.match(old, '^%d+ %d+ %d+ (%d+) ')) or 0) and 1 or 0
