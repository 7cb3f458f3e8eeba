-- Before those scripts of a queue that go through jobs in order, since what becomes of each depends on those before: ids that
-- are known or given twice, replacements, digests.
local load, is_short, leave, place_of, settle_in, expire = move.load, move.is_short, move.leave, move.place_of, move.settle_in, move.expire

-- What is known of ids given once ({id, until}), of jobs and of open digests; false is that there is none. New jobs are
-- known here before they are kept.
local wishes, onces, jobs, digests = {}, {}, {}, {}
local remember_ms, digest_bytes

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

-- Reads of all ids given once, of all digests, and of their jobs, together.
local function look_up()
  onces, jobs, digests = {}, {}, {}
  local names, open, ids = {}, {}, {}
  for index = 1, #wishes do
    local once, name = wishes[index].once, wishes[index].name
    if once ~= '' and onces[once] == nil then
      onces[once] = false
      names[#names + 1] = once
    end
    if name and digests[name] == nil then
      digests[name] = false
      open[#open + 1] = name
    end
  end
  for index, kept in ipairs(#names > 0 and redis.call('HMGET', ONCE, unpack(names)) or {}) do
    if kept then
      local id, til = string.match(kept, '^(%x+) (%d+)$')
      onces[names[index]] = {id, tonumber(til)}
      ids[#ids + 1] = id
    end
  end
  for index, id in ipairs(#open > 0 and redis.call('HMGET', DIGEST, unpack(open)) or {}) do
    if id then
      digests[open[index]] = id
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
  if kept and (move.lives(job) or now_ms < kept[2]) then
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
  return job and not is_over(job) and {items = job[COUNT], bytes = job[BYTES], number = 0}
end

-- How many numbers are drawn together: as many as there will be new jobs.
local expected = 0

-- What was counted: new jobs, in all and of each recipient; by id given once the digest that its job opened, or nothing; by
-- name the digest that is open then, or false. Digests that are opened have numbers from 1.
local function book()
  return {new = 0, of = {}, ids = {}, open = {}, opened = 0}
end

-- Goes through the jobs in order as they will be added, and counts in `counted` those that are none yet.
local function count_new(counted)
  local of, ids, open = counted.of, counted.ids, counted.open
  local before = counted.new
  for index = 1, #wishes do
    local job = wishes[index]
    local name = job.name
    local mate = job.once ~= '' and ids[job.once]
    local id, old
    if job.once ~= '' and not mate then
      id, old = known_as(job.once)
    end
    if mate then
      local digest = mate.name and open[mate.name]
      if job.replaces and mate.to == job.to and digest and digest.number == mate.number and digest.items == 1 then
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
        counted.new = counted.new + 1
        of[job.to] = (of[job.to] or 0) + 1
        if name and job.most > 1 then
          counted.opened = counted.opened + 1
          digest = {to = job.to, name = name, number = counted.opened}
          open[name] = {items = 1, bytes = size, number = counted.opened}
        end
      end
      if job.once ~= '' then
        ids[job.once] = digest
      end
    end
  end
  expected = counted.new - before
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

-- What joins a digest in one call begins together.
local function send_joined()
  local fields, items, words = {}, {}, {}
  for id, new in pairs(joined) do
    fields[#fields + 1], items[#items + 1] = new.page, table.concat(new)
    words[#words + 1], words[#words + 2] = id, packed(jobs[id])
  end
  local pages = {}
  for index, kept in ipairs(#fields > 0 and redis.call('HMGET', ITEMS, unpack(fields)) or {}) do
    pages[2 * index - 1], pages[2 * index] = fields[index], (kept or '') .. items[index]
  end
  send('HSET', ITEMS, pages)
  send('HSET', JOBS, words)
  joined = {}
end

-- A digest without room is closed and due.
local function close(id, job, name)
  digests[name] = false
  if place_in[id] then
    job[JOINS] = ''
    set_due(job, math.min(now_ms, job[DUE]))
    return
  end
  send_joined()
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
      joined[id] = joined[id] or {page = page_at(id, job[BYTES])}
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

-- Adds all that is wished, in order. Returns a code and an id for each, in one text.
local function add_all()
  local reply = {}
  for index, new in ipairs(wishes) do
    reply[index] = add(new)
  end
  move.flush()
  send_fresh()
  send_joined()
  send('HSET', ONCE, given)
  send('ZADD', REMEMBER, remembered)
  local brought = {}
  for at = 1, #given, 2 do
    brought[#brought + 1] = given[at]
  end
  move.pay_for(brought)
  return table.concat(reply)
end
