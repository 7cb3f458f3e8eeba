if charging then
  local units, stamp = math.min(cost, declared), math.max(now, d + 1)
  local first = b + math.max(0, c - b + units - declared)
  a = string.sub(a or '', first * 8 + 1) .. string.rep(struct.pack('>I8', stamp), units)
  b, c, d, changed, e1, amount = 0, c - first + units, stamp, true, stamp, units
end
if c > b then
  used = c - b
  if changed then state, ends = a, d + window end
  if limit > 0 then
    local first = b + math.max(0, used - limit)
    more = math.max(0, struct.unpack('>I8', a, first * 8 + 1) + window - now)
  end
end
