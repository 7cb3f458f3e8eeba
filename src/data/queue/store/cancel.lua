-- Removes jobs of a recipient that are neither leased nor dead.
-- KEYS and ARGV[2..7]: queue.lua. ARGV: 8 recipient, then ids.
-- Reply: the ids of those.
local ids, seen = {}, {}
for index = 9, #ARGV do
  if not seen[ARGV[index]] then
    seen[ARGV[index]], ids[#ids + 1] = true, ARGV[index]
  end
end
-- What is removed goes in one command per key.
local gone, seats, apart = {}, {}, {}
for index, kept in ipairs(#ids > 0 and redis.call('HMGET', JOBS, unpack(ids)) or {}) do
  local job = kept and unpacked(kept)
  if job and job[TO] == ARGV[8] and (job[STATE] == 'b' or job[STATE] == 'c') then
    close_digest(ids[index], job)
    gone[#gone + 1], seats[#seats + 1] = ids[index], seat(ids[index], job)
    if job[ITEM] == '' then
      add_pages(apart, ids[index], job[COUNT], job[BYTES])
    end
  end
end
if #gone > 0 then
  redis.call('ZREM', READY, unpack(gone))
  redis.call('ZREM', DELAYED, unpack(gone))
  redis.call('ZREM', WHO, unpack(seats))
  redis.call('HDEL', JOBS, unpack(gone))
  send('HDEL', ITEMS, apart)
end
return gone
