-- Changes up to 512 counters, each a hash of v (value, kept exact by the server's own integers) and e (end in ms).
-- KEYS: the counters, one per change; then the marks of events and of the batch that changes refer to by place.
-- ARGV: 2 number of changes, 3 place of the batch's mark or 0, 4 mark ms; then per change:
--   by, ttl ms, '1' sliding, lowest or '', highest or '', place of the event's mark or 0. Or for one change without
--   conditions no more than 2 by, 3 ttl ms.
-- Reply: {value, ms left, 1 applied | 0} per change, flat.
local EXACT = 9007199254740992 -- Lua's own numbers are exact below

-- What a counter cannot hold is not applied. Whatever else the server refuses is an error, and nothing was changed: it
-- refuses the first write of a script or none.
local function is_refused(sum)
  return type(sum) == 'table' and not string.find(sum.err, 'overflow', 1, true) and not string.find(sum.err, 'not an integer', 1, true)
end

local plain = #ARGV == 3
if plain then
  -- Most calls are of this kind, and most of them find the counter alive.
  local ends = tonumber(redis.call('HGET', KEYS[1], 'e') or nil)
  if ends and now_ms < ends then
    local sum = redis.pcall('HINCRBY', KEYS[1], 'v', ARGV[2])
    if type(sum) == 'number' and sum > -EXACT and sum < EXACT then
      return {sum, ends - now_ms, 1}
    elseif type(sum) == 'number' then
      return {redis.call('HGET', KEYS[1], 'v'), ends - now_ms, 1}
    elseif is_refused(sum) then
      return sum
    end
  end
end

local count = plain and 1 or tonumber(ARGV[2])

-- A mark says until when it stands; one of a former version does as long as it lies there.
local function is_marked(key)
  local ends = redis.call('GET', key)
  return ends and now_ms < (tonumber(ends) or math.huge)
end

local function set_mark(key)
  -- By the server's clock an hour longer: the passed one may run behind it.
  redis.call('SET', key, string.format('%.0f', now_ms + ARGV[4]), 'PX', string.format('%.0f', ARGV[4] + 3600000))
end

local seen = not plain and ARGV[3] ~= '0' and is_marked(KEYS[tonumber(ARGV[3])])
if not plain and ARGV[3] ~= '0' and not seen then
  set_mark(KEYS[tonumber(ARGV[3])])
end

-- Compares whole numbers as text, beyond what is exact.
local function less(a, b)
  a, b = tostring(a), tostring(b)
  local na, nb = string.sub(a, 1, 1) == '-', string.sub(b, 1, 1) == '-'
  if na ~= nb then
    return na
  end
  if #a ~= #b then
    return (#a < #b) ~= na
  end
  return a ~= b and (a < b) ~= na
end

local reply, last, at = {}, 0, 5
for i = 1, count do
  local by, ttl, sliding, low, high, mark = ARGV[2], ARGV[3], '0', '', '', '0'
  if not plain then
    by, ttl, sliding, low, high, mark = unpack(ARGV, at, at + 5)
  end
  local key, event = KEYS[i], mark ~= '0' and KEYS[tonumber(mark)]
  local kept = redis.call('HGET', key, 'e')
  local value, ends, applied = nil, tonumber(kept or '0') or 0, 0
  if now_ms >= ends then
    if kept then
      redis.call('DEL', key)
    end
    value, ends = 0, 0
  elseif low ~= '' or high ~= '' then
    value = redis.call('HGET', key, 'v')
  end
  if not seen and not (event and is_marked(event)) then
    local sum = redis.pcall('HINCRBY', key, 'v', by)
    if is_refused(sum) then
      return sum
    end
    local counts = type(sum) == 'number'
    if counts and (sum <= -EXACT or sum >= EXACT) then
      sum = redis.call('HGET', key, 'v')
    end
    if counts and (low ~= '' or high ~= '') then
      local exact = redis.call('HGET', key, 'v')
      counts = not (low ~= '' and less(exact, low)) and not (high ~= '' and less(high, exact))
    elseif not counts then
      sum = nil
    end
    if counts then
      applied, value = 1, sum
      if ends == 0 or sliding == '1' then
        ends = now_ms + tonumber(ttl)
        redis.call('HSET', key, 'e', ends)
        redis.call('PEXPIRE', key, string.format('%.0f', ttl + 3600000))
      end
      if event then
        set_mark(event)
      end
    elseif ends == 0 then
      redis.call('DEL', key)
    elseif sum then
      redis.call('HSET', key, 'v', value)
    end
  end
  -- What did not change was not looked at.
  value = value or redis.call('HGET', key, 'v')
  reply[last + 1], reply[last + 2], reply[last + 3] = value, ends > now_ms and ends - now_ms or 0, applied
  last, at = last + 3, at + 6
end
return reply
