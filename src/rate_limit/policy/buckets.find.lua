-- 64 sub-buckets: one string of birth, newest bucket and sum, and the counts of 4 bytes of the 65 buckets up to it.
-- a: the counts up to the current bucket, whatever was the newest when they were written; b: birth; c: the current
-- bucket; d: the sum. The count that begins at byte `at` is free at (c - 64 + (at + 3) / 4) * grain + window.
local grain = window / 64
c = (now - math.fmod(now, grain)) / grain
if raw then
  local last
  if #raw == 280 then b, last, d = struct.unpack('>I8I8I4', raw) end
  if not last or b >= 2 ^ 53 or last >= 2 ^ 53 then
    undecodable, d = undecodable + 1, nil
  else
    a = string.sub(raw, 21)
    if c > last then
      local gone = 4 * math.min(65, c - last)
      local at = string.find(a, '%Z')
      while at and at <= gone do
        at = at - (at - 1) % 4
        d = d - struct.unpack('>I4', a, at)
        at = string.find(a, '%Z', at + 4)
      end
      a = string.sub(a, gone + 1) .. string.rep('\0', gone)
    elseif c < last then
      -- The clock went back: what lies ahead is brought back to the current bucket.
      local ahead, sum = 4 * math.min(65, last - c), 0
      for at = math.max(1, 257 - ahead), 257, 4 do sum = sum + struct.unpack('>I4', a, at) end
      a = string.sub(string.rep('\0', ahead) .. a, 1, 256) .. struct.pack('>I4', sum)
      changed = true
    end
    local at = string.find(a, '%Z')
    local excess = d - (limit - cost)
    if asks and excess > 0 then
      while at do
        at = at - (at - 1) % 4
        excess = excess - struct.unpack('>I4', a, at)
        if excess <= 0 then
          wait = (c - 64 + (at + 3) / 4) * grain + window - now
          break
        end
        at = string.find(a, '%Z', at + 4)
      end
      -- More is said to be used than is counted: damage, and nothing would free it.
      if excess > 0 then undecodable, wait, a, d = undecodable + 1, 0, nil, nil end
    end
  end
end
