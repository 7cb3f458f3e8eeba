-- Ends jobs for good, under the token of a lease that runs.
-- KEYS and ARGV[2..7]: queue.lua. ARGV: 8 token, then ids.
-- Reply: {1 done | 0 lost | 2 gone, ...}.
local reply, ids = {}, {}
for index = 9, #ARGV do
  ids[index - 8] = ARGV[index]
end
if #ids == 0 then
  return reply
end
-- What is done goes in one command per key.
local kept, count, done, seats, seen, apart = redis.call('HMGET', JOBS, unpack(ids)), 0, {}, {}, {}, {}
for index, id in ipairs(ids) do
  local job = not seen[id] and kept[index] and unpacked(kept[index])
  local code = held(job, ARGV[8])
  if code == 1 then
    close_digest(id, job)
    count, seen[id] = count + 1, true
    done[count], seats[count] = id, seat(id, job)
    if job[ITEM] == '' then
      add_pages(apart, id, job[COUNT], job[BYTES])
    end
  end
  reply[index] = code
end
if count > 0 then
  redis.call('ZREM', LEASED, unpack(done))
  redis.call('ZREM', WHO, unpack(seats))
  redis.call('HDEL', JOBS, unpack(done))
  send('HDEL', ITEMS, apart)
end
return reply
