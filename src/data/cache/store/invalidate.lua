-- Drops records and leases of keys, raises stamps, and tells others.
-- KEYS: 1 stamps (see fetch), then record and lease of each key.
-- ARGV: 2 channel, 3 notice, from 4 on the members to raise.
-- Reply: 1.
for i = 2, #KEYS do
  redis.call('DEL', KEYS[i])
end
if #KEYS == 1 then
  -- A server that is full refuses a script that begins by growing: this does not, nor does dropping a key.
  redis.call('ZREM', KEYS[1], '~')
end
if #ARGV > 3 or #KEYS > 1 then
  local time = redis.call('TIME')
  local engine = time[1] * 1000000 + time[2]
  local last = tonumber(redis.call('ZSCORE', KEYS[1], '#') or '0')
  -- Stamps older than any record of the group say nothing any more; at most 100 go.
  local life = tonumber(redis.call('ZSCORE', KEYS[1], '!') or '0')
  local before = string.format('(%.0f', engine - (life + 7200000) * 1000)
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '1000000000000', before, 'LIMIT', 0, 100)) do
    if member ~= '' and member ~= '#' and member ~= '%' then
      redis.call('ZREM', KEYS[1], member)
    end
  end
  local stamp = math.max(last + 1, engine)
  for i = 4, #ARGV do
    redis.call('ZADD', KEYS[1], string.format('%.0f', stamp), ARGV[i])
    stamp = stamp + 1
  end
  redis.call('ZADD', KEYS[1], string.format('%.0f', stamp), '#')
  if #KEYS > 1 then
    redis.call('ZADD', KEYS[1], string.format('%.0f', stamp), '%')
  end
  if redis.call('PTTL', KEYS[1]) < 7200000 then
    redis.call('PEXPIRE', KEYS[1], 7200000)
  end
end
-- Where the user may not tell, nobody may listen either, and none believes a copy of its own: it is done all the same.
redis.pcall('PUBLISH', ARGV[2], ARGV[3])
return 1
