local before = a or 0
if charging then
  if before == 0 then b = now end
  a = math.max(before, math.min(before + math.min(cost, declared) * num, declared * num))
  changed = true
end
if a and a > 0 then
  local rest = math.fmod(a, num)
  used = (a - rest) / num
  if rest > 0 then used = used + 1 end
  if changed then
    rest = math.fmod(a, den)
    local tat = now + (a - rest) / den
    state, ends = struct.pack('>I8I8I8', tat, rest, b), tat + 1
    if charging then e1, e2, e3, amount = tat, rest, b, a - before end
  end
  if limit > 0 then
    local owed = a - (math.min(used, limit) - 1) * num
    rest = math.fmod(owed, den)
    more = (owed - rest) / den
    if rest > 0 then more = more + 1 end
  end
end
