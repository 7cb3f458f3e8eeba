-- Drops the ticket's lease; with a mark the variant is known as uncacheable and its entry is gone.
-- KEYS: 1 primary, 2 entry. ARGV: 2 selector, 3 token, 4 microseconds of the mark or 0,
--       5 the lease's selector, 6 the channel to tell, 7 what to tell those who wait. Reply: 1.
local MOST_MARKS = 32
local lease_field = 'l:' .. ARGV[5]
local lease = redis.call('HGET', KEYS[1], lease_field)
if lease and string.match(lease, '^%x+') == ARGV[3] then
  redis.call('HDEL', KEYS[1], lease_field)
  if string.sub(lease, -1) == 'w' then redis.pcall('PUBLISH', ARGV[6], ARGV[7]) end
end
local mark = tonumber(ARGV[4])
if mark > 0 then
  redis.call('HDEL', KEYS[1], 'v:' .. ARGV[2])
  redis.call('DEL', KEYS[2])
  -- What has ended goes; of too many marks the first to end.
  local count, first, first_until = 0, nil, nil
  local fields = redis.call('HGETALL', KEYS[1])
  for index = 1, #fields, 2 do
    local kind, until_at = string.sub(fields[index], 1, 2), nil
    if kind == 'm:' then until_at = tonumber(fields[index + 1]) end
    if kind == 'l:' then until_at = tonumber(string.match(fields[index + 1], '|(%d+)')) end
    if until_at and until_at <= now then
      redis.call('HDEL', KEYS[1], fields[index])
    elseif kind == 'm:' and fields[index] ~= 'm:' .. ARGV[2] then
      count = count + 1
      if not first or until_at < first_until then first, first_until = fields[index], until_at end
    end
  end
  if count >= MOST_MARKS then redis.call('HDEL', KEYS[1], first) end
  redis.call('HSET', KEYS[1], 'm:' .. ARGV[2], string.format('%.0f', now + mark))
  local keep_ms = math.ceil(mark / 1000) + 60000
  if redis.call('PTTL', KEYS[1]) < keep_ms then redis.call('PEXPIRE', KEYS[1], string.format('%.0f', keep_ms)) end
end
return 1
