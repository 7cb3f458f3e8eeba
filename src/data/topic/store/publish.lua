-- Appends an event, trims the log, and tells the readers.
-- KEYS: 1 head, 2 log (a stream: id = epoch-seq; at, payload). ARGV: 2 payload, 3 most events, 4 kept ms, 5 head kept ms,
-- 6 channel.
-- Reply: epoch, seq and at, eight bytes each, as the readers are told them before the payload.
local epoch, seq
local head = redis.call('GET', KEYS[1])
if not head then
  -- The head may have been lost before the log.
  local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
  head = last and last[1]
end
if head then
  epoch, seq = string.match(head, '^(%d+)-(%d+)$')
  seq = string.format('%.0f', tonumber(seq) + 1)
else
  -- The server's own time, also where a clock was passed: epochs only grow.
  local time = redis.call('TIME')
  epoch, seq = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)), '1'
end
local id, at = epoch .. '-' .. seq, string.format('%.0f', now_ms)
redis.call('XADD', KEYS[2], 'MAXLEN', '=', ARGV[3], id, 'at', at, 'payload', ARGV[2])
-- What is too old goes a little at a time; whoever reads leaves it out at once.
for _ = 1, tonumber(seq) % 8 == 0 and 32 or 0 do
  local oldest = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
  if not oldest or tonumber(oldest[2][2]) + tonumber(ARGV[4]) > now_ms then
    break
  end
  redis.call('XDEL', KEYS[2], oldest[1])
end
redis.call('SET', KEYS[1], id, 'PX', ARGV[5])
redis.call('PEXPIRE', KEYS[2], ARGV[5])
local told = struct.pack('>I8I8I8', tonumber(epoch), tonumber(seq), now_ms)
redis.call('PUBLISH', ARGV[6], told .. ARGV[2])
return told
