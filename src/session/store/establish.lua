-- First write, login, switch, rotation, credential change: one step.
-- KEYS: fresh session, cut-off of its home, current session (or the fresh one), cut-off of that home,
-- index of the user who logs in (or the fresh session).
-- ARGV from 2: '1' with a current session ('moved': it was frozen in another home, its fields end the arguments; '0'
-- without), its verifier, the new verifier, what was seen, '1' for a login, user, roles,
-- stamp and remembered (18 bytes), '1' to refuse without a live session, idle, absolute, extended (ms), limit, its
-- rule, '1' to end the others, age (ms), then the patch as `plan_patch` takes it.
-- Reply: {0, now, session, cause, {key, user, why…}}, {1, why, cause}, {3} too large, {4} no number, {5} limit,
-- {6} overtaken, {7} taken.
-- The other two steps of a move on a Cluster: KEYS: current session, its cut-off. ARGV from 2: 'freeze', then 'end' or
-- 'thaw', its verifier. Reply: {0, {field, value…}} or {1, why, cause}; {0}.
if ARGV[2] == 'freeze' then
  local s, why, cause = find_own(KEYS[1], ARGV[3], read_cut_off(KEYS[2]))
  if not s then return { 1, why, cause } end
  local fields = redis.call('HGETALL', s.key)
  redis.call('HSET', s.key, 't', struct.pack('>BI8', FROZEN, now_ms))
  return { 0, fields }
elseif ARGV[2] == 'thaw' or ARGV[2] == 'end' then
  local f = redis.call('HMGET', KEYS[1], 'h', 'i')
  if f[1] and parse(KEYS[1], f).verifier == ARGV[3] then
    if ARGV[2] == 'thaw' then
      redis.call('HDEL', KEYS[1], 't')
    else
      bury(KEYS[1], MOVED)
      if f[2] then redis.call('ZREM', f[2], KEYS[1]) end
    end
  end
  return { 0 }
end
local fresh_key, index = KEYS[1], KEYS[5]
local verifier, seen, is_login = ARGV[4], ARGV[5], ARGV[6] == '1'
local user, roles, mostly = ARGV[7], ARGV[8], ARGV[9]
local idle, absolute, extended = tonumber(ARGV[11]), tonumber(ARGV[12]), tonumber(ARGV[13])
local limit, rule, revoke_others, age = tonumber(ARGV[14]), ARGV[15], ARGV[16] == '1', tonumber(ARGV[17])
local cut_off = read_cut_off(KEYS[2])

local current, why, cause = nil, MISSING, 0
if ARGV[2] == '1' then current, why, cause = find_own(KEYS[3], ARGV[3], read_cut_off(KEYS[4])) end
if not current and ARGV[10] == '1' then return { 1, why, cause } end

if is_login then
  local forgotten = tonumber(redis.call('ZSCORE', index, '!') or nil)
  if forgotten and forgotten > now_ms and now_ms - age <= forgotten - REMEMBERED - 1 then return { 6 } end
  if cut_off and now_ms - age <= cut_off then return { 6 } end
end

local is_moved = ARGV[2] == 'moved'
if is_moved then
  local there, known = find(fresh_key, cut_off)
  if there or known ~= MISSING then return { 7 } end
  redis.call('DEL', fresh_key)
  for n = 21 + 4 * tonumber(ARGV[20]), #ARGV, 2 do redis.call('HSET', fresh_key, ARGV[n], ARGV[n + 1]) end
  redis.call('HDEL', fresh_key, 't')
  current = find(fresh_key, cut_off)
  -- Ended by everyone's cut-off meanwhile: the login begins anew.
  if not current then redis.call('DEL', fresh_key) end
  if current then current.i = nil end
end
local function refused(code)
  if is_moved then redis.call('DEL', fresh_key) end
  return { code }
end

local created = now_ms
if cut_off and cut_off + 1 > created then created = cut_off + 1 end

