-- Frees a lock if it is its owner's, keeps its fence, and wakes whoever waits.
-- KEYS[1] lock. ARGV: 2 owner, 3 keep ms, 4 channel.
-- Reply: 1 released, now or by an earlier try | 0 it was lost before.
local lock = redis.call('HMGET', KEYS[1], 'owner', 'ends', 'waited', 'last')
if lock[1] ~= ARGV[2] then
  -- The reply to an earlier try may have been lost.
  return lock[4] == ARGV[2] and 1 or 0
end
local held = now_ms < tonumber(lock[2])
-- Over since ever; nobody's name is the empty one. The key lives on for as long as its fence is to be known.
redis.call('HSET', KEYS[1], 'owner', '', 'ends', '0', 'last', held and ARGV[2] or '')
redis.call('PEXPIRE', KEYS[1], ARGV[3])
if lock[3] then
  redis.call('HDEL', KEYS[1], 'waited')
  redis.call('PUBLISH', ARGV[4], '')
end
return held and 1 or 0
