-- Gives jobs back before the lease's end.
-- KEYS and ARGV[2..7]: queue.lua. ARGV: 8 token, then for each job 4: id, how ('0' after, '1' at, '2' dead, '3' as if never
-- leased), ms, error.
-- Reply: {1 done | 3 done and dead | 0 lost | 2 gone, ...}.
local before, reply = alarm(), {}
for index = 9, #ARGV, 4 do
  local id, how, ms = ARGV[index], ARGV[index + 1], tonumber(ARGV[index + 2])
  local job = load(id)
  local code = held(job, ARGV[8])
  if code == 1 then
    if how == '3' then
      leave(id, job)
      job[TRIES] = job[TRIES] - 1
      settle_in(id, job)
    else
      job[ERROR] = ARGV[index + 3]
      if how == '2' or job[TRIES] >= most_attempts then
        bury(id, job, '')
        code = 3
      else
        leave(id, job)
        set_due(job, how == '0' and now_ms + ms or math.max(now_ms, ms))
        settle_in(id, job)
      end
    end
  end
  reply[#reply + 1] = code
end
ring(before)
return reply
