-- Writes a record and ends the lease of its key.
-- KEYS: 1 stamps, 2 record, 3 lease (see fetch).
-- ARGV: 2 token or '' for a put, 3 refresh ms, 4 fresh ms, 5 life ms, 6 tags, each followed by a space, 7 payload,
--   8 channel, 9 notice of a put, 10 notice of a fill, from 11 on prefixes.
-- Reply: 1 stored | 0 refused.
local held = redis.call('GET', KEYS[3])
local time = redis.call('TIME')
local engine = time[1] * 1000000 + time[2]
local last, base = tonumber(redis.call('ZSCORE', KEYS[1], '#') or '0'), redis.call('ZSCORE', KEYS[1], '')
local waited, stamp = held and string.sub(held, -1) == 'w', nil
if ARGV[2] ~= '' then
  local token, given = string.match(held or '', '^(%S+) (%d+)')
  if token ~= ARGV[2] then
    return 0
  end
  stamp = tonumber(given)
  local members, alive = {}, base and tonumber(base) < stamp
  for i = 11, #ARGV do
    members[#members + 1] = ARGV[i]
  end
  -- At most 16 tags.
  for tag in string.gmatch(ARGV[6], '%S+') do
    members[#members + 1] = tag
  end
  for _, score in ipairs(redis.call('ZMSCORE', KEYS[1], unpack(members))) do
    alive = alive and not (score and tonumber(score) >= stamp)
  end
  redis.call('DEL', KEYS[3])
  if not alive then
    if waited then
      redis.call('PUBLISH', ARGV[8], ARGV[10])
    end
    return 0
  end
else
  stamp = math.max(last + 1, engine)
  if not base then
    redis.call('ZADD', KEYS[1], string.format('%.0f', stamp), '')
    stamp = stamp + 1
  end
  redis.call('ZADD', KEYS[1], string.format('%.0f', stamp), '#')
  redis.call('DEL', KEYS[3])
end
local life = tonumber(ARGV[5])
local head = string.format('%.0f %.0f %.0f %.0f %.0f %d ', stamp, now_ms, now_ms + tonumber(ARGV[3]),
  now_ms + tonumber(ARGV[4]), now_ms + life, #ARGV[6])
redis.call('SET', KEYS[2], head .. ARGV[6] .. ARGV[7], 'PX', string.format('%.0f', life + 3600000))
redis.call('ZADD', KEYS[1], 'GT', ARGV[5], '!')
if redis.call('PTTL', KEYS[1]) < life + 7200000 then
  redis.call('PEXPIRE', KEYS[1], string.format('%.0f', life + 7200000))
end
if ARGV[2] == '' then
  redis.call('PUBLISH', ARGV[8], ARGV[9])
elseif waited then
  redis.call('PUBLISH', ARGV[8], ARGV[10])
end
return 1
