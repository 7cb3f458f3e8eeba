-- 64 sub-buckets: one packed string of birth, newest bucket, and 65 counts up to it.

local buckets = {}
local LIVE = 65 -- sub-buckets that can be live
local COUNTS = string.rep('I4', LIVE)

function buckets.write(p, s)
  local newest = 0
  for index = 1, LIVE do
    if s.counts[index] > 0 then newest = index end
  end
  if newest == 0 then
    redis.call('DEL', p.key)
    return
  end
  local packed = struct.pack('>dd' .. COUNTS, s.born, s.current, unpack(s.counts))
  redis.call('SET', p.key, packed, 'PX', ttl(buckets.free_at(p, s, newest)))
end

function buckets.free_at(p, s, index)
  return (s.current - LIVE + index + 1) * p.grain + p.window
end

-- Gives the counts of the 65 buckets up to the current one, whatever was the newest when they were written.
function buckets.load(p, raw)
  p.grain = p.window / 64
  local current = whole(now, p.grain)
  if not raw then return nil end
  if #raw ~= 16 + 4 * LIVE then
    broken(p)
    return nil
  end
  local read = { struct.unpack('>dd' .. COUNTS, raw) }
  local born, last = read[1], read[2]
  if not (born >= 0 and born < 2 ^ 53 and last >= 0 and last < 2 ^ 53 and last == math.floor(last)) then
    broken(p)
    return nil
  end
  local s = { born = born, current = current, counts = {} }
  for index = 1, LIVE do s.counts[index] = 0 end
  for index = 1, LIVE do
    local place = math.min(last - LIVE + index, current) - current + LIVE
    if place >= 1 then s.counts[place] = s.counts[place] + read[2 + index] end
  end
  if last > current then buckets.write(p, s) end
  return s
end

function buckets.total(s)
  local used = 0
  for index = 1, LIVE do used = used + s.counts[index] end
  return used
end

function buckets.freed_in(p, s, units)
  local freed = 0
  for index = 1, LIVE do
    freed = freed + s.counts[index]
    if freed >= units then return buckets.free_at(p, s, index) - now end
  end
  return p.window
end

function buckets.usage(p, s)
  local used = buckets.total(s)
  if used == 0 or p.limit == 0 then return used, -1 end
  return used, buckets.freed_in(p, s, math.max(0, used - p.limit) + 1)
end

function buckets.wait(p, s)
  local excess = buckets.total(s) - (p.limit - p.cost)
  if excess <= 0 then return 0 end
  return buckets.freed_in(p, s, excess)
end

function buckets.charge(p, s)
  local current = whole(now, p.grain)
  if not s then
    s = { born = now, current = current, counts = {} }
    for index = 1, LIVE do s.counts[index] = 0 end
  end
  local used = buckets.total(s)
  if used == 0 then s.born = now end
  local cost = math.min(p.cost, p.declared)
  local displaced = math.max(0, used + cost - p.declared)
  for index = 1, LIVE do
    local taken = math.min(displaced, s.counts[index])
    s.counts[index] = s.counts[index] - taken
    displaced = displaced - taken
  end
  s.counts[LIVE] = s.counts[LIVE] + cost
  buckets.write(p, s)
  p.used, p.more = buckets.usage(p, s)
  p.entry = { current, s.born, 0, cost }
end

ALGORITHMS.b = buckets

