-- Takes back what still counts of a receipt. KEYS as in algorithms.lua; ARGV too, but for the entry (a, b, c, amount)
-- behind each policy's window, num and den: from 2, ten per policy: algorithm, declared, window, num, den, a, b, c, amount,
-- full: where that many units were in use (0 always) the key may be known as full, and that it no longer is is published.
-- Behind them the channel, and per policy what is published. Reply: 1 if anything was given back, else 0.

local give_back = {}

function give_back.l(p, s)
  if p.a + p.window <= now then return 0 end
  local taken = redis.call('LREM', p.key, -p.amount, text(p.a))
  -- Nothing is left but what is over: a clock that goes back must not bring it to life.
  if taken > 0 and taken >= s.units - s.live then redis.call('DEL', p.key) end
  return taken
end

function give_back.b(p, s)
  if (p.a + 1) * p.grain + p.window <= now or p.a > s.current or p.b ~= s.born then return 0 end
  local place = p.a - s.current + LIVE
  local taken = math.min(s.counts[place], p.amount)
  s.counts[place] = s.counts[place] - taken
  if taken > 0 then buckets.write(p, s) end
  return taken
end

function give_back.g(p, s)
  if p.c ~= s.born or p.a < now then return 0 end
  local taken = math.min((p.a - now) * p.den + p.b, p.amount, s.debt)
  if taken > 0 then
    gcra.owe(s, s.debt - taken, p.den)
    gcra.write(p, s)
  end
  return taken
end

function give_back.f(p, s)
  local taken = math.min(s.used, p.amount)
  if p.a ~= s.start or p.b ~= s.born or taken == 0 then return 0 end
  s.used = s.used - taken
  fixed.write(p, s)
  return taken
end
give_back.m = give_back.f

local raw = redis.call('MGET', unpack(KEYS))
local applied, channel = 0, 2 + #KEYS * 10
for index = 1, #KEYS do
  local at = 2 + (index - 1) * 10
  local p = { key = KEYS[index], algorithm = ARGV[at], limit = 0 }
  for offset, name in ipairs({ 'declared', 'window', 'num', 'den', 'a', 'b', 'c', 'amount', 'full' }) do
    p[name] = tonumber(ARGV[at + offset])
  end
  local rules = ALGORITHMS[p.algorithm]
  local s = rules.load(p, raw[index])
  local used = s and rules.usage(p, s)
  if s and give_back[p.algorithm](p, s) > 0 then
    applied = 1
    if used >= p.full then redis.call('PUBLISH', ARGV[channel], ARGV[channel + index]) end
  end
end
return applied
