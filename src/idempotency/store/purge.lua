-- Removes answers and tombstones of one caller from a page of this server's keys; claims stay.
-- No KEYS: it goes to each node in turn. ARGV: 2 pattern of the caller's keys, 3 where the page begins.
-- Reply: {how many were removed, where the next page begins or '0' at the end}.
local page = redis.call('SCAN', ARGV[3], 'MATCH', ARGV[2], 'COUNT', 500)
local removed = 0
for _, key in ipairs(page[2]) do
  local head = redis.call('GETRANGE', key, 0, 83)
  if #head == 84 then
    local version, state = string.byte(head, 1, 2)
    if version == 1 and (state == 2 or state == 3) then
      local counts = now_ms < struct.unpack('>I8', head, 77)
      -- A head alone was left by what ended the record before.
      if counts or redis.call('STRLEN', key) > 84 then leave_head(key, head) end
      if counts then removed = removed + 1 end
    end
  end
end
return {removed, page[1]}
