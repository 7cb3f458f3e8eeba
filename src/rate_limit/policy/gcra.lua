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

ALGORITHMS.g = gcra

