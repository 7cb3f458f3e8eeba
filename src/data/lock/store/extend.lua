-- Moves the end of a lock that is still its owner's.
-- KEYS[1] lock. ARGV: 2 owner, 3 lease ms, 4 keep ms.
-- Reply: 1 extended | 0 lost.
local lock = redis.call('HMGET', KEYS[1], 'owner', 'ends')
if lock[1] ~= ARGV[2] or now_ms >= tonumber(lock[2]) then
  return 0
end
local lease = tonumber(ARGV[3])
redis.call('HSET', KEYS[1], 'ends', now_ms + lease)
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', lease + tonumber(ARGV[4])))
return 1
