-- Forgets states and lifts blocks. KEYS: per bucket its state and its block. ARGV[2]: a channel; from ARGV[3], per
-- bucket, what is published there: whoever knows the key as full or blocked forgets it. Reply: how many were there.
local gone = redis.call('DEL', unpack(KEYS))
for index = 1, #KEYS / 2 do redis.pcall('PUBLISH', ARGV[2], ARGV[2 + index]) end
return gone
