-- Reads a record, and gives or takes over a lease if asked.
-- KEYS: 1 stamps (a sorted set: '' the group, '#' the last stamp given, '!' the longest life in ms, else prefixes and tags),
--   2 record, 3 lease.
-- ARGV: 2 token or '' for none, 3 lease ms, 4 '1' to take over, 5 '1' also where fresh, from 6 on prefixes.
-- Reply: {now ms, 0 no lease | 1 given | 2 busy, record or nil}.
local raw, refresh = redis.call('GET', KEYS[2]), nil
if raw then
  local stamp, due, ends, length, at = string.match(raw, '^(%d+) %d+ (%d+) %d+ (%d+) (%d+) ()')
  local members = {''}
  for i = 6, #ARGV do
    members[#members + 1] = ARGV[i]
  end
  if stamp then
    -- At most 16 tags.
    for tag in string.gmatch(string.sub(raw, at, at + tonumber(length) - 1), '%S+') do
      members[#members + 1] = tag
    end
  end
  local scores, alive = redis.call('ZMSCORE', KEYS[1], unpack(members)), stamp ~= nil
  alive = alive and scores[1] and now_ms < tonumber(ends)
  for i = 1, #members do
    alive = alive and not (scores[i] and tonumber(scores[i]) >= tonumber(stamp))
  end
  if not alive then
    raw = false
  end
  refresh = tonumber(due)
end
local leased = 0
if ARGV[2] ~= '' and (ARGV[5] == '1' or not raw or now_ms >= refresh) then
  local held = redis.call('GET', KEYS[3])
  if held and ARGV[4] ~= '1' then
    leased = 2
    if string.sub(held, -1) ~= 'w' then
      redis.call('SET', KEYS[3], held .. 'w', 'KEEPTTL')
    end
  else
    leased = 1
    local time = redis.call('TIME')
    local engine = time[1] * 1000000 + time[2]
    local last = tonumber(redis.call('ZSCORE', KEYS[1], '#') or '0')
    local stamp = math.max(last + 1, engine)
    if not redis.call('ZSCORE', KEYS[1], '') then
      redis.call('ZADD', KEYS[1], string.format('%.0f', stamp), '')
      stamp = stamp + 1
    end
    local text = string.format('%.0f', stamp)
    redis.call('ZADD', KEYS[1], text, '#')
    if redis.call('PTTL', KEYS[1]) < 7200000 then
      redis.call('PEXPIRE', KEYS[1], 7200000)
    end
    redis.call('SET', KEYS[3], ARGV[2] .. ' ' .. text, 'PX', ARGV[3])
  end
end
return {string.format('%.0f', now_ms), leased, raw}
