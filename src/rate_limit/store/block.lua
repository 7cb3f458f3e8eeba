-- Blocks a key. KEYS: its block. ARGV[2]: how long, in microseconds. Reply: 1. The later of two ends stands.
local duration = tonumber(ARGV[2])
local ends = now + duration
local earlier = redis.call('MGET', KEYS[1])[1]
if earlier and (tonumber(earlier) or 0) > ends then return 1 end
redis.call('SET', KEYS[1], string.format('%.0f', ends), 'PX', string.format('%.0f', math.ceil(duration / 1000) + 60000))
return 1
