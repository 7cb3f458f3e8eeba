-- GCRA: theoretical arrival time, remainder below den, birth. Debts are in parts of 1/den microseconds.
-- a: the debt; b: birth.
if raw then
  local tat, rest, born
  if #raw == 24 then tat, rest, born = struct.unpack('>I8I8I8', raw) end
  if not tat or tat >= 2 ^ 53 or rest >= 2 ^ 53 or born >= 2 ^ 53 then
    undecodable = undecodable + 1
  else
    a, b = 0, born
    if tat >= now then a = (tat - now) * den + rest end
    -- More than there can be: the clock went back.
    if a > declared * num then a, changed = declared * num, true end
    local excess = a - (limit - cost) * num
    if asks and excess > 0 then
      rest = math.fmod(excess, den)
      wait = (excess - rest) / den
      if rest > 0 then wait = wait + 1 end
    end
  end
end
