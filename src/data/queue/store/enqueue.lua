-- Adds jobs, all or none.
-- KEYS and ARGV[2..7]: queue.lua. ARGV: 8 capacity, 9 of a recipient, 10 remember ms, 11 bytes of a digest, 12 for each job
-- rank, 1 at or 0 after, ms; then for each job 2: recipient, and its item behind its length; then, if there is an id given
-- once or a digest, for each job: 1 to replace, window ms, most items; the id or '', and the digest or '', behind their lengths.
-- Reply: the first of as many ids in a row, where all are new; else for each job a code and its id, in one text: 0 new,
-- 1 duplicate, 2 replaced, 3 joined | nil no room.
local load, is_short, leave, place_of, settle_in, expire, sweep, alarm, ring, fits = move.load, move.is_short, move.leave, move.place_of, move.settle_in, move.expire, move.sweep, move.alarm, move.ring, move.fits
local FIRST, WISH = 13, '>BI8I4Bc0I4c0'
local capacity, each_of, remember_ms, digest_bytes = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11])
local count = #ARGV[12] / 10

-- Whether a job is to replace another, its digest's window and most items, its id given once and its digest, or ''.
local function wish_of(index)
  return struct.unpack(WISH, ARGV[FIRST + 2 * count + index - 1])
end

