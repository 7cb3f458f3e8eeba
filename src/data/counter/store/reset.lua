-- Forgets a counter.
-- KEYS[1] counter.
-- Reply: 1.
redis.call('DEL', KEYS[1])
return 1
