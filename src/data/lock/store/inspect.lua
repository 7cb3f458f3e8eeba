-- Says who has a lock, and changes nothing.
-- KEYS[1] lock.
-- Reply: {fence, ms left} | nil.
local lock = redis.call('HMGET', KEYS[1], 'owner', 'fence', 'ends')
if not lock[1] or now_ms >= tonumber(lock[3]) then
  return false
end
return {lock[2], string.format('%.0f', tonumber(lock[3]) - now_ms)}
