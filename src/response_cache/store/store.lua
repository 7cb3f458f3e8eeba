-- Writes an entry; drops the ticket's lease and the variant's mark. The later-begun of two fetches stays.
-- KEYS: 1 primary, 2 entry, 3 the entry of answers that do not vary.
-- ARGV: 2 selector, 3 names, 4 token, 5 at, 6 due, 7 expires, 8 begun, 9 id, 10 body id, 11 head, 12 body,
--       13 the lease's selector, 14 the channel to tell, 15 what to tell those who wait.
-- Reply: 1 written, 0 superseded, or of fewer names than are known.
local MOST_VARIANTS = 32
local lease_field = 'l:' .. ARGV[13]
local primary = redis.call('HMGET', KEYS[1], 'names', lease_field, 'v:' .. ARGV[2], 'm:' .. ARGV[2])
if primary[2] and string.match(primary[2], '^%x+') == ARGV[4] then
  redis.call('HDEL', KEYS[1], lease_field)
  -- Heard when this script has ended, and the entry is there.
  if string.sub(primary[2], -1) == 'w' then redis.pcall('PUBLISH', ARGV[14], ARGV[15]) end
end
-- By the clock that the entry follows: another machine's may be far from it.
local left_ms = math.max(1000, math.floor((tonumber(ARGV[7]) - now) / 1000))
local keep_ms = left_ms + 60000
local known = primary[1] or ''
if known ~= ARGV[3] then
  local all, seen = {}, {}
  for name in string.gmatch(known .. ',' .. ARGV[3], '[^,]+') do
    if not seen[name] then seen[name] = true; all[#all + 1] = name end
  end
  -- By bytes, as every process sorts them: strings are otherwise compared by the server's locale.
  table.sort(all, function(a, b)
    for at = 1, math.min(#a, #b) do
      local x, y = string.byte(a, at), string.byte(b, at)
      if x ~= y then return x < y end
    end
    return #a < #b
  end)
  local union = table.concat(all, ',')
  -- Under fewer names than are known it would never be found; those that are there stay.
  if union == known then return 0 end
  -- Entries under other names can never be found again.
  for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
    local kind = string.sub(field, 1, 2)
    if kind == 'v:' or kind == 'm:' then redis.call('HDEL', KEYS[1], field) end
  end
  -- Looks ask for this one by its key alone.
  if known == '' then redis.call('DEL', KEYS[3]) end
  if union ~= ARGV[3] then
    -- Somebody learned of more names meanwhile: under fewer this entry would never be found.
    redis.call('HSET', KEYS[1], 'names', union)
    return 0
  end
elseif primary[3] then
  local there = redis.call('HMGET', KEYS[2], 'at', 'expires')
  if there[1] and tonumber(there[2]) > now and tonumber(there[1]) > tonumber(ARGV[5]) then return 0 end
elseif ARGV[3] ~= '' then
  local count, oldest, oldest_at = 0, nil, nil
  local fields = redis.call('HGETALL', KEYS[1])
  for index = 1, #fields, 2 do
    if string.sub(fields[index], 1, 2) == 'v:' then
      count = count + 1
      local at = tonumber(fields[index + 1])
      if not oldest or at < oldest_at then oldest, oldest_at = fields[index], at end
    end
  end
  -- Without its field the oldest is absent; its bytes go at their own end.
  if count >= MOST_VARIANTS then redis.call('HDEL', KEYS[1], oldest) end
end
redis.call('HSET', KEYS[2], 'at', ARGV[5], 'due', ARGV[6], 'expires', ARGV[7], 'begun', ARGV[8], 'id', ARGV[9],
  'body_id', ARGV[10], 'head', ARGV[11], 'body', ARGV[12])
redis.call('PEXPIRE', KEYS[2], string.format('%.0f', left_ms))
redis.call('HSET', KEYS[1], 'names', ARGV[3], 'v:' .. ARGV[2], ARGV[5])
if primary[4] then redis.call('HDEL', KEYS[1], 'm:' .. ARGV[2]) end
if redis.call('PTTL', KEYS[1]) < keep_ms then redis.call('PEXPIRE', KEYS[1], string.format('%.0f', keep_ms)) end
return 1
