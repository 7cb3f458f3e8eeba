-- Removes an owner's claim.
-- KEYS[1] record. ARGV: 2 nonce.
-- Reply: 1 there is no claim any more | 0 the record is another's, or an answer.
local head = redis.call('GETRANGE', KEYS[1], 0, 83)
if #head == 0 then
  return 1
end
if #head == 84 and string.byte(head, 1) == 1 then
  if now_ms >= struct.unpack('>I8', head, 77) then
    return 1
  end
  if string.byte(head, 2) == 1 and string.sub(head, 5, 20) == ARGV[2] then
    leave_head(KEYS[1], head)
    return 1
  end
end
return 0
