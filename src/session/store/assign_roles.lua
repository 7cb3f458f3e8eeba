-- Replaces the roles in all live sessions of a user; logins that began before are overtaken.
-- KEYS: index, cut-off. ARGV from 2: roles.
-- Reply: how many sessions.
local live, newer, frozen = family(KEYS[1], read_cut_off(KEYS[2]))
if #newer > 0 then error('a newer version wrote a session of this user') end
mark(KEYS[1])
for _, s in ipairs(live) do redis.call('HSET', s.key, 'r', ARGV[2]) end
for _, key in ipairs(frozen) do redis.call('HSET', key, 'r', ARGV[2]) end
expire_index(KEYS[1])
return #live
