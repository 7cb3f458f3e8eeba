-- Adds jobs, all or none.
-- KEYS and ARGV[2..7]: queue.lua. ARGV: 8 capacity, 9 of a recipient, 10 remember ms, 11 bytes of a digest, then for each
-- job 10: recipient, rank, '1' at or '0' after, ms, item, id given once or '', '1' to replace, digest or '', window ms,
-- most items.
-- Reply: {code, id, ...}: 0 new, 1 duplicate, 2 replaced, 3 joined | nil no room.
local FIRST, WIDTH = 12, 10
local count = (#ARGV - FIRST + 1) / WIDTH
local wishes = {}
local function wish(index)
  if wishes[index] then
    return wishes[index]
  end
  local at = FIRST + (index - 1) * WIDTH
  local due = tonumber(ARGV[at + 3])
  wishes[index] = {
    to = ARGV[at], rank = tonumber(ARGV[at + 1]), item = ARGV[at + 4], once = ARGV[at + 5],
    due = ARGV[at + 2] == '1' and math.max(due, now_ms) or now_ms + due,
    replaces = ARGV[at + 6] == '1', digest = ARGV[at + 7],
    window = tonumber(ARGV[at + 8]), most = tonumber(ARGV[at + 9]),
  }
  return wishes[index]
end

-- A job with a known id comes again: it takes the place of its recipient's own, never leased, with nobody else's item.
local function replaced(new, job)
  return new.replaces and job and job[TRIES] == 0 and (job[STATE] == 'b' or job[STATE] == 'c') and job[COUNT] == 1
    and job[TO] == new.to
end

-- The digest that collects under a name, as far as it counts here: number of items, their bytes.
local function collecting(name)
  local id = redis.call('HGET', DIGEST, name)
  local job = id and load(id)
  return job and now_ms < job[EXPIRES] and {items = job[COUNT], bytes = job[BYTES]}
end

-- How many numbers are drawn together: as many as there will be new jobs.
local expected = 0

-- Goes through the jobs in order as they will be added, and counts those that are none yet.
local function has_room()
  local new, of, ids, open = 0, {}, {}, {}
  for index = 1, count do
    local job = wish(index)
    local name = job.digest ~= '' and job.to .. '\0' .. job.digest
    local mate = job.once ~= '' and ids[job.once]
    local id, old
    if job.once ~= '' and not mate then
      id, old = known(job.once)
    end
    if mate then
      if job.replaces and mate.to == job.to and mate.items == 1 and open[mate.name] == mate then
        open[mate.name] = false
      end
    elseif id then
      if replaced(job, old) and old[JOINS] ~= '' then
        open[old[TO] .. '\0' .. old[JOINS]] = false
      end
    else
      local size, joins = #job.item + 32, false
      local digest = {}
      if name then
        if open[name] == nil then
          open[name] = collecting(name) or false
        end
        local held = open[name]
        if held then
          joins = held.bytes + size <= tonumber(ARGV[11])
          if joins then
            held.items, held.bytes = held.items + 1, held.bytes + size
          end
          if not joins or held.items >= job.most then
            open[name] = false
          end
        end
      end
      if not joins then
        new = new + 1
        of[job.to] = (of[job.to] or 0) + 1
        if name and job.most > 1 then
          digest = {to = job.to, name = name, items = 1, bytes = size}
          open[name] = digest
        end
      end
      if job.once ~= '' then
        ids[job.once] = digest
      end
    end
  end
  expected = new
  return fits(new, of, tonumber(ARGV[8]), tonumber(ARGV[9]))
end

local function framed(item)
  return struct.pack('>I4', #item) .. item
end

-- Adds the item to an open digest; one without room is closed and due.
local function join(new)
  local id = redis.call('HGET', DIGEST, new.to .. '\0' .. new.digest)
  if not id then
    return nil
  end
  local job = load(id)
  if not job or now_ms >= job[EXPIRES] then
    -- Dead already, and only not yet noticed: what is new must not be buried with it.
    if job then
      expire(id, job)
    end
    return nil
  end
  local size = #new.item + 32
  local has_space = job[BYTES] + size <= tonumber(ARGV[11])
  if has_space then
    redis.call('HSET', ITEMS, id, redis.call('HGET', ITEMS, id) .. framed(new.item))
    job[COUNT], job[BYTES] = job[COUNT] + 1, job[BYTES] + size
  end
  if not has_space or job[COUNT] >= new.most then
    close_digest(id, job)
    leave(id, job)
    set_due(job, math.min(now_ms, job[DUE]))
    settle_in(id, job)
  else
    redis.call('HSET', JOBS, id, cmsgpack.pack(job))
  end
  return has_space and id or nil
end

local last_number, drawn = 0, 0
local function next_number()
  if drawn == 0 then
    drawn = math.max(expected, 1)
    expected, last_number = 0, redis.call('INCRBY', LAST, drawn)
  end
  drawn = drawn - 1
  return last_number - drawn
end

-- New jobs go out together, one command per key, before anything is read that they may change.
local added = {[ITEMS] = {}, [JOBS] = {}, [EXPIRY] = {}, [READY] = {}, [DELAYED] = {}, [WHO] = {}}
local function send_added()
  for key, words in pairs(added) do
    if #words > 0 then
      redis.call((key == ITEMS or key == JOBS) and 'HSET' or 'ZADD', key, unpack(words))
      added[key] = {}
    end
  end
end

local function add(key, first, second)
  local words = added[key]
  words[#words + 1] = first
  words[#words + 1] = second
end

local function insert(new)
  local id = string.format('%016x', next_number())
  local collects = new.digest ~= '' and new.most > 1
  local job = {new.to, new.rank, 'b', 0, 0, 0, 0, '', '', '', 1, #new.item + 32}
  set_due(job, collects and new.due + new.window or new.due)
  if collects then
    job[JOINS] = new.digest
    redis.call('HSET', DIGEST, new.to .. '\0' .. new.digest, id)
  end
  job[STATE], job[PLACE] = place_of(job)
  add(ITEMS, id, framed(new.item))
  add(EXPIRY, job[EXPIRES], id)
  add(ORDER[job[STATE]], job[PLACE], id)
  add(WHO, 0, seat(id, job))
  add(JOBS, id, cmsgpack.pack(job))
  return id
end

local function again(id, job, new)
  if not replaced(new, job) then
    return 1
  end
  close_digest(id, job)
  leave(id, job)
  job[RANK], job[COUNT], job[BYTES] = new.rank, 1, #new.item + 32
  redis.call('HSET', ITEMS, id, framed(new.item))
  set_due(job, new.due)
  settle_in(id, job)
  return 2
end

local before = alarm()
if not has_room() then
  sweep()
  if not has_room() then
    return false
  end
end
local reply = {}
for index = 1, count do
  local new = wish(index)
  local code = 1
  local id, job
  if new.once ~= '' or new.digest ~= '' then
    send_added()
  end
  if new.once ~= '' then
    id, job = known(new.once)
  end
  if id then
    code = again(id, job, new)
  else
    id, code = new.digest ~= '' and join(new) or nil, 3
    if not id then
      id, code = insert(new), 0
    end
    if new.once ~= '' then
      local til = string.format('%.0f', now_ms + tonumber(ARGV[10]))
      redis.call('HSET', ONCE, new.once, id .. ' ' .. til)
      redis.call('ZADD', REMEMBER, til, new.once)
    end
  end
  reply[#reply + 1] = code
  reply[#reply + 1] = id
end
send_added()
ring(before)
return reply
