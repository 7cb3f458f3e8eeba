-- The exact log: a list of stamps, oldest first.

local log = {}
local HEAD = 8 -- stamps that are read at once

function log.at(p, s, index)
  if index < #s.head then return tonumber(s.head[index + 1]) or 0 end
  return tonumber(redis.call('LINDEX', p.key, index)) or 0
end

function log.read(p)
  local head = redis.pcall('LRANGE', p.key, 0, HEAD - 1)
  if head.err then
    broken(p)
    return nil
  end
  if #head == 0 then return nil end
  local s = { head = head, units = #head, newest = tonumber(head[#head]) }
  if #head == HEAD then
    s.units = redis.call('LLEN', p.key)
    s.newest = tonumber(redis.call('LINDEX', p.key, -1))
  end
  if not s.newest or not tonumber(head[1]) then
    broken(p)
    return nil
  end
  return s
end

function log.repair(p, units)
  local stamps = redis.call('LRANGE', p.key, 0, -1)
  for index = 1, units do
    if (tonumber(stamps[index]) or 0) > now then stamps[index] = text(now) end
  end
  redis.call('DEL', p.key)
  redis.call('RPUSH', p.key, unpack(stamps))
  redis.call('PEXPIRE', p.key, ttl(now + p.window))
end

function log.load(p, raw)
  if raw then
    broken(p)
    return nil
  end
  local s = log.read(p)
  if s and s.newest > now + LEAD then
    log.repair(p, s.units)
    s = log.read(p)
  end
  if not s then return nil end
  local live = 0
  while live < #s.head and log.at(p, s, live) + p.window <= now do live = live + 1 end
  if live == #s.head and live < s.units then
    local low, high = live, s.units
    while low < high do
      local middle = math.floor((low + high) / 2)
      if log.at(p, s, middle) + p.window <= now then low = middle + 1 else high = middle end
    end
    live = low
  end
  s.live = live
  return s
end

function log.usage(p, s)
  local used = s.units - s.live
  if used == 0 or p.limit == 0 then return used, -1 end
  local index = s.live + math.max(0, used - p.limit)
  return used, math.max(0, log.at(p, s, index) + p.window - now)
end

function log.wait(p, s)
  if s.units - s.live + p.cost <= p.limit then return 0 end
  local index = s.units - (p.limit - p.cost) - 1
  return math.max(0, log.at(p, s, index) + p.window - now)
end

function log.charge(p, s)
  if p.broken then redis.call('DEL', p.key) end
  local cost = math.min(p.cost, p.declared)
  s = s or { head = {}, units = 0, live = 0, newest = -1 }
  local stamp = math.max(now, s.newest + 1)
  local drop = s.live + math.max(0, s.units - s.live + cost - p.declared)
  local kept = s.units - drop
  p.used = kept + cost
  if p.limit > 0 then
    local index = math.max(0, p.used - p.limit)
    local first = stamp
    if index < kept then first = log.at(p, s, drop + index) end
    p.more = first + p.window - now
  end
  if drop > 0 then redis.call('LTRIM', p.key, drop, -1) end
  if cost == 1 then
    redis.call('RPUSH', p.key, text(stamp))
  else
    local stamps = {}
    for index = 1, cost do stamps[index] = text(stamp) end
    redis.call('RPUSH', p.key, unpack(stamps))
  end
  redis.call('PEXPIRE', p.key, ttl(stamp + p.window))
  p.entry = { stamp, 0, 0, cost }
end

ALGORITHMS.l = log