-- What it becomes: 0 created, 1 first, 2 again, 3 switched, 4 rotated.
local became = 0
if is_login then
  became = not (current and current.u) and 1 or (current.u == user and 2 or 3)
elseif current then
  became = 4
end
local moves = is_login and current and (is_moved or KEYS[2] ~= KEYS[4])
local s, from, is_empty = current, current and current.key, false
if not s then
  is_empty = true
  s = { key = fresh_key, previous = string.rep('\0', 32), replaced = 0, generation = 0, created = created,
    authenticated = 0, last = now_ms, absolute = now_ms + absolute, idle = idle, extended = extended,
    used = now_ms, counter = 0, keys = 0, bytes = 0, c = '\1' .. seen .. string.rep('\0', 18) }
elseif moves then
  s.previous, s.replaced = string.rep('\0', 32), 0
  s.generation = s.generation + 1
else
  s.previous, s.replaced = s.verifier, now_ms
  s.generation = s.generation + 1
  renew(s, seen)
end
s.verifier = verifier
local is_new = not current or moves
if not is_moved and (is_new or is_login and fresh_key == current.key) then
  local there, known = find(fresh_key, cut_off)
  if there or known ~= MISSING then return { 7 } end
end
local own_key = is_new and fresh_key or current.key

-- Who gives way.
local others, giving_way = {}, {}
if is_login then
  local live, newer, frozen = family(index, cut_off)
  for _, other in ipairs(live) do
    if other.key ~= own_key then others[#others + 1] = other end
  end
  if revoke_others then
    for _, other in ipairs(others) do giving_way[#giving_way + 1] = { other, 4 } end
    for _, key in ipairs(newer) do giving_way[#giving_way + 1] = { { key = key, u = '' }, 4 } end
    for _, key in ipairs(frozen) do giving_way[#giving_way + 1] = { { key = key, u = '' }, 4 } end
  elseif #others + #frozen + 1 > limit then
    if rule == 'reject' then return refused(5) end
    table.sort(others, function(a, b)
      local x, y = rule == 'oldest' and a.created or a.last, rule == 'oldest' and b.created or b.last
      if x ~= y then return x < y end
      return is_before(a.key, b.key)
    end)
    for n = 1, math.min(#others, #others + #frozen + 1 - limit) do giving_way[n] = { others[n], 3 } end
  end
end

local is_cleared = became == 3 or (current and has_data_run_out(current))
local plan, why_not = plan_patch(s, 18, is_empty or is_cleared)
if why_not == 'number' then return refused(4) end
if why_not then return refused(3) end

-- What is left of an expired session of that id.
if is_new and not is_moved then redis.call('DEL', fresh_key) end
if moves and not is_moved then
  redis.call('RENAME', from, fresh_key)
  bury(from, MOVED)
  s.key = fresh_key
end
if is_cleared then drop_data(s) end
if became == 3 then
  s.created = created
  s.c = '\1' .. string.rep('\0', 20) .. string.sub(s.c, 22)
end
if is_login then
  if current then
    s.last = math.max(s.last, now_ms)
    s.c = see(s.c, seen)
  end
  s.c = string.sub(s.c, 1, 21) .. mostly
  s.authenticated, s.absolute, s.idle, s.extended = now_ms, now_ms + absolute, idle, extended
  if s.i and s.i ~= index then redis.call('ZREM', s.i, from) end
  s.u, s.r, s.i = user, roles, index
  redis.call('HSET', s.key, 'u', user, 'r', roles, 'i', index)
end
write_patch(s, plan)
save(s)

local ended = {}
for _, gone in ipairs(giving_way) do
  ended[#ended + 1] = { gone[1].key, gone[1].u, gone[2] }
  bury(gone[1].key, gone[2])
  redis.call('ZREM', index, gone[1].key)
end
if is_login then
  redis.call('ZADD', index, s.absolute, s.key)
  if revoke_others then mark(index) end
  expire_index(index)
end
return { 0, now_ms, told(s), became, ended }
