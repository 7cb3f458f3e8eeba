-- Puts pieces of a part of many bytes aside, so that no script has all of them to carry (`promise.lua` takes them over).
-- KEYS and ARGV[2..7]: queue.lua. KEYS: 15 those pieces. ARGV: 8 how long they wait there, ms; then for each its number, and it.
-- Reply: '1'.
redis.call('HSET', KEYS[15], unpack(ARGV, 9))
redis.call('PEXPIRE', KEYS[15], ARGV[8])
return '1'
