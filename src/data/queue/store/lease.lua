-- Leases the first ready job and more of its recipient and priority, or of a given recipient of any.
-- KEYS and ARGV[2..7]: queue.lua. ARGV: 8 token, 9 most jobs, 10 lease ms, 11 most bytes, 12 recipient or ''.
-- Reply: {now, until, next due or '', recipient, ended, died, expired, dropped, ready, delayed, leased, dead,
-- {id, rank, attempt, due, items}, ...}.
local most, bytes = tonumber(ARGV[9]), 0
local recipient = ARGV[12]

-- The ready ones of a recipient and rank, in order.
local function ready_of(to, rank)
  local start = to .. '\0b'
  return redis.call('ZRANGEBYLEX', WHO, '[' .. start .. rank, '(' .. start .. (rank + 1), 'LIMIT', 0, most)
end

local function first_of(to)
  local all = {}
  for rank = 0, 2 do
    for _, member in ipairs(ready_of(to, rank)) do
      all[#all + 1] = member
    end
  end
  table.sort(all, function(a, b) return string.sub(a, -32) < string.sub(b, -32) end)
  return all
end

-- Of the first ready job of all; those that expired are buried on the way.
local function first()
  for _ = 0, AT_ONCE do
    local id = redis.call('ZRANGE', READY, 0, 0)[1]
    if not id then
      return {}
    end
    local job = load(id)
    if not job then
      redis.call('ZREM', READY, id)
    elseif now_ms < job[EXPIRES] then
      recipient = job[TO]
      return ready_of(recipient, job[RANK])
    else
      expire(id, job)
    end
  end
  return {}
end

sweep()
local til = now_ms + tonumber(ARGV[10])
local members, ids = recipient ~= '' and first_of(recipient) or first(), {}
for index, member in ipairs(members) do
  ids[index] = string.sub(member, -16)
end
-- What is leased moves in one command per key.
local kept = #ids > 0 and redis.call('HMGET', JOBS, unpack(ids)) or {}
local count, leased, seats, ends, sits, jobs, taken = 0, {}, {}, {}, {}, {}, {}
for index, id in ipairs(ids) do
  local job = kept[index] and unpacked(kept[index])
  if not job then
    redis.call('ZREM', WHO, members[index])
  elseif now_ms >= job[EXPIRES] then
    expire(id, job)
  else
    bytes = bytes + job[BYTES]
    if count >= most or (bytes > tonumber(ARGV[11]) and count > 0) then
      break
    end
    close_digest(id, job)
    job[STATE], job[PLACE], job[TRIES], job[TOKEN] = 'a', til, job[TRIES] + 1, ARGV[8]
    local first = 2 * count + 1
    ends[first], ends[first + 1] = til, id
    sits[first], sits[first + 1] = 0, seat(id, job)
    jobs[first], jobs[first + 1] = id, packed(job)
    count = count + 1
    leased[count], seats[count], taken[count] = id, members[index], {id, job[RANK], job[TRIES], job[DUE]}
  end
end
if count > 0 then
  redis.call('ZREM', READY, unpack(leased))
  redis.call('ZREM', WHO, unpack(seats))
  redis.call('ZADD', LEASED, unpack(ends))
  redis.call('ZADD', WHO, unpack(sits))
  redis.call('HSET', JOBS, unpack(jobs))
  for index, items in ipairs(redis.call('HMGET', ITEMS, unpack(leased))) do
    taken[index][5] = items
  end
end
local ready = redis.call('ZCARD', READY)
local next_due = ''
if ready > 0 then
  next_due = now_ms
else
  local due = tonumber(redis.call('ZRANGE', DELAYED, 0, 0, 'WITHSCORES')[2])
  local ends = tonumber(redis.call('ZRANGE', LEASED, 0, 0, 'WITHSCORES')[2])
  if due or ends then
    next_due = string.format('%.0f', math.min(due or ends, ends or due))
  end
end
local reply = {now_ms, til, next_due, recipient,
  swept[1], swept[2], swept[3], swept[4],
  ready, redis.call('ZCARD', DELAYED), redis.call('ZCARD', LEASED), redis.call('ZCARD', DEAD)}
for _, job in ipairs(taken) do
  reply[#reply + 1] = job
end
return reply
