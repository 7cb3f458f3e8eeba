-- Appends an event, trims the log, and tells the readers.
-- KEYS[1] log (at, payload). ARGV: 2 payload, 3 most events, 4 kept ms, 5 log kept ms, 6 channel.
-- Reply: epoch, seq and at, eight bytes each, as the readers are told them before the payload.
local at = string.format('%.0f', now_ms)
local id = redis.call('XADD', KEYS[1], 'NOMKSTREAM', 'MAXLEN', '=', ARGV[3], '*', 'at', at, 'payload', ARGV[2])
if not id then
  -- The server's own time, also where a clock was passed: epochs only grow.
  local time = redis.call('TIME')
  id = string.format('%.0f-1', time[1] * 1000 + math.floor(time[2] / 1000) + AHEAD)
  redis.call('XADD', KEYS[1], id, 'at', at, 'payload', ARGV[2])
end
local epoch, seq = string.match(id, '^(%d+)-(%d+)$')
-- What is too old goes a little at a time; whoever reads leaves it out at once. The newest stays: it is the log's head.
for _ = 1, seq % 8 == 0 and 32 or 0 do
  local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
  if oldest[1] == id or tonumber(oldest[2][2]) + tonumber(ARGV[4]) > now_ms then
    break
  end
  redis.call('XDEL', KEYS[1], oldest[1])
end
redis.call('PEXPIRE', KEYS[1], ARGV[5])
local told = struct.pack('>I8I8I8', epoch - AHEAD, seq, now_ms)
redis.pcall('PUBLISH', ARGV[6], told .. ARGV[2])
return told
