-- Claims a key, or says what is there.
-- KEYS[1] record. ARGV: 2 nonce, 3 fingerprint, 4 rule, 5 lease ms, 6 keep ms, 7 what the lease's end means.
-- Reply: {0, fence} run, {0, fence, 1} after another's | {1, head, now} other payload | {2, head, now} running | {3, head, now} unknown | {4, record, now} done.
local record = redis.call('GET', KEYS[1])
local fence, created, taken = now, now_ms, nil
if record then
  local version, state, at_end, rule = string.byte(record, 1, 4)
  local whole = #record >= 84 and version == 1 and state >= 1 and state <= 3 and at_end >= 1 and at_end <= 2
  if not whole then
    -- A record that cannot be read is never a miss: that would be a second run.
    return {4, record, now_ms}
  end
  local previous = struct.unpack('>I8', record, 21)
  if previous >= fence then
    fence = previous + 1
  end
  if now_ms < struct.unpack('>I8', record, 77) then
    if rule == tonumber(ARGV[4]) and string.sub(record, 29, 60) ~= ARGV[3] then
      return {1, string.sub(record, 1, 84), now_ms}
    end
    if state ~= 1 then
      return {4, record, now_ms}
    end
    if string.sub(record, 5, 20) == ARGV[2] then
      return {0, previous}
    end
    if now_ms < struct.unpack('>I8', record, 69) then
      return {2, record, now_ms}
    end
    if at_end == 2 then
      return {3, record, now_ms}
    end
    created, taken = struct.unpack('>I8', record, 61), 1
  end
end
local keep = tonumber(ARGV[6])
local head = string.char(1, 1, tonumber(ARGV[7]), tonumber(ARGV[4])) .. ARGV[2] .. struct.pack('>I8', fence) .. ARGV[3]
  .. struct.pack('>I8I8I8', created, now_ms + tonumber(ARGV[5]), now_ms + keep)
-- Under a passed clock the server's own expiry only collects garbage, and must not come first.
local spare = ARGV[1] == '' and 0 or 600000
redis.call('SET', KEYS[1], head, 'PX', string.format('%.0f', keep + spare))
return {0, fence, taken}
