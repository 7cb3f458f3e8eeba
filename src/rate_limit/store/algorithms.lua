-- Before check, check_and_record, record and refund: what all algorithms share. Behind it come those that the policies
-- use, each in the file beside its twin in Rust (policy/*.lua): what a call does not need is not made for it.
-- KEYS: per policy its state and its block.
-- ARGV from 2, eight per policy: algorithm (l log, b buckets, g gcra, f fixed, m month), effective limit,
-- declared limit (gcra: burst), window in microseconds, num, den, cost, mode (e enforced, s shadow).
-- All numbers stay below 2^53, and none is divided but by whole().

local GRACE_MS = 60000   -- a key outlives what counts in it by this
local LEAD = 1000000     -- a stamp farther ahead was made before the clock went back
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

local ALGORITHMS = {}

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
      rules = ALGORITHMS[ARGV[at]],
      -- Room for what follows: a table that grows is copied.
      state = false, used = 0, more = -1, outcome = ADMITTED, retry = 0, entry = false, blocked = false,
    }
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
  if p.state then p.used, p.more = p.rules.usage(p, p.state) end
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
  for index, p in ipairs(policies) do
    local at, entry = index * 8 - 4, p.entry
    out[at], out[at + 1], out[at + 2], out[at + 3] = p.outcome, p.used, p.more, p.retry
    if entry then
      out[at + 4], out[at + 5], out[at + 6], out[at + 7] = entry[1], entry[2], entry[3], entry[4]
    else
      out[at + 4], out[at + 5], out[at + 6], out[at + 7] = p.blocked and p.blocked - now or 0, 0, 0, 0
    end
  end
  return out
end

