-- Before those scripts of a queue that keep a part of jobs as it came (`commit.lua`, `promise.lua`): whether it has room for
-- sure. ARGV[12]: recipients in the order of their bytes, and how many jobs of each.
local move = moves()

local function recipients()
  local names, counts, at = {}, {}, 1
  while at <= #ARGV[12] do
    local index = #names + 1
    names[index], counts[index], at = struct.unpack('>I4c0I2', ARGV[12], at)
  end
  return names, counts
end

-- Whether all recipients of a row have room for sure: one count of all that lies between the first and the last is cheaper
-- than one for each, and mostly small enough.
local function have_room(names, most, from, til, each)
  if redis.call('ZLEXCOUNT', WHO, '[' .. names[from] .. '\0', '(' .. names[til] .. '\1') + most <= each then
    return true
  end
  local middle = math.floor((from + til) / 2)
  return from < til and have_room(names, most, from, middle, each) and have_room(names, most, middle + 1, til, each)
end

-- Whether `new` jobs have room, of each recipient as many as there are at all.
local function has_room_for(new, capacity, each)
  local all = move.waiting() + new
  if new == 0 or all <= math.min(capacity, each) then
    return true
  end
  local names, counts = recipients()
  return all <= capacity and have_room(names, math.max(unpack(counts)), 1, #names, each)
end

-- Keeps the pieces; `place` is before all of it, `more` what they are added by besides.
local function keep(pieces, place, remember_ms, more)
  local before = move.alarm()
  pieces[#pieces + 1] = 'head'
  pieces[#pieces + 1] = struct.pack(HEAD, place, now_ms, expire_ms, aging, remember_ms, before[1] and 1 or 0, before[2] or -1) .. more
  redis.call('HSET', PART, unpack(pieces))
  if not before[1] then
    -- Whoever wakes puts it in its place, should its caller have left.
    redis.pcall('PUBLISH', ARGV[2], '')
  end
end
