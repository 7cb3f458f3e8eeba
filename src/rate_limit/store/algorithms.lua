-- Before check, check_and_record, record and refund: the four algorithms, each rule as policy.rs has it.
-- KEYS: per policy its state and its block.
-- ARGV from 2, eight per policy: algorithm (l log, b buckets, g gcra, f fixed, m month), effective limit,
-- declared limit (gcra: burst), window in microseconds, num, den, cost, mode (e enforced, s shadow).
-- All numbers stay below 2^53, and none is divided but by whole().

local GRACE_MS = 60000   -- a key outlives what counts in it by this
local LEAD = 1000000     -- a stamp farther ahead was made before the clock went back
local HEAD = 8           -- stamps of a log that are read at once
local LIVE = 65          -- sub-buckets that can be live
local undecodable = 0

-- Quotient and remainder, exact below 2^53 (math.fmod is, the quotient of doubles is not).
local function whole(a, b)
  local rest = math.fmod(a, b)
  return (a - rest) / b, rest
end

local function rounded_up(a, b)
  local quotient, rest = whole(a, b)
  if rest > 0 then return quotient + 1 end
  return quotient
end

local function text(number) return string.format('%.0f', number) end

local function ttl(expires_at) return text(math.max(0, rounded_up(expires_at - now, 1000)) + GRACE_MS) end

local function broken(p)
  undecodable = undecodable + 1
  p.broken = true
end

-- Three whole numbers in a string; nil where nothing or nothing readable is there.
local function three(p, raw)
  if not raw then return nil end
  local a, b, c = string.match(raw, '^(%d+) (%d+) (%d+)$')
  if not a or #raw > 50 then
    broken(p)
    return nil
  end
  return tonumber(a), tonumber(b), tonumber(c)
end

-- The exact log: a list of stamps, oldest first.

local log = {}

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

-- 64 sub-buckets: one packed string of birth, newest bucket, and 65 counts up to it.

local buckets = {}
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

-- GCRA: theoretical arrival time, remainder below den, birth. Debts are in parts of 1/den microseconds.

local gcra = {}

function gcra.owe(s, debt, den)
  local quotient, rest = whole(debt, den)
  s.tat, s.rest, s.debt = now + quotient, rest, debt
end

function gcra.write(p, s)
  if s.debt == 0 then
    redis.call('DEL', p.key)
    return
  end
  local state = string.format('%.0f %.0f %.0f', s.tat, s.rest, s.born)
  redis.call('SET', p.key, state, 'PX', ttl(s.tat + 1))
end

function gcra.load(p, raw)
  local tat, rest, born = three(p, raw)
  if not tat then return nil end
  local s = { tat = tat, rest = rest, born = born, debt = 0 }
  local full, full_rest = whole(p.declared * p.num, p.den)
  if tat > now + full or (tat == now + full and rest > full_rest) then
    gcra.owe(s, p.declared * p.num, p.den)
    gcra.write(p, s)
  elseif tat >= now then
    s.debt = (tat - now) * p.den + rest
  end
  return s
end

function gcra.usage(p, s)
  local used = rounded_up(s.debt, p.num)
  if used == 0 or p.limit == 0 then return used, -1 end
  local next = (math.min(used, p.limit) - 1) * p.num
  return used, rounded_up(s.debt - next, p.den)
end

function gcra.wait(p, s)
  local room = (p.limit - p.cost) * p.num
  return rounded_up(math.max(0, s.debt - room), p.den)
end

function gcra.charge(p, s)
  s = s or { debt = 0 }
  if s.debt == 0 then s.born = now end
  local before = s.debt
  local wish = before + math.min(p.cost, p.declared) * p.num
  gcra.owe(s, math.max(before, math.min(wish, p.declared * p.num)), p.den)
  gcra.write(p, s)
  p.used, p.more = gcra.usage(p, s)
  p.entry = { s.tat, s.rest, s.born, s.debt - before }
end

-- Fixed windows and calendar months of UTC: start, used, birth.

local fixed = {}
local DAY = 86400000000

-- The proleptic Gregorian calendar in eras of 400 years from March.
local function first_day(year, month)
  if month > 2 then month = month - 3 else year, month = year - 1, month + 9 end
  local era, within = whole(year, 400)
  local days = math.floor((153 * month + 2) / 5)
  return era * 146097 + within * 365 + math.floor(within / 4) - math.floor(within / 100) + days - 719468
end

