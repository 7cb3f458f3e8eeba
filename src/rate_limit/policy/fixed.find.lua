-- Fixed windows: start, used, birth.
-- a: what is used; b: birth; c and d: where the window begins and ends (a month's are worked out before).
if not c then
  c = now - math.fmod(now, window)
  d = c + window
end
if raw then
  local start, spent, born
  if #raw == 24 then start, spent, born = struct.unpack('>I8I8I8', raw) end
  if not start or start >= 2 ^ 53 or spent >= 2 ^ 53 or born >= 2 ^ 53 then
    undecodable = undecodable + 1
  elseif start >= c then
    a, b, changed = spent, born, start > c
    if asks and a > limit - cost then wait = d - now end
  end
end
