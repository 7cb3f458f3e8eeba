-- Moves the end of a lease; zero gives it up.
-- KEYS[1] record. ARGV: 2 nonce, 3 lease ms, 4 what the lease's end means, 5 least time to keep the record in ms (0: as it is).
-- Reply: 1 done | 0 not the owner's claim.
local head = redis.call('GETRANGE', KEYS[1], 0, 83)
if #head < 84 or string.byte(head, 1) ~= 1 or string.byte(head, 2) ~= 1 or string.sub(head, 5, 20) ~= ARGV[2]
  or now_ms >= struct.unpack('>I8', head, 77) then
  return 0
end
redis.call('SETRANGE', KEYS[1], 68, struct.pack('>I8', now_ms + tonumber(ARGV[3])))
if string.byte(head, 3) ~= tonumber(ARGV[4]) then
  redis.call('SETRANGE', KEYS[1], 2, string.char(tonumber(ARGV[4])))
end
local keep = tonumber(ARGV[5])
if now_ms + keep > struct.unpack('>I8', head, 77) then
  redis.call('SETRANGE', KEYS[1], 76, struct.pack('>I8', now_ms + keep))
  local spare = ARGV[1] == '' and 0 or 600000
  redis.call('PEXPIRE', KEYS[1], string.format('%.0f', keep + spare))
end
return 1
