-- Makes dead letters ready, with fresh attempts; all of those that are, or none for want of room.
-- KEYS and ARGV[2..7]: queue.lua. ARGV: 8 capacity, 9 of a recipient, then ids.
-- Reply: the ids of those | nil no room.
local move = moves()
local load, leave, settle_in, alarm, ring, fits = move.load, move.leave, move.settle_in, move.alarm, move.ring, move.fits
local before, jobs, ids, of = alarm(), {}, {}, {}
for index = 10, #ARGV do
  local id = ARGV[index]
  local job = not jobs[id] and load(id)
  if job and job[STATE] == 'd' then
    jobs[id] = job
    ids[#ids + 1] = id
    of[job[TO]] = (of[job[TO]] or 0) + 1
  end
end
if not fits(#ids, function() return of end, tonumber(ARGV[8]), tonumber(ARGV[9])) then
  return false
end
for _, id in ipairs(ids) do
  local job = jobs[id]
  leave(id, job)
  job[TRIES] = 0
  set_due(job, now_ms)
  settle_in(id, job)
end
ring(before)
return ids
