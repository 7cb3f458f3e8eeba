-- Reads a value and removes it.
-- KEYS[1] value.
-- Reply: the whole value, "version created updated expires record" | nil.
local old = redis.call('GET', KEYS[1])
if not old then
  return false
end
redis.call('DEL', KEYS[1])
if now_ms >= (tonumber(string.match(old, '^%d+ %d+ %d+ (%d+) ')) or 0) then
  return false
end
return old
