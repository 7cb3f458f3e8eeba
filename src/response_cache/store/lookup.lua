-- Looks an entry up; takes the lease if it is wanted and the entry is absent, stale or due.
-- KEYS: 1 primary, 2 entry, 3 stamps, 4 their head; on a Cluster these lie elsewhere and are read by a call of their own.
-- ARGV: 2 selector, 3 names, 4 oldest stamp allowed, 5 id held or '', 6 want (0 entry, 1 entry or lease, 2 lease),
--       7 length of the lease in microseconds, 8 its token.
-- Reply: now, highest, floor, names, state (0 none, 1 same, 2 here), head, body,
--        lease (0 unwanted, 1 granted, 2 held), microseconds held, microseconds marked, when the entry was begun, and
--        when it is due.
--        Without stamps highest and floor are 0.
local highest, floor = 0, 0
if KEYS[3] then
  local head = redis.call('ZCARD', KEYS[3]) > 0 and redis.call('GET', KEYS[4])
  local high, low = string.match(head or '', '^(%d+) (%d+)$')
  highest, floor = tonumber(high), tonumber(low)
  if not highest then
    -- The head was lost: the set has it, too.
    local stamps = redis.call('ZMSCORE', KEYS[3], 'h', 'f')
    highest, floor = tonumber(stamps[1] or nil), tonumber(stamps[2] or nil)
    if not highest or not floor then
      -- New, or lost: nothing older than this moment may be believed.
      highest, floor = now, now
      redis.call('DEL', KEYS[3])
      redis.call('ZADD', KEYS[3], now, 'h', now, 'f')
    end
    redis.call('SET', KEYS[4], string.format('%.0f %.0f', highest, floor))
  end
end
local lease_field = 'l:' .. ARGV[2]
local primary = redis.call('HMGET', KEYS[1], 'names', 'm:' .. ARGV[2], lease_field, 'v:' .. ARGV[2])
local names = primary[1] or ''
if names ~= '' and names ~= ARGV[3] then
  return {now, highest, floor, names, 0, '', '', 0, 0, 0, 0, 0}
end
local marked = math.max(0, (tonumber(primary[2] or '0') or 0) - now)
local want = tonumber(ARGV[6])
local state, head, body, due, begun, due_at = 0, '', '', true, 0, 0
if primary[4] then
  local entry
  if ARGV[5] == '' then
    entry = redis.call('HMGET', KEYS[2], 'expires', 'begun', 'due', 'id', 'head', 'body')
  else
    entry = redis.call('HMGET', KEYS[2], 'expires', 'begun', 'due', 'id')
  end
  local oldest = math.max(tonumber(ARGV[4]), floor)
  if entry[1] and entry[2] and entry[3] and tonumber(entry[1]) > now and tonumber(entry[2]) >= oldest then
    if entry[4] == ARGV[5] then
      state = 1
    else
      if not entry[5] then
        local rest = redis.call('HMGET', KEYS[2], 'head', 'body')
        entry[5], entry[6] = rest[1], rest[2]
      end
      -- A part of it may have been lost.
      if entry[5] and entry[6] then state, head, body = 2, entry[5], entry[6] end
    end
    if state > 0 then due, begun, due_at = now >= tonumber(entry[3]), entry[2], entry[3] end
  end
end
local granted, held = 0, 0
if marked == 0 and (want == 2 or (want == 1 and (state == 0 or due))) then
  local owner, until_at, waited = string.match(primary[3] or '', '^(%x+)|(%d+)(w?)$')
  if owner and tonumber(until_at) > now then
    granted, held = 2, tonumber(until_at) - now
    -- Whoever drops the lease tells those who wait for it.
    if waited == '' then redis.call('HSET', KEYS[1], lease_field, primary[3] .. 'w') end
  else
    granted = 1
    local length = tonumber(ARGV[7])
    redis.call('HSET', KEYS[1], lease_field, string.format('%s|%.0f', ARGV[8], now + length))
    local keep_ms = math.ceil(length / 1000) + 60000
    if redis.call('PTTL', KEYS[1]) < keep_ms then redis.call('PEXPIRE', KEYS[1], string.format('%.0f', keep_ms)) end
  end
end
return {now, highest, floor, ARGV[3], state, head, body, granted, held, marked, begun, due_at}
