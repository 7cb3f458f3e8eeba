-- Reads which keys aliases stand for.
-- KEYS: the aliases.
-- Reply: per alias the primary key or nil.
local reply = redis.call('MGET', unpack(KEYS))
return reply
