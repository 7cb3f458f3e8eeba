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
    -- The head stays for a while, over by every clock, so that the next fence rises over this one: a passed clock may
    -- stand still, and the server's be behind after a failover.
    local over = string.sub(head, 1, 76) .. string.rep('\0', 8)
    if redis.pcall('SET', KEYS[1], over, 'PX', ARGV[1] == '' and 60000 or 600000).err then
      -- A server that is full takes nothing: rather no head than a claim that stays.
      redis.call('DEL', KEYS[1])
    end
    return 1
  end
end
return 0
