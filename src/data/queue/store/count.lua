-- Counts jobs.
-- KEYS and ARGV[2..7]: queue.lua. ARGV: 8 recipient or ''.
-- Reply: {ready, delayed, leased, dead, due time of the oldest ready one or ''}.
local move = moves()
local load, sweep = move.load, move.sweep
sweep()
if ARGV[8] ~= '' then
  local function of(state)
    local start = ARGV[8] .. '\0' .. state
    return redis.call('ZLEXCOUNT', WHO, '[' .. start, '(' .. start .. '\255')
  end
  return {of('b'), of('c'), of('a'), 0, ''}
end
local oldest
-- Without aging each priority has a band of its own; with aging the first of all has waited longest, or nearly.
for rank = 0, aging > 0 and 0 or 2 do
  local id = redis.call('ZRANGEBYSCORE', READY, string.format('%.0f', rank * BAND), '+inf', 'LIMIT', 0, 1)[1]
  if id then
    local job = load(id)
    oldest = job and math.min(oldest or job[DUE], job[DUE]) or oldest
  end
end
return {redis.call('ZCARD', READY), redis.call('ZCARD', DELAYED), redis.call('ZCARD', LEASED), redis.call('ZCARD', DEAD),
  oldest and string.format('%.0f', oldest) or ''}
