-- Before every script. ARGV[1]: the passed clock in UTC microseconds, or '' for the server's own.
-- Gives `now` in whole microseconds and `now_ms` in whole milliseconds.
local now
if ARGV[1] == '' then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
else
  now = tonumber(ARGV[1])
end
local now_ms = math.floor(now / 1000)
