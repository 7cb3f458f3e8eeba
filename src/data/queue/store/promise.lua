-- Adds a large part of jobs, all or none, that have to be gone through in order: they are kept as they came, and `follow.lua` does
-- the rest. Until that is done nobody who would see the difference is answered (`whole.lua`), and nothing is leased.
-- KEYS and ARGV[2..7]: queue.lua. ARGV: 8 capacity, 9 of a recipient, 10 remember ms, 11 bytes of a digest, 12 recipients (room.lua),
-- 13 how many jobs, 14 token of the part; then its pieces (follow.lua), the last one first.
-- Reply: '1' | nil, and nothing is kept, where it has room only if some of the jobs are none.
local capacity, each_of, count = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[13])

local function of()
  local names, counts = recipients()
  local of = {}
  for index, name in ipairs(names) do
    of[name] = counts[index]
  end
  return of
end

if not has_room_for(count, capacity, each_of) and not move.fits(count, of, capacity, each_of) then
  return false
end
local kept = {}
for piece = 1, #ARGV - 14 do
  kept[2 * piece - 1], kept[2 * piece] = piece, ARGV[14 + piece]
end
-- Before all of it is nothing: what is there may be joined or replaced.
keep(kept, -1, tonumber(ARGV[10]), struct.pack('>d', tonumber(ARGV[11])) .. ARGV[14])
return '1'
