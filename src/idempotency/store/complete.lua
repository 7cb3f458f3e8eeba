-- Writes the answer of an owner, also where the record was lost.
-- KEYS[1] record. ARGV: 2 nonce, 3 ttl ms, 4 fingerprint, 5 rule, 6 state, 7 answer.
-- Reply: 1 written | 0 the record is another's.
local head = redis.call('GETRANGE', KEYS[1], 0, 83)
local ttl = tonumber(ARGV[3])
local front
if #head == 0 or (#head == 84 and string.byte(head, 1) == 1 and now_ms >= struct.unpack('>I8', head, 77)) then
  local fence = now
  if #head == 84 then
    fence = math.max(fence, struct.unpack('>I8', head, 21) + 1)
  end
  front = string.char(1, tonumber(ARGV[6]), 1, tonumber(ARGV[5])) .. ARGV[2] .. struct.pack('>I8', fence) .. ARGV[4]
    .. struct.pack('>I8I8', now_ms, now_ms)
elseif #head == 84 and string.byte(head, 1) == 1 and string.sub(head, 5, 20) == ARGV[2] then
  front = string.char(1, tonumber(ARGV[6])) .. string.sub(head, 3, 76)
else
  return 0
end
-- As long as clocks may differ its head stays, over: the next fence rises over it.
local spare = ARGV[1] == '' and 0 or 600000
redis.call('SET', KEYS[1], front .. struct.pack('>I8', now_ms + ttl) .. ARGV[7], 'PX', string.format('%.0f', math.max(60000, ttl + spare)))
return 1
