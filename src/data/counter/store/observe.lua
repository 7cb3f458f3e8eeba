-- Adds to the buckets of now; a series is a hash of <number>c (count), <number>s (sum), <number>x (max).
-- KEYS: one series per width. ARGV: 2 count, 3 value or ''; then per series: width ms, keep.
-- Reply: 1.
local function add(key, field, by)
  local next = redis.pcall('HINCRBY', key, field, by)
  if type(next) == 'table' then
    local last = string.sub(by, 1, 1) == '-' and '-9223372036854775808' or '9223372036854775807'
    redis.call('HSET', key, field, last)
  end
  return next
end

-- As many as a bucket has of what is written now.
local fields = ARGV[3] ~= '' and 3 or 1

local function less(a, b)
  local na, nb = string.sub(a, 1, 1) == '-', string.sub(b, 1, 1) == '-'
  if na ~= nb then
    return na
  end
  if #a ~= #b then
    return (#a < #b) ~= na
  end
  return a ~= b and (a < b) ~= na
end

for i = 1, #KEYS do
  local key, width, keep = KEYS[i], tonumber(ARGV[2 + i * 2]), tonumber(ARGV[3 + i * 2])
  local number = math.floor(now_ms / width)
  local prefix = string.format('%.0f', number)
  local sum = add(key, prefix .. 'c', ARGV[2])
  -- Only a bucket that begins can be too many: more than are kept, and a quarter.
  if sum == tonumber(ARGV[2]) and redis.call('HLEN', key) > fields * (keep + math.floor(keep / 4) + 1) then
    for _, field in ipairs(redis.call('HKEYS', key)) do
      if tonumber(string.sub(field, 1, -2)) < number - keep then
        redis.call('HDEL', key, field)
      end
    end
  end
  if ARGV[3] ~= '' then
    add(key, prefix .. 's', ARGV[3])
    local max = redis.call('HGET', key, prefix .. 'x')
    if not max or less(max, ARGV[3]) then
      redis.call('HSET', key, prefix .. 'x', ARGV[3])
    end
  end
  local left = (number + 1 + keep) * width - now_ms + 3600000
  redis.call('PEXPIRE', key, string.format('%.0f', left))
end
return 1
