-- Ends sessions.
-- KEYS: index (or the asking session), asking session (or the index), cut-off; for everyone: all cut-offs.
-- ARGV from 2: 'own', 'one', 'others', 'all' or 'everyone', '1' if a session asks, its verifier, the cause, the key
-- of the one; last, '' or how many ms ago this was asked for, if it is made up for.
-- Reply: {0, {key, user, cause…}}, {1, why, cause, 1 if it was live when it asked} if the asking session is not live, {2}
-- if it has no user, {3} if a newer version wrote it: no error, since whoever gets one asks again.
local what, asked = ARGV[2], tonumber(ARGV[#ARGV] or nil)
-- What is made up for ends nothing that began since.
asked = asked and now_ms - asked
if what == 'everyone' then
  for _, key in ipairs(KEYS) do
    local before = read_cut_off(key) or 0
    redis.call('SET', key, math.max(before, asked or now_ms), 'PX', 34560000000)
  end
  return { 0, {} }
end

-- Says whether a session that is not live, or has another secret, was it when this was asked for: as far as it is known
-- when that came. A second is allowed for what the question took.
local function was_live(key, cut_off)
  local f, at = redis.call('HMGET', key, 'h', 't'), 0
  if f[2] then
    local _
    _, at = struct.unpack('>BI8', f[2])
  elseif f[1] and string.byte(f[1]) == 1 and #f[1] == HEADER_BYTES then
    local s = parse(key, f)
    at = s.replaced
    if ends(s) <= now_ms then at = ends(s) end
    if cut_off and s.created <= cut_off then at = cut_off end
  end
  return asked and at + 1000 >= asked and 1 or 0
end

local cut_off, index, cause = read_cut_off(KEYS[3]), KEYS[1], tonumber(ARGV[5])
local own
if ARGV[3] == '1' then
  local why, ended_by
  own, why, ended_by = find_own(KEYS[2], ARGV[4], cut_off, true)
  if why == NEWER then return { 3 } end
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
  if what == 'one' or not asked or math.max(s.created, s.authenticated) <= asked then end_if_meant(s.key, s.u) end
end
for _, key in ipairs(newer) do end_if_meant(key, '') end
for _, key in ipairs(frozen) do end_if_meant(key, '') end
if what ~= 'one' then mark(index, asked) end
expire_index(index)
return { 0, ended }
