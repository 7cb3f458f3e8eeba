-- The exact log: stamps of 8 bytes in one string, oldest first.
-- a: the stamps; b: the first that still counts, from 0; c: how many there are; d: the newest.
b, c, d = 0, 0, -1
if raw then
  if #raw > 0 and #raw % 8 == 0 then d = struct.unpack('>I8', raw, #raw - 7) end
  if d < 0 or d >= 2 ^ 53 then
    undecodable, d = undecodable + 1, -1
  else
    a, c = raw, #raw / 8
    if d > now + LEAD then
      local first = c - 1
      while first > 0 and struct.unpack('>I8', a, first * 8 - 7) > now do first = first - 1 end
      a = string.sub(a, 1, first * 8) .. string.rep(struct.pack('>I8', now), c - first)
      d, changed = now, true
    end
    if struct.unpack('>I8', a) + window <= now then
      local high = c
      b = 1
      while b < high do
        local middle = math.floor((b + high) / 2)
        if struct.unpack('>I8', a, middle * 8 + 1) + window <= now then b = middle + 1 else high = middle end
      end
    end
    local room = limit - cost
    -- The unit that has to go first: with it and all younger ones there is one too many.
    if asks and c - b > room then wait = math.max(0, struct.unpack('>I8', a, (c - room) * 8 - 7) + window - now) end
  end
end
