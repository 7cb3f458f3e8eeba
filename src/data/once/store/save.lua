-- Writes a value if what is there is as expected.
-- KEYS[1] value. ARGV: 2 record, 3 'any' | '0' for absent | the version expected, 4 ttl ms, 5 max age ms.
-- Reply: {1, new version} | {0, version that is there, 0 for none}.
local old = redis.call('GET', KEYS[1])
local version, created = 0, now_ms
if old then
  local v, c, ends = string.match(old, '^(%d+) (%d+) %d+ (%d+) ')
  if ends and now_ms < tonumber(ends) then
    version, created = tonumber(v), tonumber(c)
  end
end
if ARGV[3] ~= 'any' and tonumber(ARGV[3]) ~= version then
  return {0, string.format('%.0f', version)}
end
local ends = math.min(now_ms + tonumber(ARGV[4]), created + tonumber(ARGV[5]))
local head = string.format('%.0f %.0f %.0f %.0f ', version + 1, created, now_ms, ends)
redis.call('SET', KEYS[1], head .. ARGV[2], 'PX', string.format('%.0f', math.max(ends - now_ms, 0) + 3600000))
return {1, string.format('%.0f', version + 1)}
