-- Makes dead letters ready, with fresh attempts; all of those that are, or none for want of room.
-- KEYS and ARGV[2..7]: queue.lua. ARGV: 8 capacity, 9 of a recipient, then ids.
-- Reply: the ids of those | nil no room.
local move = moves()
local leave, enter, place_of, flush, alarm, ring, fits = move.leave, move.enter, move.place_of, move.flush, move.alarm, move.ring, move.fits
local before, asked, jobs, ids, of = alarm(), {}, {}, {}, {}
for index = 10, #ARGV do
  asked[index - 9] = ARGV[index]
end
for index, kept in ipairs(#asked > 0 and redis.call('HMGET', JOBS, unpack(asked)) or {}) do
  local id = asked[index]
  local job = not jobs[id] and kept and unpacked(kept)
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
  enter(id, job, place_of(job))
end
flush()
ring(before)
return ids
