-- Changes up to 512 counters, each a hash of v (value, kept exact by the server's own integers) and e (end in ms).
-- KEYS: the counters, one per change; then the marks of events and of the batch that changes refer to by place.
-- ARGV: 2 number of changes, 3 place of the batch's mark or 0, 4 mark ms; then per change:
--   by, ttl ms, '1' sliding, lowest or '', highest or '', place of the event's mark or 0.
-- Reply: {value, ms left, '1' applied} per change, flat.
local EXACT = 9007199254740992 -- Lua's own numbers are exact below
local changes, batch, reply = tonumber(ARGV[2]), tonumber(ARGV[3]), {}

-- Compares whole numbers as text: Lua's own numbers are not exact over 2^53.
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

local seen = batch > 0 and redis.call('SET', KEYS[batch], '', 'NX', 'PX', ARGV[4]) == false
for i = 1, changes do
  local at, key = 5 + (i - 1) * 6, KEYS[i]
  local old = redis.call('HMGET', key, 'v', 'e')
  local value, ends = old[1] or '0', tonumber(old[2] or '0')
  if now_ms >= ends then
    if old[1] then
      redis.call('DEL', key)
    end
    value, ends = '0', 0
  end
  local event, applied = tonumber(ARGV[at + 5]), '0'
  if not seen and not (event > 0 and redis.call('EXISTS', KEYS[event]) == 1) then
    local next = redis.pcall('HINCRBY', key, 'v', ARGV[at])
    local text = type(next) ~= 'table' and (next > -EXACT and next < EXACT and string.format('%.0f', next)
      or redis.call('HGET', key, 'v'))
    local low, high = ARGV[at + 3], ARGV[at + 4]
    if text and not (low ~= '' and less(text, low)) and not (high ~= '' and less(high, text)) then
      applied, value = '1', text
      local ttl = tonumber(ARGV[at + 1])
      if ends == 0 or ARGV[at + 2] == '1' then
        ends = now_ms + ttl
        redis.call('HSET', key, 'e', string.format('%.0f', ends))
        redis.call('PEXPIRE', key, string.format('%.0f', ttl + 3600000))
      end
      if event > 0 then
        redis.call('SET', KEYS[event], '', 'PX', ARGV[4])
      end
    elseif ends == 0 then
      redis.call('DEL', key)
    elseif text then
      redis.call('HSET', key, 'v', value)
    end
  end
  reply[#reply + 1] = value
  reply[#reply + 1] = string.format('%.0f', math.max(ends - now_ms, 0))
  reply[#reply + 1] = applied
end
return reply
