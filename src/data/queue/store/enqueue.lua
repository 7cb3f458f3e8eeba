-- Adds jobs, all or none.
-- KEYS and ARGV[2..7]: queue.lua. ARGV: 8 capacity, 9 of a recipient, 10 remember ms, 11 bytes of a digest, 12 for each job
-- rank, 1 at or 0 after, ms; then for each job 2: recipient, and its item behind its length; then, if there is an id given
-- once or a digest, for each job: 1 to replace, window ms, most items; the id or '', and the digest or '', behind their lengths.
-- Reply: the first of as many ids in a row, where all are new; else for each job a code and its id, in one text: 0 new,
-- 1 duplicate, 2 replaced, 3 joined | nil no room | 0 none yet.
local alarm, ring, fits = move.alarm, move.ring, move.fits
local FIRST, WISH = 13, '>BI8I4Bc0I4c0'
local capacity, each_of = tonumber(ARGV[8]), tonumber(ARGV[9])
remember_ms, digest_bytes = tonumber(ARGV[10]), tonumber(ARGV[11])
local count = #ARGV[12] / 10

-- Whether a job is to replace another, its digest's window and most items, its id given once and its digest, or ''.
local function wish_of(index)
  return struct.unpack(WISH, ARGV[FIRST + 2 * count + index - 1])
end

-- Whether no job can meet another: none may join a digest, and no id is known or given twice. Then the ids, by job.
local function all_new()
  local onces = {}
  if #ARGV < FIRST + 2 * count then
    return onces
  end
  local names, seen = {}, {}
  for index = 1, count do
    local _, _, _, once, digest = wish_of(index)
    if digest ~= '' or seen[once] then
      return nil
    end
    if once ~= '' then
      onces[index], seen[once], names[#names + 1] = once, true, once
    end
  end
  for _, kept in ipairs(#names > 0 and redis.call('HMGET', ONCE, unpack(names)) or {}) do
    if kept then
      return nil
    end
  end
  return onces
end

local new_onces = all_new()

local function wish(index)
  local at = FIRST + 2 * (index - 1)
  local to, item, rank, due = ARGV[at], ARGV[at + 1], time_of(ARGV[12], index)
  local replaces, window, most, once, digest = wish_of(index)
  return {
    to = to, rank = rank, item = item, once = once, replaces = replaces == 1, due = due,
    name = digest ~= '' and to .. '\0' .. digest, digest = digest, window = window, most = most,
  }
end

local function has_room()
  if not new_onces then
    local counted = book()
    count_new(counted)
    return fits(counted.new, function() return counted.of end, capacity, each_of)
  end
  expected = count
  return fits(count, function()
    local of = {}
    for index = 1, count do
      local to = ARGV[FIRST + 2 * (index - 1)]
      of[to] = (of[to] or 0) + 1
    end
    return of
  end, capacity, each_of)
end

local before = alarm()
if not new_onces then
  for index = 1, count do
    wishes[index] = wish(index)
  end
  look_up()
end
if not has_room() then
  if not move.make_room() then
    return false
  end
  if not new_onces then
    look_up()
  end
  if not has_room() then
    -- There may be as much again that is over.
    return 0
  end
end
if new_onces then
  local last = redis.call('INCRBY', LAST, count)
  local first = add_new(last - count + 1, count, ARGV[12], ARGV, FIRST, new_onces, remember_ms)
  move.pay_for(new_onces)
  ring(before)
  return first
end
local reply = add_all()
ring(before)
return reply
