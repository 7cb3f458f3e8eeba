-- Adds a large part of jobs, all or none, in less time than it takes to put them in their places: they are kept as they came,
-- and `unfold.lua` does the rest. Until that is done nobody who would see the difference is answered (`whole.lua`).
-- None asks for a digest or to replace another, and no id is given twice.
-- KEYS and ARGV[2..7]: queue.lua. ARGV: 8 capacity, 9 of a recipient, 10 remember ms, 11 the highest rank of all, 12 recipients
-- in the order of their bytes, and how many jobs of each, 13 how many pieces; these: how many jobs, then each (unfold.lua);
-- then, if there is an id given once, for each job its id or ''.
-- Reply: as of enqueue.lua.
local capacity, each_of, remember_ms, pieces = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[13])
local FIRST, NAMES = 14, 14 + pieces
local sizes, count = {}, 0
for piece = 1, pieces do
  sizes[piece] = struct.unpack('>I2', ARGV[FIRST + piece - 1])
  count = count + sizes[piece]
end

-- The id of the job that an id given once stands for, as it was kept with it.
local function known_as(kept)
  local id = string.sub(kept, 1, 16)
  if now_ms < tonumber(string.sub(kept, 18)) then
    return id
  end
  local job = move.load(id)
  return move.lives(job) and id
end

-- Which jobs are none, by the id of the one that is there, and how many are new.
local known, new
local function look_up()
  known, new = {}, count
  for index, kept in ipairs(#ARGV >= NAMES and redis.call('HMGET', ONCE, unpack(ARGV, NAMES)) or {}) do
    known[index] = kept and known_as(kept)
    if known[index] then
      new = new - 1
    end
  end
end

-- How many are new of each recipient.
local function of()
  local index, of = 0, {}
  for piece = 1, pieces do
    local text, at = ARGV[FIRST + piece - 1], 3
    for _ = 1, sizes[piece] do
      local to, length
      to, length, at = struct.unpack('>I4c0I4', text, at + 10)
      at, index = at + length, index + 1
      at = at + 1 + string.byte(text, at)
      if not known[index] then
        of[to] = (of[to] or 0) + 1
      end
    end
  end
  return of
end

local function has_room()
  return has_room_for(new, capacity, each_of) or move.fits(new, of, capacity, each_of)
end

look_up()
if not has_room() then
  if not move.make_room() then
    return false
  end
  look_up()
  if not has_room() then
    return 0
  end
end
local number = new > 0 and redis.call('INCRBY', LAST, new) - new + 1
local reply = new == count and {string.format('%016x', number)} or {}
local kept, index = {}, 0
for piece = 1, pieces do
  -- Which are new, where not all are; their numbers are those of a row.
  local first, marks = number, {}
  if new < count then
    for at = 1, sizes[piece] do
      index = index + 1
      local id = known[index]
      marks[at] = id and '0' or '1'
      if not id then
        id, number = string.format('%016x', number), number + 1
      end
      reply[index] = (known[index] and '1' or '0') .. id
    end
  else
    number = number + sizes[piece]
  end
  if number ~= first then
    marks = table.concat(marks)
    kept[#kept + 1] = #kept / 2 + 1
    kept[#kept + 1] = struct.pack('>I8I2c0', first, #marks, marks) .. ARGV[FIRST + piece - 1]
  end
end
if new > 0 then
  local _, place = move.place_of({[RANK] = tonumber(ARGV[11]), [DUE] = now_ms})
  keep(kept, place, remember_ms, '')
end
return table.concat(reply)
