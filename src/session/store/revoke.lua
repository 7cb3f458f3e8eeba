-- Ends sessions.
-- KEYS: index (or the asking session), asking session (or the index), cut-off; for everyone: all cut-offs.
-- ARGV from 2: 'own', 'one', 'others', 'all' or 'everyone', '1' if a session asks, its verifier, the cause, the key
-- of the one.
-- Reply: {0, {key, user, cause…}}, {1, why, cause} if the asking session is not live, {2} if it has no user, {3} if a newer
-- version wrote it: no error, since whoever gets one asks again.
local what = ARGV[2]
if what == 'everyone' then
  for _, key in ipairs(KEYS) do
    local before = read_cut_off(key) or 0
    redis.call('SET', key, math.max(before, now_ms), 'PX', 34560000000)
  end
  return { 0, {} }
end
local cut_off, index, cause = read_cut_off(KEYS[3]), KEYS[1], tonumber(ARGV[5])
local own
if ARGV[3] == '1' then
  local why, ended_by
  own, why, ended_by = find_own(KEYS[2], ARGV[4], cut_off, true)
  if why == NEWER then return { 3 } end
  if not own then return { 1, why, ended_by } end
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
for _, s in ipairs(live) do end_if_meant(s.key, s.u) end
for _, key in ipairs(newer) do end_if_meant(key, '') end
for _, key in ipairs(frozen) do end_if_meant(key, '') end
if what ~= 'one' then mark(index) end
expire_index(index)
return { 0, ended }
