local before = a or 0
if charging then
  if before == 0 then b = now end
  a = math.max(before, math.min(before + cost, declared))
  e1, e2, amount, changed = c, b, a - before, true
end
if a and a > 0 then
  used = a
  if changed then state, ends = struct.pack('>I8I8I8', c, a, b), d end
  if limit > 0 then more = d - now end
end
