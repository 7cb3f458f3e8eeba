-- Reads counters.
-- KEYS: the counters.
-- Reply: {value, ms left, '0'} per counter, flat.
local reply = {}
for i = 1, #KEYS do
  local old = redis.call('HMGET', KEYS[i], 'v', 'e')
  local left = tonumber(old[2] or '0') - now_ms
  reply[#reply + 1] = left > 0 and old[1] or '0'
  reply[#reply + 1] = string.format('%.0f', math.max(left, 0))
  reply[#reply + 1] = '0'
end
return reply
