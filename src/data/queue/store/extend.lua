-- Moves the end of leases.
-- KEYS and ARGV[2..7]: queue.lua. ARGV: 8 token, 9 lease ms, then ids.
-- Reply: {1 done | 0 lost | 2 gone, ...}.
local reply, ids = {}, {}
for index = 10, #ARGV do
  ids[index - 9] = ARGV[index]
end
if #ids == 0 then
  return reply
end
-- What is extended moves in one command per key.
local kept, til = redis.call('HMGET', JOBS, unpack(ids)), now_ms + tonumber(ARGV[9])
local seen, left, ends, seats, jobs = {}, {}, {}, {}, {}
for index, id in ipairs(ids) do
  local job = kept[index] and unpacked(kept[index])
  reply[index] = held(job, ARGV[8])
  if reply[index] == 1 and not seen[id] then
    seen[id], left[#left + 1] = true, seat(id, job)
    job[PLACE] = til
    local at = #ends
    ends[at + 1], ends[at + 2] = til, id
    seats[at + 1], seats[at + 2] = '0', seat(id, job)
    jobs[at + 1], jobs[at + 2] = id, changes(job) .. string.sub(kept[index], REST)
  end
end
if #left > 0 then
  -- First what takes no room: a script that has written is refused nothing, also where there is none.
  redis.call('ZREM', WHO, unpack(left))
  redis.call('ZADD', LEASED, unpack(ends))
  redis.call('ZADD', WHO, unpack(seats))
  redis.call('HSET', JOBS, unpack(jobs))
end
return reply