-- Whether no job can meet another: none may join a digest, and no id is known or given twice. Then the ids, by job.
local function all_new()
  local onces = {}
  if #ARGV < FIRST + 2 * count then
    return onces
  end
  local names, seen = {}, {}
  for index = 1, count do
    local _, _, _, once, digest = wish_of(index)
    if digest ~= '' or seen[once] then
      return nil
    end
    if once ~= '' then
      onces[index], seen[once], names[#names + 1] = once, true, once
    end
  end
  for _, kept in ipairs(#names > 0 and redis.call('HMGET', ONCE, unpack(names)) or {}) do
    if kept then
      return nil
    end
  end
  return onces
end

local new_onces = all_new()

local function wish(index)
  local at = FIRST + 2 * (index - 1)
  local to, item, rank, due = ARGV[at], ARGV[at + 1], time_of(ARGV[12], index)
  local replaces, window, most, once, digest = wish_of(index)
  return {
    to = to, rank = rank, item = item, once = once, replaces = replaces == 1, due = due,
    name = digest ~= '' and to .. '\0' .. digest, digest = digest, window = window, most = most,
  }
end

-- What is known of ids given once ({id, until}), of jobs and of open digests; false is that there is none. New jobs are
-- known here before they are kept.
local wishes, onces, jobs, digests = {}, {}, {}, {}

local function job_of(id)
  if jobs[id] == nil then
    jobs[id] = load(id) or false
  end
  return jobs[id]
end

local function digest_of(name)
  if digests[name] == nil then
    digests[name] = redis.call('HGET', DIGEST, name)
  end
  return digests[name]
end

-- Reads of all ids given once, and of their jobs, together.
local function look_up()
  onces, jobs, digests = {}, {}, {}
  local names, ids = {}, {}
  for index = 1, count do
    local once = wishes[index].once
    if once ~= '' and onces[once] == nil then
      onces[once] = false
      names[#names + 1] = once
    end
  end
  for index, kept in ipairs(#names > 0 and redis.call('HMGET', ONCE, unpack(names)) or {}) do
    if kept then
      local id, til = string.match(kept, '^(%x+) (%d+)$')
      onces[names[index]] = {id, tonumber(til)}
      ids[#ids + 1] = id
    end
  end
  for index, kept in ipairs(#ids > 0 and redis.call('HMGET', JOBS, unpack(ids)) or {}) do
    jobs[ids[index]] = kept and unpacked(kept)
  end
end

-- The job of an id that was given once, while it lives and for as long as the id is remembered.
local function known_as(once)
  local kept = onces[once]
  local job = kept and job_of(kept[1])
  if kept and ((job and job[STATE] ~= 'd') or now_ms < kept[2]) then
    return kept[1], job
  end
  return nil
end

-- A job with a known id comes again: it takes the place of its recipient's own, never leased, with nobody else's item.
local function replaced(new, job)
  return new.replaces and job and job[TRIES] == 0 and (job[STATE] == 'b' or job[STATE] == 'c') and job[COUNT] == 1
    and job[TO] == new.to
end

-- The digest that collects under a name, as far as it counts here: number of items, their bytes.
local function collecting(name)
  local id = digest_of(name)
  local job = id and job_of(id)
  return job and not is_over(job) and {items = job[COUNT], bytes = job[BYTES]}
end

-- How many numbers are drawn together: as many as there will be new jobs.
local expected = 0

-- Goes through the jobs in order as they will be added, and counts those that are none yet.
local function room_for_all()
  local new, of, ids, open = 0, {}, {}, {}
  for index = 1, count do
    local job = wishes[index]
    local name = job.name
    local mate = job.once ~= '' and ids[job.once]
    local id, old
    if job.once ~= '' and not mate then
      id, old = known_as(job.once)
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
      local size, joins = size_of(job.item), false
      local digest = {}
      if name then
        if open[name] == nil then
          open[name] = collecting(name) or false
        end
        local held = open[name]
        if held then
          joins = held.bytes + size <= digest_bytes
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
  return fits(new, function() return of end, capacity, each_of)
end

local function has_room()
  if not new_onces then
    return room_for_all()
  end
  expected = count
  return fits(count, function()
    local of = {}
    for index = 1, count do
      local to = ARGV[FIRST + 2 * (index - 1)]
      of[to] = (of[to] or 0) + 1
    end
    return of
  end, capacity, each_of)
end

local last_number, drawn = 0, 0
local function next_id()
  if drawn == 0 then
    drawn = math.max(expected, 1)
    expected, last_number = 0, redis.call('INCRBY', LAST, drawn)
  end
  drawn = drawn - 1
  return string.format('%016x', last_number - drawn)
end

-- New jobs go out together at the end, one command per key: nobody sees them before. What is done to them until then is
-- done here alone. Of digests that were there, the items that joined.
local fresh, items_of, place_in, joined = {}, {}, {}, {}

local function insert(to, rank, due, item, joins)
  local id = next_id()
  local job = {to, rank, 'b', 0, due, due + expire_ms, 0, NOBODY, joins, '', 1, size_of(item), ''}
  local at = #fresh + 1
  fresh[at], items_of[at], place_in[id], jobs[id] = id, item, at, job
  if joins ~= '' then
    digests[to .. '\0' .. joins] = id
  end
  return id
end

local function whole(items)
  return type(items) == 'table' and table.concat(items) or items
end

local function send_fresh()
  local apart, kept, ready, delayed, seats, names = {}, {}, {}, {}, {}, {}
  for index, id in ipairs(fresh) do
    local job, first, items = jobs[id], 2 * index - 1, whole(items_of[index])
    if is_short(job, items) then
      job[ITEM] = items
    else
      apart[#apart + 1], apart[#apart + 2] = id, items
    end
    job[STATE], job[PLACE] = place_of(job)
    kept[first], kept[first + 1] = id, packed(job)
    seats[first], seats[first + 1] = '0', seat(id, job)
    local order = job[STATE] == 'b' and ready or delayed
    -- The seat's text of it is a number, too.
    order[#order + 1], order[#order + 2] = place_text, id
    if job[JOINS] ~= '' then
      names[#names + 1], names[#names + 2] = job[TO] .. '\0' .. job[JOINS], id
    end
  end
  send('HSET', ITEMS, apart)
  send('HSET', JOBS, kept)
  send('ZADD', READY, ready)
  send('ZADD', DELAYED, delayed)
  send('ZADD', WHO, seats)
  send('HSET', DIGEST, names)
  fresh, items_of, place_in = {}, {}, {}
end

local function send_joined(id)
  if joined[id] then
    redis.call('HSET', ITEMS, id, (redis.call('HGET', ITEMS, id) or '') .. table.concat(joined[id]))
    redis.call('HSET', JOBS, id, packed(jobs[id]))
    joined[id] = nil
  end
end

-- A digest without room is closed and due.
local function close(id, job, name)
  digests[name] = false
  if place_in[id] then
    job[JOINS] = ''
    set_due(job, math.min(now_ms, job[DUE]))
    return
  end
  send_joined(id)
  close_digest(id, job)
  leave(id, job)
  set_due(job, math.min(now_ms, job[DUE]))
  settle_in(id, job)
end

-- Adds the item to an open digest.
local function join(new)
  local id = digest_of(new.name)
  local job = id and job_of(id)
  if not job then
    return nil
  end
  if is_over(job) then
    -- Dead already, and only not yet noticed: what is new must not be buried with it.
    send_fresh()
    expire(id, job)
    digests[new.name] = false
    return nil
  end
  local size = size_of(new.item)
  local has_space = job[BYTES] + size <= digest_bytes
  if has_space then
    local at = place_in[id]
    if at then
      items_of[at] = type(items_of[at]) == 'table' and items_of[at] or {items_of[at]}
    else
      joined[id] = joined[id] or {}
    end
    local items = at and items_of[at] or joined[id]
    items[#items + 1] = new.item
    job[COUNT], job[BYTES] = job[COUNT] + 1, job[BYTES] + size
  end
  if not has_space or job[COUNT] >= new.most then
    close(id, job, new.name)
  end
  return has_space and id or nil
end

local function again(id, job, new)
  if not replaced(new, job) then
    return 1
  end
  if place_in[id] then
    send_fresh()
  end
  if job[JOINS] ~= '' then
    digests[job[TO] .. '\0' .. job[JOINS]] = false
  end
  close_digest(id, job)
  leave(id, job)
  local was_apart = job[ITEM] == ''
  job[RANK], job[COUNT], job[BYTES], job[ITEM] = new.rank, 1, size_of(new.item), ''
  set_due(job, new.due)
  if is_short(job, new.item) then
    job[ITEM] = new.item
    if was_apart then
      redis.call('HDEL', ITEMS, id)
    end
  else
    redis.call('HSET', ITEMS, id, new.item)
  end
  settle_in(id, job)
  return 2
end

local given, remembered = {}, {}
local function add(new)
  if new.once ~= '' then
    local id, job = known_as(new.once)
    if id then
      return again(id, job, new) .. id
    end
  end
  local id, code = new.name and join(new), '3'
  if not id then
    local collects = new.name and new.most > 1
    code = '0'
    id = insert(new.to, new.rank, collects and new.due + new.window or new.due, new.item, collects and new.digest or '')
  end
  if new.once ~= '' then
    local til = now_ms + remember_ms
    local text = string.format('%.0f', til)
    onces[new.once] = {id, til}
    given[#given + 1], given[#given + 2] = new.once, id .. ' ' .. text
    remembered[#remembered + 1], remembered[#remembered + 2] = text, new.once
  end
  return code .. id
end

local before = alarm()
if not new_onces then
  for index = 1, count do
    wishes[index] = wish(index)
  end
  look_up()
end
if not has_room() then
  sweep()
  if not new_onces then
    look_up()
  end
  if not has_room() then
    return false
  end
end
if new_onces then
  local last = redis.call('INCRBY', LAST, count)
  local first = add_new(last - count + 1, count, ARGV[12], ARGV, FIRST, new_onces, remember_ms)
  move.pay_for(new_onces)
  ring(before)
  return first
end
local reply = {}
for index = 1, count do
  reply[index] = add(wishes[index])
end
send_fresh()
for id in pairs(joined) do
  send_joined(id)
end
send('HSET', ONCE, given)
send('ZADD', REMEMBER, remembered)
local brought = {}
for at = 1, #given, 2 do
  brought[#brought + 1] = given[at]
end
move.pay_for(brought)
ring(before)
return table.concat(reply)
