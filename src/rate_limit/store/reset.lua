-- Forgets states and lifts blocks. KEYS: states and blocks. Reply: how many were there.
return redis.call('DEL', unpack(KEYS))
