-- Replaces the roles in all live sessions of a user; logins that began before are overtaken.
-- KEYS: index, cut-off. ARGV from 2: roles.
-- Reply: how many sessions.
mark(KEYS[1])
local live = family(KEYS[1], read_cut_off(KEYS[2]))
for _, s in ipairs(live) do redis.call('HSET', s.key, 'r', ARGV[2]) end
expire_index(KEYS[1])
return #live
