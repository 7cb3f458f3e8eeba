local grain = window / 64
if charging then
  if not a then a, d = string.rep('\0', 260), 0 end
  if d == 0 then b = now end
  local units = math.min(cost, declared)
  local displaced, at = math.max(0, d + units - declared), string.find(a, '%Z')
  d = d + units - displaced
  while displaced > 0 and at do
    at = at - (at - 1) % 4
    local count = struct.unpack('>I4', a, at)
    local taken = math.min(displaced, count)
    a = string.sub(a, 1, at - 1) .. struct.pack('>I4', count - taken) .. string.sub(a, at + 4)
    displaced = displaced - taken
    at = string.find(a, '%Z', at + 4)
  end
  a = string.sub(a, 1, 256) .. struct.pack('>I4', struct.unpack('>I4', a, 257) + units)
  e1, e2, amount, changed = c, b, units, true
end
if a and d > 0 then
  used = d
  if changed then
    local newest = 257
    while newest > 1 and struct.unpack('>I4', a, newest) == 0 do newest = newest - 4 end
    state, ends = struct.pack('>I8I8I4', b, c, d) .. a, (c - 64 + (newest + 3) / 4) * grain + window
  end
  if limit > 0 then
    local units, at = math.max(0, used - limit) + 1, string.find(a, '%Z')
    more = window
    while at do
      at = at - (at - 1) % 4
      units = units - struct.unpack('>I4', a, at)
      if units <= 0 then
        more = (c - 64 + (at + 3) / 4) * grain + window - now
        break
      end
      at = string.find(a, '%Z', at + 4)
    end
  end
end
