-- Writes, reads and removes a value, and tells how the server keeps its memory.
-- KEYS[1] value. ARGV: 2 text, 3 ms that it may live.
-- Reply: {what was read, INFO memory or '' where that may not be asked}.
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
local read = redis.call('GET', KEYS[1])
redis.call('DEL', KEYS[1])
local info = redis.pcall('INFO', 'memory')
if type(info) ~= 'string' then
  info = ''
end
return {read, info}
