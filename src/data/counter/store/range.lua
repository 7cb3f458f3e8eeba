-- Reads buckets of a series, at most 1,000.
-- KEYS[1] series. ARGV: 2 first number, 3 number after the last, 4 width ms, 5 keep.
-- Reply: {count, sum, max} per bucket, flat, each nil where there is none.
local first, after = tonumber(ARGV[2]), math.min(tonumber(ARGV[3]), tonumber(ARGV[2]) + 1000)
local oldest = math.floor(now_ms / tonumber(ARGV[4])) - tonumber(ARGV[5])
local reply = {}
for number = first, after - 1 do
  local prefix = string.format('%.0f', number)
  local sums = {false, false, false}
  if number >= oldest then
    sums = redis.call('HMGET', KEYS[1], prefix .. 'c', prefix .. 's', prefix .. 'x')
  end
  for i = 1, 3 do
    reply[#reply + 1] = sums[i]
  end
end
return reply
