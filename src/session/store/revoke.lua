-- Ends sessions.
-- KEYS: index (or the asking session), asking session (or the index), cut-off; for everyone: all cut-offs.
-- ARGV from 2: 'own', 'one', 'others', 'all' or 'everyone', '1' if a session asks, its verifier, the cause, the key
-- of the one; then '' twice, or how many ms ago this was asked for last and first, if it is made up for.
-- Reply: {0, {key, user, cause…}}, {1, why, cause, 1 if it was live when it asked} if the asking session is not live, {2}
-- if it has no user, {3} if a newer version wrote it, or the one: no error, since whoever gets one asks again.
local what, asked, first = ARGV[2], tonumber(ARGV[#ARGV - 1] or nil), tonumber(ARGV[#ARGV] or nil)
-- What is made up for ends nothing that began since it was asked for last, and believes who was live when it asked first.
asked, first = asked and now_ms - asked, first and now_ms - first
if what == 'everyone' then
  for _, key in ipairs(KEYS) do
    local before = read_cut_off(key) or 0
    redis.call('SET', key, math.max(before, asked or now_ms), 'PX', 34560000000)
  end
  return { 0, {} }
end

-- The session that asks as it lies there, ended or not; nil if nothing is left of it. And its tombstone: when, whether it
-- is frozen.
local function find_any(key)
  local f = redis.call('HMGET', key, 'h', 't', 'u', 'r', 'c', 'i')
  local s = f[1] and string.byte(f[1]) == 1 and #f[1] == HEADER_BYTES and parse(key, f) or nil
  if not f[2] then return s end
  local cause, at = struct.unpack('>BI8', f[2])
  return s, at, cause == FROZEN
end

-- Says whether a session that is not live, or has another secret, was it when this was first asked for: as far as it is
-- known when that came. A second is allowed for what the question took.
local function was_live(key, cut_off)
  local s, at, is_frozen = find_any(key)
  if s and (not at or is_frozen) then
    -- Another secret is none since it was replaced, whatever became of the session after that.
    at = math.min(s.verifier == ARGV[4] and now_ms or s.replaced or 0, ends(s))
    if cut_off and s.created <= cut_off then at = math.min(at, cut_off) end
  end
  return first and (at or 0) + 1000 >= first and 1 or 0
end

local cut_off, index, cause = read_cut_off(KEYS[3]), KEYS[1], tonumber(ARGV[5])
local own
if ARGV[3] == '1' then
  local why, ended_by
  own, why, ended_by = find_own(KEYS[2], ARGV[4], cut_off, true)
  if why == NEWER then return { 3 } end
  if what == 'own' and ended_by == FROZEN then
    -- Ended in the middle of its move, which then leaves nothing behind here; by its own secret, as ever.
    local s = find_any(KEYS[2])
    if s and s.verifier == ARGV[4] then own = s end
  end
  if not own then return { 1, why, ended_by, was_live(KEYS[2], cut_off) } end
  index = own.i
end
if what == 'own' then
  bury(own.key, cause)
  if index then redis.call('ZREM', index, own.key) end
  return { 0, { { own.key, own.u or '', cause } } }
end
if not index then return { 2 } end
local ended = {}
local function end_if_meant(key, user)
  local is_meant = what == 'all' or (what == 'one' and key == ARGV[6]) or (what == 'others' and key ~= own.key)
  if is_meant then
    ended[#ended + 1] = { key, user, cause }
    bury(key, cause)
    redis.call('ZREM', index, key)
  end
end
local live, newer, frozen = family(index, cut_off)
for _, s in ipairs(live) do
  if not asked or math.max(s.created, s.authenticated) <= asked then end_if_meant(s.key, s.u) end
end
for _, key in ipairs(newer) do
  -- Whose it is cannot be read: neither ended nor denied.
  if what == 'one' and key == ARGV[6] then return { 3 } end
  end_if_meant(key, '')
end
for _, key in ipairs(frozen) do end_if_meant(key, '') end
if what ~= 'one' then mark(index, asked) end
expire_index(index)
return { 0, ended }
