-- Reads a record.
-- KEYS[1] record.
-- Reply: {record, now} | nil.
local record = redis.call('GET', KEYS[1])
if not record then
  return nil
end
if #record >= 84 and string.byte(record, 1) == 1 and now_ms >= struct.unpack('>I8', record, 77) then
  return nil
end
return {record, now_ms}
