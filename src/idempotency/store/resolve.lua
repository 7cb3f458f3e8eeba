-- Ends a record by an operator's word.
-- KEYS[1] record. ARGV: 2 fence, 3 state (0: remove), 4 ttl ms, 5 answer.
-- Reply: 0 done | 1 not the record that was looked at | 2 its lease runs.
local head = redis.call('GETRANGE', KEYS[1], 0, 83)
if #head < 84 or string.byte(head, 1) ~= 1 or now_ms >= struct.unpack('>I8', head, 77)
  or struct.unpack('>I8', head, 21) ~= tonumber(ARGV[2]) then
  return 1
end
if string.byte(head, 2) == 1 and now_ms < struct.unpack('>I8', head, 69) then
  return 2
end
local state = tonumber(ARGV[3])
if state == 0 then
  leave_head(KEYS[1], head)
  return 0
end
local ttl = tonumber(ARGV[4])
-- Without its nonce the old owner cannot overwrite what the operator said.
local front = string.char(1, state) .. string.sub(head, 3, 4) .. string.rep('\0', 16) .. string.sub(head, 21, 76)
-- As long as clocks may differ its head stays, over: the next fence rises over it.
local spare = ARGV[1] == '' and 0 or 600000
redis.call('SET', KEYS[1], front .. struct.pack('>I8', now_ms + ttl) .. ARGV[5], 'PX', string.format('%.0f', math.max(60000, ttl + spare)))
return 0
