-- Moves the end of a lock that is still its owner's.
-- KEYS[1] lock. ARGV: 2 owner, 3 lease ms, 4 lease and keep ms.
-- Reply: 1 extended | 0 lost.
local lock = redis.call('HMGET', KEYS[1], 'owner', 'ends')
if lock[1] ~= ARGV[2] or now_ms >= tonumber(lock[2]) then
  return 0
end
redis.call('HSET', KEYS[1], 'ends', now_ms + tonumber(ARGV[3]))
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 1
