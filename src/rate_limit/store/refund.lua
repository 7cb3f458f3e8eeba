-- Takes back what still counts of a receipt. The blocks, and the numbers of a policy: see policy/decide.lua; its limit here is how
-- many units were in use where the key may be known as full (0: always), its cost is 0.
-- KEYS: per part its state. ARGV from 2, two per part: the policy's numbers, the entry (four numbers). Behind them the
-- channel, and per part what is published there where the key may be known as full and no longer is.
-- Reply: 1 if anything was given back, else 0.
local LOG, BUCKETS, GCRA, LEAD = 1, 2, 3, 1000000
local count, raws = #KEYS, redis.call('MGET', unpack(KEYS))
local applied, undecodable, channel, charging = 0, 0, 2 + #KEYS * 2, false
for index = 1, count do
  local key, raw = KEYS[index], raws[index]
  local algorithm, mode, full, declared, window, num, den, cost = struct.unpack('>BBI4I4I8I8I8I4', ARGV[index * 2])
  local e1, e2, e3, amount = struct.unpack('>I8I8I8I8', ARGV[index * 2 + 1])
  local limit, asks, wait, changed, a, b, c, d = 0, false, 0, false, nil, nil, nil, nil
  --> find
  local in_use, taken = 0, 0
  if a then
    if algorithm == LOG then
      in_use = c - b
      -- Its units lie together, and nothing younger than they is older than they: they are looked for from the young end.
      local last = c
      while last > b and struct.unpack('>I8', a, last * 8 - 7) > e1 do last = last - 1 end
      local first = last
      while first > b and last - first < amount and struct.unpack('>I8', a, first * 8 - 7) == e1 do first = first - 1 end
      if e1 + window > now then taken = last - first end
      if taken > 0 then
        a, c = string.sub(a, 1, first * 8) .. string.sub(a, last * 8 + 1), c - taken
        if c > 0 then d = struct.unpack('>I8', a, c * 8 - 7) end
      end
    elseif algorithm == BUCKETS then
      in_use = d
      if (e1 + 1) * (window / 64) + window > now and e1 <= c and e2 == b then
        local at = (e1 - c + 65) * 4 - 3
        local there = struct.unpack('>I4', a, at)
        taken = math.min(there, amount)
        a = string.sub(a, 1, at - 1) .. struct.pack('>I4', there - taken) .. string.sub(a, at + 4)
        d = d - taken
      end
    elseif algorithm == GCRA then
      in_use = math.ceil(a / num)
      if e3 == b and e1 >= now then
        taken = math.min((e1 - now) * den + e2, amount, a)
        a = a - taken
      end
    else
      in_use = a
      if e1 == c and e2 == b then
        taken = math.min(a, amount)
        a = a - taken
      end
    end
  end
  if taken > 0 then
    applied, changed = 1, true
    if in_use >= full then redis.pcall('PUBLISH', ARGV[channel], ARGV[channel + index]) end
  end
  local used, more, state, ends = 0, -1, false, 0
  --> settle
  --> write
end
return applied
