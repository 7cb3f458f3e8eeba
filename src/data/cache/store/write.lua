-- Writes records with their aliases, and ends the leases they were loaded under.
-- KEYS: 1 stamps (see fetch), then record, lease and aliases of each item.
-- ARGV: 2 channel, 3 sender, then per item: token or '' for a put, refresh ms, fresh ms, life ms, tags and aliases, each
--   followed by a space, payload, name of the record's key, name of the lease's key, '1' if these differ,
--   primary key, number of aliases, number of prefixes, prefixes.
-- Reply: per item 1 stored | 0 refused.
local time = redis.call('TIME')
local engine = time[1] * 1000000 + time[2]
local reply, place, at, puts, longest = {}, 2, 4, {}, 0

-- Says whether nothing of an item was invalidated since the lease it was loaded under was given.
local function alive(at, prefixes, given)
  local members = {''}
  if ARGV[at + 8] == '1' then
    -- Whose key was not known: any that was dropped or put since may have been this one.
    members[2] = '%'
  end
  for i = at + 12, at + 11 + prefixes do
    members[#members + 1] = ARGV[i]
  end
  -- At most 16 tags and 4 aliases.
  for tag in string.gmatch(ARGV[at + 4], '%S+') do
    members[#members + 1] = tag
  end
  local scores = redis.call('ZMSCORE', KEYS[1], unpack(members))
  local good = scores[1]
  for i = 1, #members do
    good = good and not (scores[i] and tonumber(scores[i]) >= given)
  end
  return good
end

-- Ends an owner's part in a lease (see fetch): all of it, where what it loaded is stored. Returns its stamp, nil where it is
-- none, or nothing is to be stored.
local function leased(at, prefixes, lease)
  local held = redis.call('GET', lease)
  local first, last = string.find(held or '', ARGV[at] .. ' ', 1, true)
  if not first then
    return nil
  end
  local given = string.match(held, '^%d+', last + 1)
  last = last + #given
  given = ARGV[at + 3] ~= '0' and alive(at, prefixes, tonumber(given)) and tonumber(given)
  local before, behind = string.sub(held, 1, first - 1), string.sub(held, last + 1)
  before = before == '' and '- 0' or string.sub(before, 1, -2)
  local left, waited = string.match(before .. behind, '^(.-)(w?)$')
  if given or left == '- 0' then
    redis.call('DEL', lease)
  else
    redis.call('SET', lease, left, 'KEEPTTL')
  end
  if waited == 'w' then
    redis.pcall('PUBLISH', ARGV[2], ARGV[3] .. '\nf' .. ARGV[at + 7])
  end
  return given or nil
end

while at <= #ARGV do
  local aliases, prefixes, stamp = tonumber(ARGV[at + 10]), tonumber(ARGV[at + 11]), nil
  if ARGV[at] ~= '' then
    stamp = leased(at, prefixes, KEYS[place + 1])
  else
    local last = tonumber(redis.call('ZSCORE', KEYS[1], '#') or '0')
    stamp = math.max(last + 1, engine)
    if not redis.call('ZSCORE', KEYS[1], '') then
      redis.call('ZADD', KEYS[1], string.format('%.0f', stamp), '')
      stamp = stamp + 1
    end
    local text = string.format('%.0f', stamp)
    redis.call('ZADD', KEYS[1], text, '#', text, '%')
    redis.call('DEL', KEYS[place + 1])
    puts[#puts + 1] = ARGV[at + 6]
  end
  local life, tags = tonumber(ARGV[at + 3]), ARGV[at + 4]
  if life == 0 then
    -- The lease is given back, no more.
    stamp = nil
  end
  if stamp then
    local head = string.format('%.0f %.0f %.0f %.0f %.0f %d ', stamp, now_ms, now_ms + tonumber(ARGV[at + 1]),
      now_ms + tonumber(ARGV[at + 2]), now_ms + life, #tags)
    local rest = string.format('%.0f', life + 3600000)
    redis.call('SET', KEYS[place], head .. tags .. ARGV[at + 5], 'PX', rest)
    for i = 1, aliases do
      redis.call('SET', KEYS[place + 1 + i], ARGV[at + 9], 'PX', rest)
    end
    longest = math.max(longest, life)
  end
  reply[#reply + 1] = stamp and 1 or 0
  place, at = place + 2 + aliases, at + 12 + prefixes
end
if longest > 0 then
  redis.call('ZADD', KEYS[1], 'GT', string.format('%.0f', longest), '!')
  if redis.call('PTTL', KEYS[1]) < longest + 7200000 then
    redis.call('PEXPIRE', KEYS[1], string.format('%.0f', longest + 7200000))
  end
end
if #puts > 0 then
  redis.pcall('PUBLISH', ARGV[2], ARGV[3] .. '\n' .. table.concat(puts, '\n'))
end
return reply
