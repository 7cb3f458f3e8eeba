-- Reads records, and gives or takes over leases where asked.
-- KEYS: 1 stamps (a sorted set: '' the group, '#' the last stamp given, '%' the last time that a key was dropped or put,
--   '!' the longest life in ms, else prefixes and tags), then record and lease of each look-up.
-- ARGV: per look-up token or '' for none, lease ms, '1' to take over, '1' also where fresh, number of prefixes, prefixes.
-- A lease is its owners, the last first, each a token and a stamp, then 'w' where somebody waits. Those it was taken over from
-- may fill still; '- 0' instead of the last is one that is free.
-- Reply: {now ms, then per look-up 0 no lease | 1 given | 2 busy, record or nil}.
local reply, at = {now_ms}, 2

local function next_stamp()
  local time = redis.call('TIME')
  local last = tonumber(redis.call('ZSCORE', KEYS[1], '#') or '0')
  local stamp = math.max(last + 1, time[1] * 1000000 + time[2])
  if not redis.call('ZSCORE', KEYS[1], '') then
    redis.call('ZADD', KEYS[1], string.format('%.0f', stamp), '')
    stamp = stamp + 1
  end
  local text = string.format('%.0f', stamp)
  redis.call('ZADD', KEYS[1], text, '#')
  if redis.call('PTTL', KEYS[1]) < 7200000 then
    redis.call('PEXPIRE', KEYS[1], 7200000)
  end
  return text
end

for place = 2, #KEYS, 2 do
  local raw, refresh = redis.call('GET', KEYS[place]), nil
  local prefixes = tonumber(ARGV[at + 4])
  if raw then
    local stamp, due, ends, length, from = string.match(raw, '^(%d+) %d+ (%d+) %d+ (%d+) (%d+) ()')
    local alive = stamp and now_ms < tonumber(ends)
    if alive then
      local own, scores = tonumber(stamp), nil
      if length == '0' then
        scores = redis.call('ZMSCORE', KEYS[1], '', unpack(ARGV, at + 5, at + 4 + prefixes))
      else
        local members = {'', unpack(ARGV, at + 5, at + 4 + prefixes)}
        -- At most 16 tags and 4 aliases; these are never raised.
        for tag in string.gmatch(string.sub(raw, from, from + tonumber(length) - 1), '%S+') do
          if string.sub(tag, 1, 1) == 't' then
            members[#members + 1] = tag
          end
        end
        scores = redis.call('ZMSCORE', KEYS[1], unpack(members))
      end
      -- Without the group's own stamp all are lost.
      alive = scores[1]
      for _, score in ipairs(scores) do
        alive = alive and not (score and tonumber(score) >= own)
      end
    end
    if not alive then
      raw = false
    end
    refresh = tonumber(due)
  end
  local leased = 0
  if ARGV[at] ~= '' and (ARGV[at + 3] == '1' or not raw or now_ms >= refresh) then
    local held = redis.call('GET', KEYS[place + 1])
    local is_free = not held or string.sub(held, 1, 4) == '- 0 '
    -- At most some thirty owners: one of them will fill, or all have died, and the lease ends.
    if not is_free and (ARGV[at + 2] ~= '1' or #held > 1200) then
      leased = 2
      if string.sub(held, -1) ~= 'w' then
        redis.call('SET', KEYS[place + 1], held .. 'w', 'KEEPTTL')
      end
    else
      leased = 1
      local others = held and ' ' .. string.sub(held, is_free and 5 or 1) or ''
      redis.call('SET', KEYS[place + 1], ARGV[at] .. ' ' .. next_stamp() .. others, 'PX', ARGV[at + 1])
    end
  end
  reply[#reply + 1] = leased
  reply[#reply + 1] = raw
  at = at + 5 + prefixes
end
return reply
