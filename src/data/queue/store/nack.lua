-- Gives jobs back before the lease's end.
-- KEYS and ARGV[2..7]: queue.lua. ARGV: 8 token, then for each job 4: id, how ('0' after, '1' at, '2' dead, '3' as if never
-- leased), ms, error.
-- Reply: {1 done | 3 done and dead | 0 lost | 2 gone, ...}.
local move = moves()
local place_of, leave, enter, flush, alarm, ring = move.place_of, move.leave, move.enter, move.flush, move.alarm, move.ring
local reply, ids = {}, {}
for index = 9, #ARGV, 4 do
  ids[#ids + 1] = ARGV[index]
end
if #ids == 0 then
  return reply
end
local before, kept, seen, died = alarm(), redis.call('HMGET', JOBS, unpack(ids)), {}, 0
for index, id in ipairs(ids) do
  local at = 9 + 4 * (index - 1)
  local how, ms = ARGV[at + 1], tonumber(ARGV[at + 2])
  local job = kept[index] and unpacked(kept[index])
  local code = seen[id] and 0 or held(job, ARGV[8])
  if code == 1 then
    seen[id] = true
    leave(id, job)
    close_digest(id, job)
    if how == '3' then
      job[TRIES] = job[TRIES] - 1
    else
      job[ERROR] = ARGV[at + 3]
      if how == '2' or job[TRIES] >= most_attempts then
        code = 3
      else
        set_due(job, how == '0' and now_ms + ms or math.max(now_ms, ms))
      end
    end
    if code == 3 then
      died = died + 1
      enter(id, job, 'd', now_ms)
    else
      enter(id, job, place_of(job))
    end
  end
  reply[index] = code
end
flush()
move.make_up_for_the_dead(died)
ring(before)
return reply
