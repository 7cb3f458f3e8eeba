-- Takes a lock, or says how long its holder has it. A lock is one text: its fence, its end (0: it is free), a state (0 held,
-- 1 held and waited for, 2 released, 3 released too late), and who has it or had it last, for a release that comes twice.
-- KEYS[1] lock. ARGV: 2 owner, 3 lease ms, 4 lease and keep ms, 5 '1' if the caller waits for the release.
-- Reply: fence in eight bytes | {ms left} of another's.
local kept = redis.call('GET', KEYS[1])
local fence, ends, state, owner = 0, 0, 0, ''
if kept then
  fence, ends, state, owner = struct.unpack('>I8I8Bc16', kept)
end
if now_ms < ends then
  if owner ~= ARGV[2] then
    if ARGV[5] == '1' and state == 0 then
      redis.call('SETRANGE', KEYS[1], 16, '\1')
    end
    return {string.format('%.0f', ends - now_ms)}
  end
else
  -- A fence is the server's own and only grows, also where a clock was passed.
  local engine = now
  if ARGV[1] ~= '' then
    local time = redis.call('TIME')
    engine = time[1] * 1000000 + time[2]
  end
  fence, state = math.max(fence + 1, engine), 0
end
local record = struct.pack('>I8I8B', fence, now_ms + tonumber(ARGV[3]), state) .. ARGV[2]
redis.call('SET', KEYS[1], record, 'PX', ARGV[4])
return string.sub(record, 1, 8)
