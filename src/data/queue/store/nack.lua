-- Gives jobs back before the lease's end.
-- KEYS and ARGV[2..7]: queue.lua. ARGV: 8 token, then for each job 4: id, how ('0' after, '1' at, '2' dead, '3' as if never
-- leased), ms, error.
-- Reply: {1 done | 3 done and dead | 0 lost | 2 gone, ...}.
local move = moves()
local place_of, alarm, ring = move.place_of, move.alarm, move.ring
local reply, ids = {}, {}
for index = 9, #ARGV, 4 do
  ids[#ids + 1] = ARGV[index]
end
if #ids == 0 then
  return reply
end
-- What is given back moves in one command per key.
local before, kept = alarm(), redis.call('HMGET', JOBS, unpack(ids))
local seen, done, left, jobs, seats = {}, {}, {}, {}, {}
local places = {b = {}, c = {}, d = {}}

local function add(words, first, second)
  words[#words + 1], words[#words + 2] = first, second
end

for index, id in ipairs(ids) do
  local at = 9 + 4 * (index - 1)
  local how, ms = ARGV[at + 1], tonumber(ARGV[at + 2])
  local job = kept[index] and unpacked(kept[index])
  local code = seen[id] and 0 or held(job, ARGV[8])
  if code == 1 then
    seen[id], done[#done + 1], left[#left + 1] = true, id, seat(id, job)
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
      job[STATE], job[PLACE] = 'd', now_ms
    else
      job[STATE], job[PLACE] = place_of(job)
      add(seats, '0', seat(id, job))
    end
    add(places[job[STATE]], job[PLACE], id)
    add(jobs, id, packed(job))
  end
  reply[index] = code
end
send('ZREM', LEASED, done)
send('ZREM', WHO, left)
for state, words in pairs(places) do
  send('ZADD', ORDER[state], words)
end
send('ZADD', WHO, seats)
send('HSET', JOBS, jobs)
ring(before)
return reply
