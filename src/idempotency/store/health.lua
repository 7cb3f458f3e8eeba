-- Says whether the server keeps what it is given.
-- KEYS[1] any record: only says which node is asked.
-- Reply: 0 it does | 1 it may evict live keys.
local policy = string.match(redis.call('INFO', 'memory'), 'maxmemory_policy:([%w-]+)')
if policy == nil or policy == 'noeviction' then
  return 0
end
return 1
