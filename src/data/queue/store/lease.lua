-- Leases the first ready job and more of its recipient and priority, or of a given recipient of any.
-- KEYS and ARGV[2..7]: queue.lua. ARGV: 8 token, 9 most jobs, 10 lease ms, 11 most bytes, 12 recipient or ''.
-- Reply: {now, until, next due or '', recipient, ended, died, expired, dropped, ready or -1 untold, delayed, leased, dead,
-- {id, rank, attempt, due, items or pages of them}, ...} | 0 first a part has to be put in its place (whole.lua).
-- While there is a part it leases what has a place before all of it: at the same place stand those of it that are there already.
local head, lowest = redis.call('HGET', PART, 'head'), math.huge
if head then
  local first = redis.call('ZRANGE', READY, 0, 0, 'WITHSCORES')
  lowest = struct.unpack(HEAD, head)
  if ARGV[12] ~= '' or not first[1] or tonumber(first[2]) >= lowest then
    return 0
  end
end
local most, bytes, to = tonumber(ARGV[9]), 0, ARGV[12]
local move
local function moved()
  move = move or moves()
  return move
end

-- The ready ones of a recipient and rank, in order.
local function ready_of(rank)
  local start = to .. '\0b'
  return redis.call('ZRANGEBYLEX', WHO, '[' .. start .. rank, '(' .. start .. (rank + 1), 'LIMIT', 0, most)
end

local function ready_of_all()
  local all = {}
  for rank = 0, 2 do
    for _, member in ipairs(ready_of(rank)) do
      all[#all + 1] = member
    end
  end
  table.sort(all, function(a, b) return string.sub(a, -32) < string.sub(b, -32) end)
  return {unpack(all, 1, math.min(#all, most))}
end

-- Leases of a recipient that ended, and what is due of it: many of others may come before it.
local function over_of(state)
  local ids, start, til = {}, to .. '\0' .. state, string.format('%016.0f', now_ms) .. '\255'
  for rank = 0, 2 do
    for _, member in ipairs(redis.call('ZRANGEBYLEX', WHO, '[' .. start .. rank, '[' .. start .. rank .. til, 'LIMIT', 0, most)) do
      ids[#ids + 1] = string.sub(member, -16)
    end
  end
  return {unpack(ids, 1, math.min(#ids, most))}
end

-- Of the first ready job of all; those that expired are buried on the way, and fewer leased.
local function first()
  for look = 0, 1 do
    local id = redis.call('ZRANGE', READY, 0, 0)[1]
    local kept = id and redis.call('HGET', JOBS, id)
    local job = kept and unpacked(kept)
    if job and not is_over(job) then
      if job[PLACE] >= lowest then
        return {}
      end
      to = job[TO]
      return ready_of(job[RANK])
    elseif id and look == 0 then
      moved().bury_over(redis.call('ZRANGE', READY, 0, MOVED_AT_ONCE - 1))
      most = math.min(most, 25)
    end
  end
  return {}
end

-- The more it leases, the fewer it moves.
local budget = math.max(MOVED_AT_ONCE - math.floor(most / 2), 25)
if to ~= '' then
  local ended, due = over_of('a'), over_of('c')
  if #ended + #due > 0 then
    moved().settle(ended, due)
  end
end
local ended, due_now = all_over(budget)
if #ended + #due_now > 0 then
  moved().settle(ended, due_now)
end
-- One time in eight, by the token, which is random: 100 ids then are more than eight leases of a dozen
-- leave behind, and larger ones see to it themselves. Each time by a clock that was passed, so that what happens is
-- certain; and for a recipient, of whose jobs not the oldest come first: what is over must not take their places.
local now_and_then = string.byte(ARGV[8]) % 8 == 0 or most > 12 or ARGV[1] ~= '' or to ~= ''
if now_and_then then
  moved().tidy(budget - #ended - #due_now)
end
local til = now_ms + tonumber(ARGV[10])
local members, ids = to ~= '' and ready_of_all() or first(), {}
for index, member in ipairs(members) do
  if head and tonumber(string.sub(member, -32, -17)) >= lowest then
    break
  end
  ids[index] = string.sub(member, -16)
end
-- What is leased moves in one command per key.
local kept = #ids > 0 and redis.call('HMGET', JOBS, unpack(ids)) or {}
local expired, count, leased, seats, ends, sits, jobs, taken, apart, owners = {}, 0, {}, {}, {}, {}, {}, {}, {}, {}
local sits_of, sits_at = to .. '\0a', string.format('%016.0f', til)
for index, id in ipairs(ids) do
  local text = kept[index]
  if not text then
    redis.call('ZREM', WHO, members[index])
  else
    -- Without a table for each.
    local _, rank, tries, due, expires, _, _, number, size, _, joins, _, rest = struct.unpack(RECORD, text)
    if now_ms >= expires then
      expired[#expired + 1] = id
    else
      bytes = bytes + size
      if count >= most or (bytes > tonumber(ARGV[11]) and count > 0) then
        break
      end
      local change = struct.pack(CHANGES, 'a', rank, tries + 1, due, expires, til, ARGV[8])
      if joins == '' then
        text = change .. string.sub(text, REST)
      else
        local job = unpacked(text)
        close_digest(id, job)
        text = change .. string.sub(packed(job), REST)
      end
      local at, items = 2 * count + 1, string.sub(text, rest - #joins)
      ends[at], ends[at + 1] = til, id
      sits[at], sits[at + 1] = 0, sits_of .. rank .. sits_at .. id
      jobs[at], jobs[at + 1] = id, text
      count = count + 1
      leased[count], seats[count], taken[count] = id, members[index], {id, rank, tries + 1, due, items}
      if items == '' then
        add_pages(apart, id, number, size)
        while #owners < #apart do
          owners[#owners + 1] = taken[count]
        end
        taken[count][5] = {}
      end
    end
  end
end
if #expired > 0 then
  moved().bury_over(expired)
end
if move then
  move.make_up_for_the_dead(move.buried())
end
if count > 0 then
  redis.call('ZREM', READY, unpack(leased))
  redis.call('ZREM', WHO, unpack(seats))
  redis.call('ZADD', LEASED, unpack(ends))
  redis.call('ZADD', WHO, unpack(sits))
  redis.call('HSET', JOBS, unpack(jobs))
  for index, items in ipairs(#apart > 0 and redis.call('HMGET', ITEMS, unpack(apart)) or {}) do
    local pages = owners[index][5]
    pages[#pages + 1] = items or nil
  end
end
-- Where something was leased, or a part is there, there may be more: whoever has a place for it asks again.
local next_due, counts = now_ms, {-1, 0, 0, 0}
if (count == 0 or now_and_then) and not head then
  counts = {redis.call('ZCARD', READY), redis.call('ZCARD', DELAYED), redis.call('ZCARD', LEASED), redis.call('ZCARD', DEAD)}
end
if count == 0 and counts[1] == 0 then
  local due = tonumber(redis.call('ZRANGE', DELAYED, 0, 0, 'WITHSCORES')[2])
  local ends = tonumber(redis.call('ZRANGE', LEASED, 0, 0, 'WITHSCORES')[2])
  next_due = (due or ends) and string.format('%.0f', math.min(due or ends, ends or due)) or ''
end
local reply = {now_ms, til, next_due, to, swept[1], swept[2], swept[3], swept[4], unpack(counts)}
for _, job in ipairs(taken) do
  reply[#reply + 1] = job
end
return reply