local function month_bounds()
  local era, day = whole(whole(now, DAY) + 719468, 146097)
  local within = math.floor((day - math.floor(day / 1460) + math.floor(day / 36524) - math.floor(day / 146096)) / 365)
  local of_year = day - (365 * within + math.floor(within / 4) - math.floor(within / 100))
  local year, month = era * 400 + within, math.floor((5 * of_year + 2) / 153)
  if month < 10 then month = month + 3 else year, month = year + 1, month - 9 end
  local next_year, next_month = year, month + 1
  if month == 12 then next_year, next_month = year + 1, 1 end
  return first_day(year, month) * DAY, first_day(next_year, next_month) * DAY
end

function fixed.write(p, s)
  if s.used == 0 then
    redis.call('DEL', p.key)
    return
  end
  local state = string.format('%.0f %.0f %.0f', s.start, s.used, s.born)
  redis.call('SET', p.key, state, 'PX', ttl(p.finish))
end

function fixed.load(p, raw)
  if p.algorithm == 'm' then
    p.start, p.finish = month_bounds()
  else
    p.start = now - math.fmod(now, p.window)
    p.finish = p.start + p.window
  end
  local start, used, born = three(p, raw)
  if not start or start < p.start then return nil end
  local s = { start = p.start, used = used, born = born }
  if start > p.start then fixed.write(p, s) end
  return s
end

function fixed.usage(p, s)
  if s.used == 0 or p.limit == 0 then return s.used, -1 end
  return s.used, p.finish - now
end

function fixed.wait(p, s)
  if s.used > p.limit - p.cost then return p.finish - now end
  return 0
end

function fixed.charge(p, s)
  s = s or { used = 0 }
  if s.used == 0 then s.start, s.born = p.start, now end
  local after = math.max(s.used, math.min(s.used + p.cost, p.declared))
  p.entry = { s.start, s.born, 0, after - s.used }
  s.used = after
  fixed.write(p, s)
  p.used, p.more = fixed.usage(p, s)
end

local ALGORITHMS = { l = log, b = buckets, g = gcra, f = fixed, m = fixed }

-- One decision about all policies.

local ADMITTED, DENIED, BLOCKED, NEVER = 0, 1, 2, 3

local function read_policies()
  local raw = redis.call('MGET', unpack(KEYS))
  local policies = {}
  for index = 1, #KEYS / 2 do
    local at = 2 + (index - 1) * 8
    local p = {
      key = KEYS[index * 2 - 1],
      algorithm = ARGV[at],
      limit = tonumber(ARGV[at + 1]),
      declared = tonumber(ARGV[at + 2]),
      window = tonumber(ARGV[at + 3]),
      num = tonumber(ARGV[at + 4]),
      den = tonumber(ARGV[at + 5]),
      cost = tonumber(ARGV[at + 6]),
      enforced = ARGV[at + 7] == 'e',
    }
    p.rules = ALGORITHMS[p.algorithm]
    p.state = p.rules.load(p, raw[index * 2 - 1])
    local block = raw[index * 2]
    if block then
      local ends = tonumber(block)
      if not ends then undecodable = undecodable + 1 elseif ends > now then p.blocked = ends end
    end
    policies[index] = p
  end
  return policies
end

local function decide(p)
  p.used, p.more = 0, -1
  if p.state then p.used, p.more = p.rules.usage(p, p.state) end
  p.outcome, p.retry = ADMITTED, 0
  local wait = 0
  if p.state and p.cost > 0 and p.cost <= p.limit then wait = p.rules.wait(p, p.state) end
  if p.blocked then
    -- The end of a block lets nobody in whom the quota still keeps out.
    p.outcome, p.retry = BLOCKED, math.max(p.blocked - now, wait)
  elseif p.cost > p.limit then
    p.outcome, p.retry = NEVER, -1
  elseif wait > 0 then
    p.outcome, p.retry = DENIED, wait
  end
end

local function decide_all()
  local policies, admitted = read_policies(), true
  for _, p in ipairs(policies) do
    decide(p)
    if p.enforced and p.outcome ~= ADMITTED then admitted = false end
  end
  return policies, admitted
end

-- admitted, now, undecodable; per policy outcome, used, more and retry (-1 is none), and its entry (amount 0 is none,
-- then the first number is what is left of a block).
local function reply(policies, admitted)
  local out = { admitted and 1 or 0, now, undecodable }
  for _, p in ipairs(policies) do
    local entry = p.entry or { p.blocked and p.blocked - now or 0, 0, 0, 0 }
    for _, number in ipairs({ p.outcome, p.used, p.more, p.retry, entry[1], entry[2], entry[3], entry[4] }) do
      out[#out + 1] = number
    end
  end
  return out
end

