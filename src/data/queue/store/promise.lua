-- Adds a large part of jobs, all or none, that have to be gone through in order: they are kept as they came, and `follow.lua`
-- does the rest. Until that is done nobody who would see the difference is answered (`whole.lua`), and nothing is leased.
-- KEYS and ARGV[2..7]: queue.lua. KEYS: 15 the pieces, where they were put aside (stage.lua). ARGV: 8 capacity, 9 of a recipient, 10 remember ms, 11 bytes of a digest, 12 recipients (room.lua),
-- 13 how many jobs, 14 token of the part, 15 how many pieces; then these (follow.lua), the last one first, if they were not put aside.
-- Reply: '1' | nil what was put aside is gone, and nothing is kept. Where it has room only if some of the jobs are none, it is weighed first, and may be refused yet.
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
local kept, pieces = {}, tonumber(ARGV[15])
for piece = 1, #ARGV - 15 do
  kept[2 * piece - 1], kept[2 * piece] = piece, ARGV[15 + piece]
end
if #kept == 0 then
  if redis.call('HLEN', KEYS[15]) ~= pieces then
    return false
  end
  redis.call('RENAME', KEYS[15], PART)
  redis.call('PERSIST', PART)
end
local weighing = struct.pack(WEIGHING, has_room and 0 or pieces, capacity, each_of, most_attempts)
-- Before all of it is nothing: what is there may be joined or replaced.
keep(kept, -1, tonumber(ARGV[10]), struct.pack('>d', tonumber(ARGV[11])) .. ARGV[14] .. weighing)
return '1'
