-- Takes a lock, or says how long its holder has it. A hash of owner, fence, ends; waited, where somebody waits for it; and
-- last, who had it last, for a release that comes twice.
-- KEYS[1] lock. ARGV: 2 owner, 3 lease ms, 4 lease and keep ms, 5 '1' if the caller waits for the release.
-- Reply: fence | {ms left} of another's.
local lock = redis.call('HMGET', KEYS[1], 'owner', 'fence', 'ends')
local lease, fence = tonumber(ARGV[3]), tonumber(lock[2] or '0')
if lock[1] and now_ms < tonumber(lock[3]) then
  if lock[1] ~= ARGV[2] then
    if ARGV[5] == '1' then
      redis.call('HSET', KEYS[1], 'waited', '1')
    end
    return {string.format('%.0f', tonumber(lock[3]) - now_ms)}
  end
else
  -- A fence is the server's own and only grows, also where a clock was passed.
  local engine = now
  if ARGV[1] ~= '' then
    local time = redis.call('TIME')
    engine = time[1] * 1000000 + time[2]
  end
  fence = math.max(fence + 1, engine)
  if lock[2] then
    -- Of whoever had it before.
    redis.call('HDEL', KEYS[1], 'waited', 'last')
  end
end
local text = string.format('%.0f', fence)
redis.call('HSET', KEYS[1], 'owner', ARGV[2], 'fence', text, 'ends', now_ms + lease)
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return text
