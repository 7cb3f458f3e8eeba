-- Adds a large part of jobs, all or none, that have to be gone through in order: they are kept as they came, and `follow.lua`
-- does the rest. Until that is done nobody who would see the difference is answered (`whole.lua`), and nothing is leased.
-- KEYS and ARGV[2..7]: queue.lua. ARGV: 8 capacity, 9 of a recipient, 10 remember ms, 11 bytes of a digest, 12 recipients (room.lua),
-- 13 how many jobs, 14 token of the part; then its pieces (follow.lua), the last one first.
-- Reply: '1'. Where it has room only if some of the jobs are none, it is weighed first, and may be refused yet.
local capacity, each_of, count = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[13])

local function of()
  local names, counts = recipients()
  local of = {}
  for index, name in ipairs(names) do
    of[name] = counts[index]
  end
  return of
end

local has_room = has_room_for(count, capacity, each_of) or move.fits(count, of, capacity, each_of)
local kept, pieces = {}, #ARGV - 14
for piece = 1, pieces do
  kept[2 * piece - 1], kept[2 * piece] = piece, ARGV[14 + piece]
end
local weighing = struct.pack(WEIGHING, has_room and 0 or pieces, capacity, each_of, most_attempts)
-- Before all of it is nothing: what is there may be joined or replaced.
keep(kept, -1, tonumber(ARGV[10]), struct.pack('>d', tonumber(ARGV[11])) .. ARGV[14] .. weighing)
return '1'
